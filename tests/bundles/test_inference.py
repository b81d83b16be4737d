"""Both bundles enhance every image of a folder, on its own grid and in its own unit."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from gradprom.errors import InputError
from tests.bundles.copies import BUNDLES, copy_bundle, enhance, read, result, write

OBLIQUE = np.array(
    [[0.9, 0.3, 0.1, -40], [-0.3, 1.1, 0.4, 20], [0.1, -0.4, 2.2, 5], [0, 0, 0, 1.0]]
)
FLIPPED = np.array([[0, 0, -1.0, 30], [-2.0, 0, 0, 11], [0, 3.0, 0, -7], [0, 0, 0, 1]])
AFFINES = {"plain": np.eye(4), "oblique": OBLIQUE, "flipped": FLIPPED}

# Shapes that a bundle takes: small, odd, one voxel wide, with every form of trailing unit axes.
SHAPES = {
    2: [(33, 40), (33, 40, 1), (33, 40, 1, 1), (1, 1), (1, 19), (2, 3, 1), (21, 18, 5), (9, 1, 12)],
    3: [(17, 24, 10), (17, 24, 10, 1), (2, 2, 2), (5, 31, 3)],
}


@pytest.fixture(scope="module", params=[2, 3])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_bundle(request.param, tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def flat_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_bundle(2, tmp_path_factory.mktemp("bundles"))


def dims(bundle: Path) -> int:
    return int(bundle.name[-2])


def noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).random(shape).astype(np.float32)


def test_every_shape_on_its_own_grid(bundle: Path, tmp_path: Path) -> None:
    for number, shape in enumerate(SHAPES[dims(bundle)]):
        for name, affine in AFFINES.items():
            write(tmp_path / "in" / f"{name}{number}.nii.gz", noise(shape), affine)
    enhance(bundle, tmp_path / "in", tmp_path / "out")
    for file in sorted((tmp_path / "in").iterdir()):
        before, name = nib.load(file), file.name.removesuffix(".nii.gz")
        after = nib.load(result(tmp_path / "out", name))
        assert after.shape == before.shape
        assert after.get_data_dtype() == np.float32
        np.testing.assert_array_equal(after.affine, before.affine)
        assert after.header["sform_code"] == before.header["sform_code"]
        assert after.header["qform_code"] == before.header["qform_code"]
        assert np.isfinite(read(result(tmp_path / "out", name))).all()
    assert len(list((tmp_path / "out").iterdir())) == len(list((tmp_path / "in").iterdir()))


def test_trailing_unit_axes_change_nothing(flat_bundle: Path, tmp_path: Path) -> None:
    for number, shape in enumerate([(33, 40), (33, 40, 1), (33, 40, 1, 1)]):
        write(tmp_path / "in" / f"{number}.nii", noise((33, 40)).reshape(shape))
    enhance(flat_bundle, tmp_path / "in", tmp_path / "out")
    first, *others = [read(result(tmp_path / "out", n)).squeeze() for n in "012"]
    assert not np.array_equal(first, noise((33, 40)))
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_a_marked_voxel_stays_where_it_is(bundle: Path, tmp_path: Path) -> None:
    shape = (40, 33, 12)
    place = (28, 9, 4)
    for name, affine in AFFINES.items():
        image = noise(shape) * 0.01
        image[place] = 100.0
        write(tmp_path / "in" / f"{name}.nii", image, affine)
    enhance(bundle, tmp_path / "in", tmp_path / "out")
    for name in AFFINES:
        enhanced = read(result(tmp_path / "out", name))
        assert np.unravel_index(enhanced.argmax(), shape) == place


def test_a_volume_in_the_2d_bundle_is_enhanced_by_axial_slices(
    flat_bundle: Path, tmp_path: Path
) -> None:
    """Along the axis nearest to superior-inferior, whatever its place in the array."""
    volume = noise((20, 26, 6))
    mark = volume.copy()
    mark[..., 2] = volume[::-1, :, 2]  # another slice, of the same percentiles
    upright = np.eye(4)[:, [2, 0, 1, 3]]  # array axes S, R, A
    for name, array in (("volume", volume), ("mark", mark)):
        write(tmp_path / "in" / f"{name}.nii", array)
        write(tmp_path / "in" / f"{name}_turned.nii", np.moveaxis(array, 2, 0), upright)
    enhance(flat_bundle, tmp_path / "in", tmp_path / "out")
    files = {n: read(result(tmp_path / "out", n)) for n in ("volume", "mark")}
    changed = np.abs(files["mark"] - files["volume"]).max(axis=(0, 1)) > 0
    assert changed.tolist() == [False, False, True, False, False, False]
    for name in ("volume", "mark"):
        turned = read(result(tmp_path / "out", f"{name}_turned"))
        np.testing.assert_allclose(np.moveaxis(turned, 0, 2), files[name], atol=1e-6)


@pytest.mark.parametrize(("scale", "offset"), [(1000.0, 30000.0), (0.001, -7.0), (5e4, 0.0)])
def test_a_change_of_unit_is_followed(
    bundle: Path, tmp_path: Path, scale: float, offset: float
) -> None:
    shape = (24, 17, 6) if dims(bundle) == 3 else (24, 17)
    image = noise(shape)
    write(tmp_path / "in" / "a.nii", image)
    write(tmp_path / "in" / "b.nii", scale * image.astype(np.float64) + offset)
    enhance(bundle, tmp_path / "in", tmp_path / "out")
    first, second = (read(result(tmp_path / "out", n)) for n in "ab")
    assert not np.allclose(first, image, atol=1e-3)
    # float32 files: a millionth of what is stored
    tolerance = 1e-5 * scale + 2e-7 * abs(offset)
    np.testing.assert_allclose(second, scale * first + offset, rtol=0, atol=tolerance)


def test_stored_scaling_is_no_part_of_the_image(flat_bundle: Path, tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(-300, 900, (24, 17)).astype(np.int16)
    scaled = nib.Nifti1Image(stored, np.eye(4))
    scaled.header.set_slope_inter(0.5, 30000.0)
    (tmp_path / "in").mkdir()
    nib.save(scaled, tmp_path / "in" / "scaled.nii")
    write(tmp_path / "in" / "float.nii", stored * 0.5 + 30000.0)
    write(tmp_path / "in" / "negative.nii", stored)
    enhance(flat_bundle, tmp_path / "in", tmp_path / "out")
    outputs = {n: read(result(tmp_path / "out", n)) for n in ("scaled", "float", "negative")}
    np.testing.assert_array_equal(outputs["scaled"], outputs["float"])
    np.testing.assert_allclose(outputs["negative"] * 0.5 + 30000, outputs["scaled"], atol=0.02)
    assert outputs["negative"].min() < -100


def test_a_constant_image_is_a_case_like_any_other(bundle: Path, tmp_path: Path) -> None:
    shape = (9, 8, 7) if dims(bundle) == 3 else (9, 8)
    write(tmp_path / "in" / "a.nii", np.full(shape, -3.0, np.float32))
    enhance(bundle, tmp_path / "in", tmp_path / "out")
    assert np.isfinite(read(result(tmp_path / "out", "a"))).all()


def test_tiles_give_what_the_whole_image_gives(bundle: Path, tmp_path: Path) -> None:
    shape = (50, 30, 20) if dims(bundle) == 3 else (150, 90)
    write(tmp_path / "in" / "a.nii", noise(shape))
    halo = 16 if dims(bundle) == 3 else 56
    for name, tile in (("whole", None), ("tiles", 16)):
        override = {"inferer#tile": tile, "inferer#halo": halo}
        enhance(bundle, tmp_path / "in", tmp_path / name, **override)
    whole, tiles = (read(result(tmp_path / n, "a")) for n in ("whole", "tiles"))
    # The halo of the 3D case is shorter than the receptive field, to keep the test quick.
    np.testing.assert_allclose(tiles, whole, rtol=0, atol=1e-5 if dims(bundle) == 2 else 1e-2)


def test_a_bad_case_among_good_ones(bundle: Path, tmp_path: Path) -> None:
    shape = (9, 8, 7) if dims(bundle) == 3 else (9, 8)
    for name in "abc":
        write(tmp_path / "in" / f"{name}.nii", noise(shape))
    bad = tmp_path / "in" / "b.nii"
    bad.write_bytes(bad.read_bytes()[:400])
    with pytest.raises(InputError, match=r"1 of 3 cases .*b\.nii' cannot be read"):
        enhance(bundle, tmp_path / "in", tmp_path / "out")
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["a", "c"]


def test_from_any_working_directory(
    flat_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in" / "a.nii", noise((9, 8)))
    monkeypatch.chdir(tmp_path / "in")
    enhance(flat_bundle, tmp_path / "in", tmp_path / "out")
    assert result(tmp_path / "out", "a").is_file()
    assert [f.name for f in (tmp_path / "in").iterdir()] == ["a.nii"]


def test_monai_finds_the_keys_it_relies_on(bundle: Path, tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.nii", noise((9, 8, 7)))
    workflow = ConfigWorkflow(
        str(bundle / "configs" / "inference.json"),
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(bundle),
        dataset_dir=str(tmp_path / "in"),
        device="cpu",
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def test_weights_load_on_a_machine_without_the_device_they_were_saved_on(bundle: Path) -> None:
    config = ConfigParser.load_config_file(str(bundle / "configs" / "inference.json"))
    loader = config["handlers"][0]
    assert loader["_target_"] == "CheckpointLoader"
    assert loader["map_location"] == "cpu"
    assert loader["strict"] is True
    assert config["initialize"] == []
    assert "torch.cuda.is_available()" in config["device"]


def test_shipped_tiles_start_on_the_network_grid_and_reach_its_receptive_field() -> None:
    for config in sorted(BUNDLES.glob("*/configs/inference.json")):
        parser = ConfigParser(ConfigParser.load_config_file(str(config)))
        inferer = parser.get_parsed_content("inferer")
        network = parser.get_parsed_content("network_def").double()
        assert inferer.align % network.multiple == 0
        shape = (256, *[16] * (inferer.spatial_dims - 1))
        image = torch.rand(1, 1, *shape, dtype=torch.float64)
        touched = image.clone()
        touched[0, 0, 128] += 1
        with torch.no_grad():
            change = (network(touched) - network(image)).abs().flatten(3).amax(-1)[0, 0]
        while change.ndim > 1:
            change = change.amax(-1)
        reach = [abs(int(i) - 128) for i in change.nonzero()]
        assert max(reach) <= inferer.halo
