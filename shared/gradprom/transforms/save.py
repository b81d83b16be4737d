"""Writing an enhanced image onto the grid of the file it was made from."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import SaveImaged

from gradprom.errors import InputError

__all__ = ["SaveImageEnhancedd", "case_name", "on_grid_of", "write_atomically"]

SUFFIXES = (".nii.gz", ".nii", ".png")


def case_name(path: str | Path) -> str:
    """The file's name without its image suffix: ``scan.v2`` of ``in/scan.v2.nii.gz``."""
    name = Path(path).name
    suffix = next((s for s in SUFFIXES if name.lower().endswith(s)), Path(name).suffix)
    return name[: len(name) - len(suffix)]


def on_grid_of(source: str | Path, values: np.ndarray) -> nib.Nifti1Image:
    """Returns float32 ``values`` as an image with the array shape, affine, form codes and units of
    a NIfTI file.

    Args:
        source: the NIfTI file that was read, or a picture, which has no grid: identity affine,
            channels on the fifth axis, where NIfTI has vectors.
        values: ``[C, *spatial]`` in the source's intensity unit; spatial axes as in the file except
            for unit axes.

    Raises:
        InputError: the number of values is not that of the source.
    """
    last = np.moveaxis(np.asarray(values, dtype=np.float32), 0, -1)
    if not str(source).lower().endswith((".nii", ".nii.gz")):
        grey = last.shape[-1] == 1
        return nib.Nifti1Image(last[..., 0] if grey else last[:, :, None, None], np.eye(4))
    original: Any = nib.load(source)  # nibabel types it as an image without a shape
    if last.size != int(np.prod(original.shape)):
        raise InputError(
            f"the result for '{source}' has shape {values.shape}, the file {original.shape}: "
            "add the inverse of each spatial transform to the postprocessing."
        )
    # `affine=None` keeps both forms of the header as they are; nibabel would otherwise rewrite the
    # sform.
    image: nib.Nifti1Image = type(original)(last.reshape(original.shape), None, original.header)
    image.set_data_dtype(np.float32)
    # Extensions describe the acquisition and can name the patient; they are not part of the grid.
    image.header.extensions.clear()
    return image


def write_atomically(image: nib.Nifti1Image, path: Path) -> None:
    """Writes ``path`` whole or not at all; until then a file of that name stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}_{path.name}")
    try:
        nib.save(image, partial)
        os.replace(partial, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


class SaveImageEnhancedd(SaveImaged):
    """Writes ``output_dir/<name>/<name>_enhanced.nii.gz``, float32, on the grid and in the unit of
    the input file.

    Not MONAI's own saver, which writes shape, sform and units anew and leaves half a file behind
    when it fails. A subclass of it all the same, with ``SaveImage`` in its name, because servers
    that return the image by their own means remove savers from the postprocessing, MONAI Label by
    this class and the MONAI Deploy SDK by this name.

    Args:
        keys: images to write, MetaTensors ``[C, *spatial]`` that know the file they come from.
        output_dir: created if need be.
        postfix: what is added to the name.
        allow_missing_keys: whether a key may be absent.

    Raises:
        InputError: an image that comes from no file; a shape that is not the file's.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | Path,
        postfix: str = "enhanced",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(
            keys,
            output_dir=output_dir,
            output_postfix=postfix,
            allow_missing_keys=allow_missing_keys,
        )
        self.output_dir = Path(output_dir)
        self.postfix = postfix

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            source = source_file(d[key], key)
            name = case_name(source)
            image = on_grid_of(source, d[key].detach().cpu().numpy())
            write_atomically(image, self.output_dir / name / f"{name}_{self.postfix}.nii.gz")
        return d


def source_file(image: torch.Tensor, key: Hashable) -> str:
    """The file that an image was read from."""
    source = image.meta.get("filename_or_obj") if isinstance(image, MetaTensor) else None
    if not source:
        raise InputError(
            f"the image under key '{key}' comes from no file, so it has no name to be saved under: "
            "load it with LoadCased."
        )
    return str(source)
