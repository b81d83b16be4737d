"""Bad input ends a run with one sentence and an exit code, and overwrites nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gradprom.errors import InputError
from tests.bundles.copies import copy_bundle, enhance, result, run, write

KEEP = b"what was there before"


@pytest.fixture(scope="module", params=[2, 3])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_bundle(request.param, tmp_path_factory.mktemp("bundles"))


def shape(bundle: Path) -> tuple[int, ...]:
    return (20,) * int(bundle.name[-2])


def image(bundle: Path) -> np.ndarray:
    return np.random.default_rng(0).random(shape(bundle)).astype(np.float32)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def unreadable(file: Path) -> None:
    file.write_bytes(b"not an image")


def nan(file: Path, array: np.ndarray) -> None:
    array.flat[5] = np.nan
    write(file, array)


# What is wrong with a file, how it is made so, and what the sentence says.
BAD_IMAGES: dict[str, tuple[Callable[[Path, np.ndarray], object], str]] = {
    "truncated": (lambda file, _: truncate(file), "cannot be read"),
    "unreadable": (lambda file, _: unreadable(file), "cannot be read"),
    "nan": (nan, "1 NaN or infinite voxel"),
    "channels": (lambda file, a: write(file, np.stack([a.reshape(20, 20, -1)] * 3, -1)), "3)"),
}
BAD_LABELS: dict[str, tuple[Callable[[Path, np.ndarray], object], str]] = {
    "empty": (lambda file, a: write(file, np.zeros_like(a)), "empty label"),
    "shape": (lambda file, a: write(file, np.ones_like(a)[1:]), "same grid"),
    "range": (lambda file, a: write(file, 4 * np.ones_like(a)), "0 to 3"),
    "fraction": (lambda file, a: write(file, 0.5 * np.ones_like(a)), "fractional"),
    "truncated": (lambda file, _: truncate(file), "cannot be read"),
}


def one_sentence(caught: pytest.ExceptionInfo[InputError], *told: str) -> None:
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    assert all(t in sentence for t in told), sentence


def kept(folder: Path) -> Callable[[], None]:
    """Puts a file in ``folder`` and returns the check that it is still the only one, unchanged."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.pt").write_bytes(KEEP)

    def check() -> None:
        files = [f for f in folder.rglob("*") if f.is_file()]
        assert [f.read_bytes() for f in files] == [KEEP]

    return check


