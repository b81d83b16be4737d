"""AxialLastd: which axis is cut into slices, and the way back."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd
from scipy.spatial.transform import Rotation

from gradprom.transforms import AxialLastd
from gradprom.transforms.geometry import slice_axis

ORIENTATIONS = [
    "".join(sign)
    for order in itertools.permutations(["LR", "PA", "IS"])
    for sign in itertools.product(*order)
]


def affine_of(codes: str, tilt: float = 0.0) -> torch.Tensor:
    """An affine whose array axes point to ``codes``, turned ``tilt`` degrees about each axis."""
    matrix = np.eye(4)
    matrix[:3, :3] = nib.orientations.inv_ornt_aff(
        nib.orientations.axcodes2ornt(tuple(codes)), (1, 1, 1)
    )[:3, :3].T @ np.diag([1.0, 2.0, 3.0])
    matrix[:3, :3] = (
        Rotation.from_euler("xyz", [tilt] * 3, degrees=True).as_matrix() @ matrix[:3, :3]
    )
    matrix[:3, 3] = [-90, 40, 7]
    return torch.tensor(matrix)


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("tilt", [0.0, 20.0])
def test_slices_are_axial_in_every_orientation(codes: str, tilt: float) -> None:
    affine = affine_of(codes, tilt)
    assert nib.aff2axcodes(affine.numpy()) == tuple(codes)
    expected = next(i for i, code in enumerate(codes) if code in "SI")
    assert slice_axis((4, 5, 6), affine) == expected


def test_a_single_slice_is_cut_along_its_own_axis() -> None:
    ras = torch.eye(4)
    assert slice_axis((1, 5, 6), ras) == 0
    assert slice_axis((5, 1, 6), ras) == 1
    assert slice_axis((5, 1, 1), ras) == 2


def test_without_direction_the_last_axis_is_taken() -> None:
    assert slice_axis((4, 5, 6), torch.zeros(4, 4)) == 2
    assert slice_axis((4, 5, 6), torch.ones(4, 4)) == 2


@pytest.mark.parametrize("codes", ["RAS", "SAR", "ASL", "LPI", "PIR"])
def test_every_voxel_stays_where_it_is_in_the_patient(codes: str) -> None:
    affine = affine_of(codes, 10.0)
    volume = MetaTensor(torch.arange(2 * 4 * 5 * 6.0).reshape(2, 4, 5, 6), affine=affine)
    transform = AxialLastd("image")
    moved = transform({"image": volume})["image"]
    for voxel in itertools.product((0, 3), (0, 4), (0, 5)):
        index = (moved[0] == volume[0][voxel]).nonzero()[0].double()
        here = moved.affine @ torch.tensor([*index, 1.0])
        there = affine @ torch.tensor([*voxel, 1.0], dtype=torch.float64)
        torch.testing.assert_close(here, there)
    back = transform.inverse({"image": moved})["image"]
    assert torch.equal(back.as_tensor(), volume.as_tensor())
    torch.testing.assert_close(back.affine, affine)


@pytest.mark.parametrize("shape", [(1, 4, 5), (3, 1, 1), (1, 4, 5, 1), (1, 1, 4, 5), (2, 4, 1, 5)])
@pytest.mark.parametrize("as_metatensor", [False, True])
def test_round_trip_of_any_image(shape: tuple[int, ...], as_metatensor: bool) -> None:
    image = torch.rand(shape)
    transform = AxialLastd("image")
    moved = transform({"image": MetaTensor(image) if as_metatensor else image})
    assert moved["image"].ndim == 4
    if len(shape) == 3 or 1 in shape[1:]:
        assert moved["image"].shape[-1] == 1
    back = transform.inverse(moved)["image"]
    assert isinstance(back, MetaTensor) == as_metatensor
    assert torch.equal(torch.as_tensor(back), image)


def test_invertd_puts_a_prediction_back() -> None:
    preprocessing = Compose([AxialLastd("image")])
    volume = MetaTensor(torch.rand(1, 4, 5, 6), affine=affine_of("SRA"))
    data = dict(preprocessing({"image": volume}))
    assert data["image"].shape == (1, 5, 6, 4)
    data["pred"] = data["image"] + 1
    undone = Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False)(data)["pred"]
    assert torch.equal(undone.as_tensor(), volume.as_tensor() + 1)
    torch.testing.assert_close(undone.affine, volume.affine)


def test_missing_key_is_allowed_if_said() -> None:
    assert AxialLastd("image", allow_missing_keys=True)({}) == {}
    with pytest.raises(KeyError):
        AxialLastd("image")({})
