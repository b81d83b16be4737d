"""Cases of an inference run: what is found in a folder, and that a bad case stops no other."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, ThreadDataLoader
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, Lambdad

from gradprom.data import CaseDataset, list_images, report_failures
from gradprom.errors import InputError
from gradprom.transforms import LoadCased


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"")


def names(folder: Path, **arguments: object) -> list[str]:
    return [Path(item["image"]).name for item in list_images(folder, **arguments)]


class TestListImages:
    """Which files of a folder are cases."""

    def test_images_sorted_without_hidden_other_or_nested_files(self, tmp_path: Path) -> None:
        (tmp_path / "sub").mkdir()
        (tmp_path / "folder.nii").mkdir()
        others = [".d.nii", "._a.nii", "e.txt", "f.gz", "sub/g.nii"]
        touch(tmp_path, "b.nii.gz", "a.nii", "C.NII", *others)
        assert names(tmp_path) == ["C.NII", "a.nii", "b.nii.gz"]
        assert list_images(str(tmp_path))[1] == {"image": str(tmp_path / "a.nii")}

    def test_other_suffixes(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.nii", "b.png")
        assert names(tmp_path, suffixes=(".png",)) == ["b.png"]

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"no/where.*give"):
            list_images(tmp_path / "no/where")

    def test_file_instead_of_folder(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.nii")
        with pytest.raises(InputError, match=r"a\.nii.*no folder"):
            list_images(tmp_path / "a.nii")

    def test_folder_without_images(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.txt", ".b.nii")
        with pytest.raises(InputError, match=r"no file ending in \.nii or \.nii\.gz"):
            list_images(tmp_path)

    def test_two_files_of_one_output(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.nii", "a.nii.gz")
        with pytest.raises(InputError, match=r"a\.nii' and 'a\.nii\.gz'.*rename"):
            list_images(tmp_path)


def cases(folder: Path, pattern: str) -> list[dict[str, str]]:
    """One file for each letter: good ones, and bad ones that end after the header."""
    for i, letter in enumerate(pattern):
        file = folder / f"{i}.nii"
        nib.save(nib.Nifti1Image(np.full((6, 5), i, np.float32), np.eye(4)), file)
        if letter == "b":
            file.write_bytes(file.read_bytes()[:360])
    return [{"image": str(folder / f"{i}.nii")} for i in range(len(pattern))]


def evaluate(
    dataset: CaseDataset, loader: type[DataLoader] = DataLoader, **arguments: object
) -> list[float]:
    """The mean of each image that reaches the end of a stock evaluator."""
    seen: list[float] = []
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=loader(dataset, **arguments),
        network=torch.nn.Identity(),
        postprocessing=Lambdad("pred", lambda x: seen.append(float(x.mean()))),
    ).run()
    return seen


@pytest.mark.parametrize("pattern", ["g", "ggg", "b", "bbb", "bgg", "gbg", "ggb", "bgbgb"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_bad_cases_stop_no_other_in_a_stock_evaluator(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pattern: str, batch_size: int
) -> None:
    data = cases(tmp_path, pattern)
    dataset = CaseDataset(data, Compose([LoadCased("image")]))
    seen = evaluate(dataset, batch_size=batch_size, num_workers=0)
    assert seen == [float(i) for i, letter in enumerate(pattern) if letter == "g"]
    bad = [case["image"] for case, letter in zip(data, pattern, strict=True) if letter == "b"]
    assert len(dataset.failures) == len(bad)
    told = [r.getMessage() for r in caplog.records if r.name == "gradprom.data.cases"]
    assert all(path in text for path, text in zip(bad, told, strict=True))
    if not bad:
        report_failures(dataset)
        return
    with pytest.raises(InputError) as caught:
        report_failures(dataset)
    assert all(path in str(caught.value) for path in bad)
    assert str(caught.value).endswith(".")


def test_no_cases(tmp_path: Path) -> None:
    dataset = CaseDataset(cases(tmp_path, ""), LoadCased("image"))
    assert evaluate(dataset) == []
    report_failures(dataset)


def test_a_second_pass_starts_anew(tmp_path: Path) -> None:
    data = cases(tmp_path, "gb")
    dataset = CaseDataset(data, LoadCased("image"))
    for _ in range(2):
        assert len(list(dataset)) == 1
        assert len(dataset.failures) == 1
    cases(tmp_path, "gg")
    assert len(list(dataset)) == 2
    report_failures(dataset)


def test_loading_ahead_in_a_thread(tmp_path: Path) -> None:
    dataset = CaseDataset(cases(tmp_path, "gbg"), LoadCased("image"))
    assert evaluate(dataset, ThreadDataLoader, num_workers=0, buffer_size=2) == [0.0, 2.0]
    assert len(dataset.failures) == 1


def test_worker_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = CaseDataset(cases(tmp_path, "g"), LoadCased("image"))
    # A real worker that fails makes PyTorch wait five seconds for its end.
    monkeypatch.setattr("gradprom.data.cases.get_worker_info", lambda: "a worker")
    with pytest.raises(InputError, match="num_workers to 0"):
        list(dataset)


def test_a_programming_error_is_not_a_bad_case(tmp_path: Path) -> None:
    dataset = CaseDataset(
        cases(tmp_path, "g"), Compose([LoadCased("image"), Lambdad("image", lambda x: x.no)])
    )
    with pytest.raises(RuntimeError, match="applying transform"):
        list(dataset)


def test_without_transform_and_data_is_the_list(tmp_path: Path) -> None:
    data = cases(tmp_path, "gg")
    dataset = CaseDataset(data)
    assert list(dataset) == data
    assert dataset.data is data


def test_sentence_of_a_single_case_is_its_own(tmp_path: Path) -> None:
    dataset = CaseDataset(cases(tmp_path, "b"), LoadCased("image"))
    list(dataset)
    with pytest.raises(InputError) as caught:
        report_failures(dataset)
    assert str(caught.value) == dataset.failures[0]
