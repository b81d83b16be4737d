"""Copies of the shipped bundles with weights made on the fly, for tests that run them."""

from __future__ import annotations

import shutil
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser

from gradprom.bundle import find_input_error

BUNDLES = Path(__file__).parents[2] / "bundles"


def copy_bundle(dims: int, folder: Path) -> Path:
    """Copies a bundle's configs into ``folder`` and makes the weights of its networks."""
    root = folder / f"gradprom_mni152_{dims}d"
    shutil.copytree(BUNDLES / root.name / "configs", root / "configs")
    (root / "models").mkdir()
    for config, key, file in (
        ("inference.json", "network_def", "model.pt"),
        ("train.json", "recogniser_def", "recogniser.pt"),
    ):
        parser = ConfigParser(ConfigParser.load_config_file(str(root / "configs" / config)))
        torch.manual_seed(0)
        network = parser.get_parsed_content(key)
        torch.save(network.state_dict(), root / "models" / file)
    return root


def enhance(root: Path, images: Path, out: Path, **override: object) -> None:
    """Runs ``inference.json`` in this process on the CPU; an InputError comes out as itself."""
    override = {"device": "cpu", **override}
    run(root, "inference.json", dataset_dir=str(images), output_dir=str(out), **override)


def run(root: Path, config: str, **override: object) -> None:
    """Runs a config of the bundle in this process on the CPU; an InputError comes out as itself."""
    try:
        monai.bundle.run(
            config_file=str(root / "configs" / config),
            bundle_root=str(root),
            logging_file=False,
            **{"device": "$torch.device('cpu')", **override},
        )
    except Exception as error:
        found = find_input_error(error)
        if found is None:
            raise
        raise found from None


def write(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Writes a NIfTI file of the array's own type."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def read(path: Path) -> np.ndarray:
    """The voxels of a NIfTI file in its own unit, float64."""
    return np.asarray(nib.load(path).dataobj, dtype=np.float64)


def result(out: Path, name: str) -> Path:
    """Where the enhanced image of a case is."""
    return out / name / f"{name}_enhanced.nii.gz"
