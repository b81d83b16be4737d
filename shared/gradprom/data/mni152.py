"""The MNI152 T1 template and its tissue maps, read from the installed nilearn package, as a
training set.

Licence and provenance stand in the repository's NOTICE. The template is an average of 152 heads:
smooth, skull-stripped and left-right symmetric. Neighbouring slices are almost the same image, so
the split is by contiguous blocks of axial slices with a gap of 7 mm between blocks, never by
random slices.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np

from gradprom.errors import InputError

__all__ = ["BLOCKS", "prepare"]

BLOCKS = {
    "training": ((20, 71), (123, 149)),
    "validation": ((108, 116),),
    "test": ((78, 101),),
}
"""Axial slices (array index, 1 mm apart, first included, last excluded) of each part of the
split."""

TISSUES = {"0": "background", "1": "cerebrospinal fluid", "2": "grey matter", "3": "white matter"}
BRAIN = (
    slice(3, 195),
    slice(3, 227),
)  # 192 x 224, the brain's bounding box in x and y with a margin


def prepare(root: str | Path, dims: int = 2) -> Path:
    """Writes the training set under ``root`` and returns the path of its Decathlon-style
    ``datalist.json``.

    With ``dims=2`` each axial slice is an image of 192 x 224 pixels; with ``dims=3`` each block of
    :data:`BLOCKS` is one volume. Images are uint8 (0 to 255), 1 mm, RAS; labels are tissue maps,
    the likeliest of cerebrospinal fluid (1), grey (2) and white matter (3) inside the brain, 0
    outside.

    Raises:
        InputError: if ``dims`` is neither 2 nor 3, or nilearn or one of its three files is missing.
    """
    if dims not in (2, 3):
        raise InputError(f"--dims must be 2 or 3, got {dims!r}.")
    root = Path(root)
    image, label, affine = template()
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "labels").mkdir(exist_ok=True)
    parts: dict[str, list[dict[str, str]]] = {}
    for part, blocks in BLOCKS.items():
        ranges = blocks if dims == 3 else [(z, z + 1) for block in blocks for z in range(*block)]
        parts[part] = [_write(root, image, label, affine, z, dims) for z in ranges]
    listing = {
        "name": f"mni152_{dims}d",
        "description": "MNI152 T1 template, tissue labels; split in blocks of slices 7 mm apart",
        "licence": "see NOTICE of the GradProm bundles",
        "modality": {"0": "T1"},
        "labels": TISSUES,
        **{f"num{part.capitalize()}": len(items) for part, items in parts.items()},
        **parts,
    }
    path = root / "datalist.json"
    path.write_text(json.dumps(listing, indent=4) + "\n")
    return path


def template() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """T1 template and tissue labels, uint8 ``[H, W, D]`` cropped to the brain in x and y, and
    their affine (mm)."""
    t1, grey, white = (_load(kind) for kind in ("t1", "gm", "wm"))
    gm, wm = (np.asarray(v.dataobj).astype(np.int16) for v in (grey, white))
    image = np.asarray(t1.dataobj)
    tissue = np.argmax(np.stack([255 - gm - wm, gm, wm]), axis=0).astype(np.uint8) + 1
    label = np.where(image > 0, tissue, 0).astype(np.uint8)
    origin = [axis.start for axis in BRAIN] + [0]
    affine = t1.affine.copy()
    affine[:3, 3] = nib.affines.apply_affine(t1.affine, origin)
    return image[BRAIN], label[BRAIN], affine


def _load(kind: str) -> nib.Nifti1Image:
    image = nib.load(_file(kind))
    assert isinstance(image, nib.Nifti1Image)
    return image


def _file(kind: str) -> Path:
    package = find_spec("nilearn")
    if package is None or package.origin is None:
        raise InputError(
            "nilearn, whose package holds the MNI152 template, is not installed; install it with"
            " `python -m pip install nilearn==0.14.1`."
        )
    folder = Path(package.origin).parent / "datasets" / "data"
    path = folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
    if not path.is_file():
        raise InputError(f"{path} is missing; install `nilearn==0.14.1`, whose package holds it.")
    return path


def _write(
    root: Path,
    image: np.ndarray,
    label: np.ndarray,
    affine: np.ndarray,
    z: tuple[int, int],
    dims: int,
) -> dict[str, str]:
    item = {}
    origin = affine.copy()
    origin[:3, 3] = nib.affines.apply_affine(affine, (0, 0, z[0]))
    name = f"z{z[0]:03d}.nii.gz" if dims == 2 else f"z{z[0]:03d}-{z[1] - 1:03d}.nii.gz"
    for key, volume in (("image", image), ("label", label)):
        block = volume[..., z[0]] if dims == 2 else volume[..., z[0] : z[1]]
        item[key] = f"{key}s/{name}"
        nib.save(nib.Nifti1Image(block, origin), root / item[key])
    return item
