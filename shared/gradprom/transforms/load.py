"""Reading the files of one case, and refusing what no network can be given."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, NibabelReader, PILReader
from monai.data.image_reader import ImageReader
from monai.transforms import LoadImage, MapTransform
from monai.utils import ensure_tuple

from gradprom.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage  # Pillow is needed for pictures only

__all__ = ["LoadCased", "check_image", "check_label", "spatial_form"]


class LoadCased(MapTransform):
    """Loads the images and label maps of one case as channel-first float32 tensors.

    Trailing unit axes of the file are dropped, so that ``(H, W)``, ``(H, W, 1)`` and ``(H, W, 1,
    1)`` are the same 2D image. A value that is already an array (a server that read the file
    itself) is checked, not read.

    Args:
        keys: keys to load; the first is the one the others must match in spatial shape.
        label_keys: which keys (of those, or more) hold label maps: whole numbers, 0 is background.
        channels: image channels; more than one means that the file's last axis holds them (PNG,
            vector NIfTI).
        spatial_dims: 2 or 3.
        classes: if given, label values are below it.
        volumes: whether a 2D network is also given volumes, to be enhanced slice by slice.
        allow_missing_keys: whether a key may be absent from the case.

    Shapes:
        ``[channels, H, W]`` for ``spatial_dims=2`` (``[channels, H, W, D]`` for a volume),
        ``[channels, H, W, D]`` for 3; labels ``[1, ...]``.

    Raises:
        InputError: missing or unreadable file, NaN or infinite voxels, wrong number of channels or
            axes, no voxels, shapes that differ within the case; a label that is empty, fractional
            or out of range.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_keys: KeysCollection = (),
        channels: int = 1,
        spatial_dims: int = 2,
        classes: int | None = None,
        volumes: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        if spatial_dims not in (2, 3):
            raise InputError(f"`spatial_dims` of LoadCased must be 2 or 3, not {spatial_dims!r}.")
        self.label_keys = ensure_tuple(label_keys)
        every = dict.fromkeys(ensure_tuple(keys) + self.label_keys)
        super().__init__(tuple(every), allow_missing_keys)
        self.channels = channels
        self.spatial_dims = spatial_dims
        self.classes = classes
        self.volumes = volumes and spatial_dims == 2
        self.loader = LoadImage(image_only=True, dtype=np.float32, simple_keys=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        first: tuple[str, torch.Size] | None = None
        for key in self.key_iterator(d):
            is_label = key in self.label_keys
            name, raw = self.read(d[key], key)
            shape = spatial_form(
                raw.shape, 1 if is_label else self.channels, self.spatial_dims, self.volumes, name
            )
            d[key] = channel_first(raw, shape)
            if is_label:
                check_label(d[key], name, self.classes)
            else:
                check_image(d[key], name)
            first = first or (name, d[key].shape[1:])
            check_same_shape(d[key], name, first)
        return d

    def read(self, value: object, key: Hashable) -> tuple[str, MetaTensor]:
        """Returns a name for messages and the values, on their own axes, of a file or an array."""
        if isinstance(value, (np.ndarray, torch.Tensor)):
            meta = value.meta if isinstance(value, MetaTensor) else {}
            array = value.as_tensor() if isinstance(value, MetaTensor) else torch.as_tensor(value)
            return f"the array under key '{key}'", MetaTensor(array.float(), meta=meta)
        name = f"'{value}'"
        if not isinstance(value, (str, Path)) or not Path(value).is_file():
            raise InputError(
                f"{name} (key '{key}') does not exist: "
                "correct the path or remove the case from the list."
            )
        # Broad on purpose: nibabel, zlib, gzip, Pillow and NumPy each have errors of their own for
        # a broken file.
        try:
            reader = reader_for(value)
            raw = self.loader(value, reader=reader)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
            raise InputError(
                f"{name} cannot be read ({type(error).__name__}: {reason}): "
                "replace it by a complete image file."
            ) from error
        # A colour picture is one slice; without this axis its channels would look like slices.
        is_colour = isinstance(reader, PILReader) and raw.ndim == 3
        return name, raw.unsqueeze(2) if is_colour else raw


def reader_for(path: str | Path) -> ImageReader:
    """MONAI's reader by suffix: Pillow for PNG, nibabel for everything else."""
    if str(path).lower().endswith(".png"):
        return PILReader(converter=without_palette)
    # A mapped file would let an output that replaces its input change the data in memory.
    return NibabelReader(mmap=False)


def without_palette(image: PILImage) -> PILImage:
    """A Pillow image whose pixels are intensities, not indices of a palette."""
    return image.convert("RGB") if image.mode == "P" else image


def spatial_form(
    shape: Sequence[int], channels: int, spatial_dims: int, volumes: bool, name: str
) -> tuple[int, ...]:
    """The spatial shape that an array of ``shape`` has for a network.

    Raises:
        InputError: it has none: no voxels, wrong number of channels or axes, a slice for a 3D
            network.
    """
    sizes = list(shape)
    if 0 in sizes:
        raise InputError(f"{name} has no voxels (shape {tuple(shape)}): replace it by an image.")
    longest = 3 if volumes else spatial_dims
    if channels > 1:
        drop_units(sizes, 1)
        if sizes.pop() != channels or len(sizes) < 2:
            raise InputError(wrong_axes(name, shape, channels, spatial_dims))
    drop_units(sizes, spatial_dims)
    if spatial_dims == 2:
        sizes += [1] * (2 - len(sizes))
    if spatial_dims == 3 and (len(sizes) < 3 or (len(sizes) == 3 and 1 in sizes)):
        raise InputError(
            f"{name} is a single slice (shape {tuple(shape)}) but this bundle takes volumes: "
            "use a 2D bundle."
        )
    if not spatial_dims <= len(sizes) <= longest:
        raise InputError(wrong_axes(name, shape, channels, spatial_dims))
    return tuple(sizes)


def drop_units(sizes: list[int], keep: int) -> None:
    """Drops trailing sizes of 1 in place, down to ``keep`` sizes."""
    while len(sizes) > keep and sizes[-1] == 1:
        sizes.pop()


def wrong_axes(name: str, shape: Sequence[int], channels: int, spatial_dims: int) -> str:
    """The sentence for an array with the wrong number of channels or axes."""
    return (
        f"{name} has shape {tuple(shape)}, which is no {spatial_dims}D image of {channels} "
        f"channel{'s' * (channels != 1)}: give one such image in each file."
    )


def channel_first(raw: MetaTensor, spatial: tuple[int, ...]) -> MetaTensor:
    """Reshapes ``[*spatial, 1, ..., C]`` (one channel needs no axis) to ``[C, *spatial]``."""
    values = raw.as_tensor().reshape(*spatial, -1).movedim(-1, 0).contiguous()
    meta = dict(raw.meta)
    meta["original_channel_dim"] = "no_channel"
    return MetaTensor(values, meta=meta)


def check_image(image: torch.Tensor, name: str) -> None:
    """Refuses an image with NaN or infinite voxels."""
    bad = int((~torch.isfinite(image)).sum())
    if bad:
        raise InputError(
            f"{name} has {bad} NaN or infinite voxel{'s' * (bad != 1)}: "
            "replace them, by zeros for instance."
        )


def check_label(label: torch.Tensor, name: str, classes: int | None) -> None:
    """Refuses a label map that is empty, fractional, negative or reaches ``classes``."""
    check_image(label, name)
    low, high = float(label.min()), float(label.max())
    if bool((label != label.round()).any()):
        raise InputError(f"{name} has fractional label values: give a map of whole numbers.")
    if low < 0 or (classes is not None and high >= classes):
        upper = "0 or more" if classes is None else f"0 to {classes - 1}"
        raise InputError(
            f"{name} has label values from {low:g} to {high:g} where {upper} is expected: "
            "renumber the classes."
        )
    if high == 0:
        raise InputError(
            f"{name} is an empty label, every value is 0: "
            "draw the label or remove the case from the list."
        )


def check_same_shape(values: torch.Tensor, name: str, first: tuple[str, torch.Size]) -> None:
    """Refuses values whose spatial shape is not that of the case's first image."""
    if values.shape[1:] != first[1]:
        raise InputError(
            f"{name} has spatial shape {tuple(values.shape[1:])}, {first[0]} {tuple(first[1])}: "
            "give files on the same grid."
        )
