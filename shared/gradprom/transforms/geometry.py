"""Bringing images to the axes that a 2D network works on, and back."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform

__all__ = ["AxialLastd", "slice_axis"]


def slice_axis(shape: tuple[int, ...], affine: torch.Tensor) -> int:
    """The array axis along which an image of ``shape`` is cut into slices for a 2D network.

    An axis of one voxel, if there is one (the last, if there are several), because such a file is a
    single slice whatever its orientation; else the axis whose direction in the patient is closest
    to superior-inferior.

    Args:
        shape: three sizes.
        affine: 4 x 4, voxel to millimetres in RAS+.

    Returns:
        0, 1 or 2; on a tie the later axis.
    """
    units = [axis for axis, size in enumerate(shape) if size == 1]
    if units:
        return units[-1]
    columns = affine[:3, :3].double()
    steepness = columns[2].abs() / columns.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    return max(range(3), key=lambda axis: (round(float(steepness[axis]), 6), axis))


class AxialLastd(MapTransform, InvertibleTransform):
    """Moves the slice axis of a volume to the end, and gives a 2D image a slice axis of size 1.

    Args:
        keys: images, ``[C, H, W]`` or ``[C, *volume]``.
        allow_missing_keys: whether a key may be absent.

    Shapes:
        ``[C, H, W]`` becomes ``[C, H, W, 1]``; a volume becomes ``[C, H, W, D]`` with axial slices
        along D if it has an affine, else along its last axis. A MetaTensor's affine follows.
        :meth:`inverse` restores both.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            is_plane = image.ndim == 3
            affine = image.affine if isinstance(image, MetaTensor) else torch.eye(4)
            axis = 2 if is_plane else slice_axis(tuple(image.shape[1:]), affine)
            d[key] = move_axis(image.unsqueeze(-1) if is_plane else image, axis, 2)
            self.push_transform(d, key=key, extra_info={"axis": axis, "is_plane": is_plane})
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            info = self.pop_transform(d, key)["extra_info"]
            image = move_axis(d[key], 2, int(info["axis"]))
            d[key] = image.squeeze(-1) if info["is_plane"] else image
        return d


def move_axis(image: torch.Tensor, source: int, destination: int) -> torch.Tensor:
    """Moves a spatial axis of ``[C, H, W, D]``; the columns of a MetaTensor's affine follow."""
    moved = image.movedim(source + 1, destination + 1)
    if isinstance(image, MetaTensor) and isinstance(moved, MetaTensor) and source != destination:
        order = [axis for axis in range(3) if axis != source]
        order.insert(destination, source)
        affine = image.affine.clone()
        affine[:3, :3] = image.affine[:3, order]
        moved.affine = affine
    return moved
