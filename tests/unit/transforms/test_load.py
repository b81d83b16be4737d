"""LoadCased: the form that every file takes, and one sentence for each file that cannot take it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from gradprom.errors import InputError
from gradprom.transforms import LoadCased


def write(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> str:
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return str(path)


def ramp(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def refusal(case: dict[str, Any], *names: str, **arguments: object) -> str:
    """The one sentence a case is refused with, checked for its form and for the names in it."""
    arguments.setdefault("spatial_dims", 2)
    with pytest.raises(InputError) as caught:
        LoadCased("image", **arguments)(case)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert all(name in sentence for name in names), sentence
    return sentence


@pytest.mark.parametrize("units", [(), (1,), (1, 1), (1, 1, 1)])
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_2d_file_with_any_trailing_unit_axes_is_the_same_image(
    tmp_path: Path, units: tuple[int, ...], suffix: str
) -> None:
    array = ramp(5, 7)
    file = write(tmp_path / f"a.{suffix}", array.reshape(5, 7, *units))
    image = LoadCased("image", spatial_dims=2)({"image": file})["image"]
    assert isinstance(image, MetaTensor)
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(image.as_tensor().numpy(), array[None])


@pytest.mark.parametrize("units", [(), (1,), (1, 1)])
def test_3d_file_with_any_trailing_unit_axes_is_the_same_volume(
    tmp_path: Path, units: tuple[int, ...]
) -> None:
    array = ramp(3, 4, 5)
    affine = np.array([[0, -2, 0, 9], [3, 0, 0, -4], [0, 0, 1, 2], [0, 0, 0, 1.0]])
    file = write(tmp_path / "a.nii.gz", array.reshape(3, 4, 5, *units), affine)
    image = LoadCased("image", spatial_dims=3)({"image": file})["image"]
    np.testing.assert_array_equal(image.as_tensor().numpy(), array[None])
    np.testing.assert_array_equal(image.affine.numpy(), affine)


def test_one_pixel_is_an_image(tmp_path: Path) -> None:
    file = write(tmp_path / "a.nii", ramp(1, 1) + 3)
    assert LoadCased("image")({"image": file})["image"].tolist() == [[[3.0]]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, ">i2", np.int32, ">f4", np.float64])
def test_stored_type_byte_order_and_scaling_do_not_matter(
    tmp_path: Path, dtype: npt.DTypeLike
) -> None:
    array = ramp(4, 3).astype(dtype)
    order = ">" if str(dtype).startswith(">") else "<"
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(dtype)
    header.set_slope_inter(0.5, 100.0)
    image = nib.Nifti1Image(array, np.eye(4), header)
    image.header.set_slope_inter(0.5, 100.0)
    nib.save(image, tmp_path / "a.nii")
    expected = nib.load(tmp_path / "a.nii").get_fdata()
    loaded = LoadCased("image")({"image": str(tmp_path / "a.nii")})["image"]
    np.testing.assert_allclose(loaded[0].numpy(), expected, rtol=1e-6)


def test_volume_for_a_2d_network_only_if_asked_for(tmp_path: Path) -> None:
    file = write(tmp_path / "a.nii", ramp(4, 5, 3))
    assert LoadCased("image", volumes=True)({"image": file})["image"].shape == (1, 4, 5, 3)
    refusal({"image": file}, file, "(4, 5, 3)")


def test_colour_picture(tmp_path: Path) -> None:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    file = str(tmp_path / "a.png")
    image = LoadCased("image", channels=3)({"image": file})["image"]
    # A picture is stored row by row; the first spatial axis is x, as in a NIfTI file.
    np.testing.assert_array_equal(image.as_tensor().numpy(), pixels.transpose(2, 1, 0))
    for volumes in (False, True):
        refusal({"image": file}, file, "1 channel", volumes=volumes)


def test_palette_of_a_picture_is_resolved(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[..., 1] = 204
    Image.fromarray(pixels).convert("P").save(tmp_path / "a.png")
    image = LoadCased("image", channels=3)({"image": str(tmp_path / "a.png")})["image"]
    assert image[:, 0, 0].tolist() == [0.0, 204.0, 0.0]


@pytest.mark.parametrize("shape", [(5, 6, 2), (5, 6, 1, 2), (5, 6, 1, 1, 2)])
def test_channels_are_the_last_axis_of_a_vector_file(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    array = ramp(5, 6, 2)
    file = write(tmp_path / "a.nii", array.reshape(shape))
    image = LoadCased("image", channels=2)({"image": file})["image"]
    np.testing.assert_array_equal(image.as_tensor().numpy(), np.moveaxis(array, -1, 0))


@pytest.mark.parametrize("as_metatensor", [False, True])
def test_an_array_in_memory_is_checked_not_read(as_metatensor: bool) -> None:
    array = torch.ones(4, 5, 1)
    value = MetaTensor(array, affine=2 * torch.eye(4)) if as_metatensor else array.numpy()
    image = LoadCased("image")({"image": value})["image"]
    assert image.shape == (1, 4, 5)
    if as_metatensor:
        assert image.affine[0, 0] == 2
    refusal({"image": array * torch.nan}, "key 'image'", "20 NaN")


def test_label_follows_its_image_and_may_be_absent(tmp_path: Path) -> None:
    case = {
        "image": write(tmp_path / "a.nii", ramp(4, 5)),
        "label": write(tmp_path / "b.nii", np.eye(4, 5, dtype=np.uint8)[..., None]),
    }
    load = LoadCased(["image", "label"], label_keys="label", classes=2, allow_missing_keys=True)
    assert load(case)["label"].shape == (1, 4, 5)
    assert set(load({"image": case["image"]})) == {"image"}
    with pytest.raises(KeyError):
        LoadCased("image", label_keys="label")({"image": case["image"]})


class TestRefused:
    """Every kind of bad file, each named in the sentence."""

    def test_missing(self, tmp_path: Path) -> None:
        refusal({"image": str(tmp_path / "no.nii")}, "no.nii", "does not exist")

    def test_folder(self, tmp_path: Path) -> None:
        refusal({"image": str(tmp_path)}, str(tmp_path))

    @pytest.mark.parametrize("content", [b"", b"not an image"])
    @pytest.mark.parametrize("suffix", ["nii", "nii.gz", "png"])
    def test_unreadable(self, tmp_path: Path, content: bytes, suffix: str) -> None:
        file = tmp_path / f"bad.{suffix}"
        file.write_bytes(content)
        refusal({"image": str(file)}, str(file), "cannot be read")

    @pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
    @pytest.mark.parametrize("share", [0.3, 0.95])
    def test_truncated(self, tmp_path: Path, suffix: str, share: float) -> None:
        noise = np.random.default_rng(0).random((40, 40))
        file = tmp_path / f"bad.{suffix}"
        write(file, noise)
        content = file.read_bytes()
        file.write_bytes(content[: int(share * len(content))])
        refusal({"image": str(file)}, str(file), "cannot be read")

    def test_corrupt_stream(self, tmp_path: Path) -> None:
        file = tmp_path / "bad.nii.gz"
        write(file, ramp(40, 40))
        content = bytearray(file.read_bytes())
        content[300:400] = b"\xff" * 100
        file.write_bytes(content)
        refusal({"image": str(file)}, str(file), "cannot be read")

    def test_colour_voxels(self, tmp_path: Path) -> None:
        rgb = np.zeros((4, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
        refusal({"image": write(tmp_path / "bad.nii", rgb)}, "bad.nii")

    @pytest.mark.parametrize(("value", "told"), [(np.nan, "1 NaN"), (-np.inf, "1 NaN")])
    def test_not_finite(self, tmp_path: Path, value: float, told: str) -> None:
        array = ramp(4, 5)
        array[1, 2] = value
        refusal({"image": write(tmp_path / "bad.nii", array)}, "bad.nii", told)

    def test_no_voxels(self, tmp_path: Path) -> None:
        file = write(tmp_path / "bad.nii", np.zeros((0, 5), np.float32))
        refusal({"image": file}, file, "no voxels")

    @pytest.mark.parametrize(
        ("shape", "arguments"),
        [
            ((4, 5, 6, 2), {"spatial_dims": 2, "volumes": True}),
            ((4, 5, 1, 3), {"spatial_dims": 2, "volumes": True}),
            ((4, 5, 6, 1, 3), {"spatial_dims": 3}),
            ((4, 5, 6, 2), {"spatial_dims": 3}),
            ((4, 5), {"channels": 3}),
            ((4, 5, 4), {"channels": 3}),
            ((4, 5, 6, 1), {"spatial_dims": 3, "channels": 2}),
        ],
    )
    def test_wrong_channels_or_axes(
        self, tmp_path: Path, shape: tuple[int, ...], arguments: dict[str, Any]
    ) -> None:
        refusal(
            {"image": write(tmp_path / "bad.nii", ramp(*shape))}, "bad.nii", str(shape), **arguments
        )

    @pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 1, 5), (1, 4, 5, 1)])
    def test_slice_for_a_3d_network(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        file = write(tmp_path / "bad.nii", ramp(*shape))
        refusal({"image": file}, file, "2D bundle", spatial_dims=3)

    @pytest.mark.parametrize(
        ("label", "told"),
        [
            (np.zeros((4, 5)), "empty label"),
            (np.full((4, 5), 0.5), "fractional"),
            (np.full((4, 5), 4.0), "0 to 3"),
            (np.full((4, 5), -1.0), "0 to 3"),
            (np.full((4, 5), np.nan), "NaN"),
            (np.ones((5, 4)), "same grid"),
            (np.ones((4, 5, 2)), "(4, 5, 2)"),
        ],
    )
    def test_label(self, tmp_path: Path, label: np.ndarray, told: str) -> None:
        case = {
            "image": write(tmp_path / "good.nii", ramp(4, 5)),
            "label": write(tmp_path / "bad.nii", label.astype(np.float32)),
        }
        refusal(case, "bad.nii", told, label_keys="label", classes=4)

    def test_label_without_number_of_classes(self, tmp_path: Path) -> None:
        case = {
            "image": write(tmp_path / "good.nii", ramp(4, 5)),
            "label": write(tmp_path / "bad.nii", -np.ones((4, 5), np.float32)),
        }
        refusal(case, "bad.nii", "0 or more", label_keys="label")

    def test_second_image_on_another_grid(self, tmp_path: Path) -> None:
        case = {
            "image": write(tmp_path / "a.nii", ramp(4, 5)),
            "b": write(tmp_path / "b.nii", ramp(5, 5)),
        }
        with pytest.raises(InputError, match=r"b\.nii.*\(5, 5\).*a\.nii.*\(4, 5\)"):
            LoadCased(["image", "b"])(case)

    def test_argument(self) -> None:
        with pytest.raises(InputError, match="spatial_dims"):
            LoadCased("image", spatial_dims=4)