class TestInference:
    """`inference.json` of both bundles."""

    @pytest.mark.parametrize("kind", BAD_IMAGES)
    def test_bad_image(self, bundle: Path, tmp_path: Path, kind: str) -> None:
        make, told = BAD_IMAGES[kind]
        file = write(tmp_path / "in" / "a.nii.gz", image(bundle))
        make(file, image(bundle))
        existing = result(tmp_path / "out", "a")
        existing.parent.mkdir(parents=True)
        existing.write_bytes(KEEP)
        with pytest.raises(InputError) as caught:
            enhance(bundle, tmp_path / "in", tmp_path / "out")
        one_sentence(caught, str(file), told)
        assert existing.read_bytes() == KEEP
        assert list(existing.parent.iterdir()) == [existing]

    def test_slice_in_the_3d_bundle(self, bundle: Path, tmp_path: Path) -> None:
        write(tmp_path / "in" / "a.nii", np.ones((20, 20, 1), np.float32))
        if bundle.name.endswith("2d"):
            enhance(bundle, tmp_path / "in", tmp_path / "out")
            return
        with pytest.raises(InputError) as caught:
            enhance(bundle, tmp_path / "in", tmp_path / "out")
        one_sentence(caught, "a.nii", "(20, 20, 1)", "2D bundle")

    def test_missing_folder(self, bundle: Path, tmp_path: Path) -> None:
        check = kept(tmp_path / "out")
        with pytest.raises(InputError) as caught:
            enhance(bundle, tmp_path / "no", tmp_path / "out")
        one_sentence(caught, str(tmp_path / "no"), "--dataset_dir")
        check()

    def test_folder_without_images(self, bundle: Path, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        with pytest.raises(InputError) as caught:
            enhance(bundle, tmp_path / "in", tmp_path / "out")
        one_sentence(caught, str(tmp_path / "in"), ".nii.gz")

    def test_two_files_of_one_result(self, bundle: Path, tmp_path: Path) -> None:
        for name in ("a.nii", "a.nii.gz"):
            write(tmp_path / "in" / name, image(bundle))
        check = kept(tmp_path / "out")
        with pytest.raises(InputError) as caught:
            enhance(bundle, tmp_path / "in", tmp_path / "out")
        one_sentence(caught, "a.nii'", "a.nii.gz", "rename")
        check()

    def test_missing_weights(self, bundle: Path, tmp_path: Path) -> None:
        write(tmp_path / "in" / "a.nii", image(bundle))
        weights = tmp_path / "model.pt"
        with pytest.raises(InputError) as caught:
            enhance(bundle, tmp_path / "in", tmp_path / "out", weights=str(weights))
        one_sentence(caught, str(weights), "python -m monai.bundle run", "train.json")
        assert not (tmp_path / "out").exists()

    def test_misspelt_override(self, bundle: Path, tmp_path: Path) -> None:
        write(tmp_path / "in" / "a.nii", image(bundle))
        with pytest.raises(InputError) as caught:
            enhance(bundle, tmp_path / "in", tmp_path / "out", outputdir="x")
        one_sentence(caught, "'outputdir'", "'output_dir'")
        assert not (tmp_path / "out").exists()


@pytest.fixture
def data(bundle: Path, tmp_path: Path) -> Path:
    """A folder with one training and one validation case, both good."""
    folder = tmp_path / "data"
    for name in ("train", "val"):
        write(folder / f"{name}.nii.gz", image(bundle))
        write(folder / f"{name}_label.nii.gz", np.ones(shape(bundle), np.float32))
    items = {n: {"image": f"{n}.nii.gz", "label": f"{n}_label.nii.gz"} for n in ("train", "val")}
    datalist = {"training": [items["train"]], "validation": [items["val"]]}
    (folder / "datalist.json").write_text(json.dumps(datalist))
    return folder


class TestTraining:
    """`train.json` of both bundles."""

    def refused(self, bundle: Path, folder: Path, *told: str, **override: object) -> None:
        check = kept(folder.parent / "out")
        with pytest.raises(InputError) as caught:
            run(
                bundle,
                "train.json",
                dataset_dir=str(folder),
                output_dir=str(folder.parent / "out"),
                epochs=1,
                **override,
            )
        one_sentence(caught, *told)
        check()

    @pytest.mark.parametrize("kind", BAD_IMAGES)
    @pytest.mark.parametrize("part", ["train", "val"])
    def test_bad_image(self, bundle: Path, data: Path, kind: str, part: str) -> None:
        make, told = BAD_IMAGES[kind]
        file = data / f"{part}.nii.gz"
        make(file, image(bundle))
        self.refused(bundle, data, str(file), told)

    @pytest.mark.parametrize("kind", BAD_LABELS)
    def test_bad_label(self, bundle: Path, data: Path, kind: str) -> None:
        make, told = BAD_LABELS[kind]
        file = data / "train_label.nii.gz"
        make(file, image(bundle))
        self.refused(bundle, data, str(file), told)

    def test_bad_image_met_only_in_training(self, bundle: Path, data: Path) -> None:
        truncate(data / "train.nii.gz")
        self.refused(bundle, data, "train.nii.gz", "cannot be read", cache_rate=0.0)

    def test_missing_image(self, bundle: Path, data: Path) -> None:
        (data / "train.nii.gz").unlink()
        self.refused(bundle, data, "train.nii.gz")

    def test_missing_folder(self, bundle: Path, tmp_path: Path) -> None:
        self.refused(bundle, tmp_path / "no", str(tmp_path / "no"), "--dataset_dir")

    def test_missing_weights(self, bundle: Path, data: Path) -> None:
        weights = str(data / "recogniser.pt")
        command = "python -m monai.bundle run"
        self.refused(bundle, data, weights, command, recogniser_weights=weights)

    def test_misspelt_override(self, bundle: Path, data: Path) -> None:
        self.refused(bundle, data, "'ephocs'", "'epochs'", ephocs=2)


def test_the_command_ends_with_the_sentence_and_an_exit_code(tmp_path: Path) -> None:
    root = copy_bundle(2, tmp_path)
    good = write(tmp_path / "in" / "good.nii", np.random.default_rng(0).random((20, 20)))
    bad = write(tmp_path / "in" / "bad.nii", np.ones((20, 20)))
    truncate(bad)
    existing = result(tmp_path / "out", "bad")
    existing.parent.mkdir(parents=True)
    existing.write_bytes(KEEP)
    command = [sys.executable, "-m", "monai.bundle", "run"]
    command += ["--config_file", str(root / "configs" / "inference.json")]
    command += ["--bundle_root", str(root), "--device", "cpu"]
    command += ["--dataset_dir", str(good.parent), "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: 1 of 2 cases were left out: '{bad}' cannot be read")
    assert "Traceback" not in done.stderr + done.stdout
    assert existing.read_bytes() == KEEP
    assert result(tmp_path / "out", "good").is_file()
