"""Does a bundle's denoiser carry over to people who are in no training data?

`python -m benchmarks.transfer IMAGE [IMAGE ...] [--bundle DIR] [--slices 8] [--out FILE]`

Each IMAGE is a clean, skull-stripped T1 image (NIfTI, PNG or .npy) that you bring; none is in the
repository. Volumes give `--slices` axial slices through the brain. Gaussian noise of 0.05 and 0.10
of the range is added (seeded by file name and slice, not clipped); reported is the mean PSNR of the
bundle's 2D network minus that of the best Gaussian filter, whose width is chosen for each image by
looking at the truth, over the whole image and inside the brain, both sides clipped to [0, 1].
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from gradprom.apps import report, training
from gradprom.apps.baselines import best_gaussian
from gradprom.apps.evaluation import Case, Noise
from gradprom.errors import InputError
from gradprom.metrics import psnr

BUNDLE = Path(__file__).parents[1] / "bundles" / "gradprom_mni152_2d"
NOISES = (Noise("gaussian", 0.05), Noise("gaussian", 0.10))
BODY = 0.02  # of the range: skull-stripped images are exactly 0 outside, PNGs nearly so


def transfer(
    *images: str, bundle: str = str(BUNDLE), slices: int = 8, seed: int = 0, out: str | None = None
) -> None:
    """Print the table and, with `out`, write it as JSON."""
    if not images:
        raise InputError("no images were given; name clean, skull-stripped T1 files.")
    folder = Path(bundle)
    network = training.network(folder, "network_def", folder / "models" / "model.pt")
    enhance = training.normalised(network)
    rows = [row(Path(image), enhance, slices, seed) for image in images]
    rows.append(mean_row(rows))
    print(table(rows))
    if out is not None:
        content = {"machine": report.machine(), "versions": report.versions(), "seed": seed}
        content |= {"bundle": folder.name, "rows": rows}
        Path(out).write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def row(path: Path, enhance: Callable[[Tensor], Tensor], slices: int, seed: int) -> dict[str, Any]:
    """The figures of one file: decibels above the best Gaussian filter, mean over its slices."""
    cases = read(path, slices)
    result: dict[str, Any] = {"image": path.name, "slices": len(cases)}
    for noise in NOISES:
        gains = [gain(case, noise, enhance, seed) for case in cases]
        for place, name in enumerate(("whole", "brain")):
            values = [each[place] for each in gains]
            result[f"{noise.name} {name}"] = fmean(values)
            result[f"{noise.name} {name} sd"] = stdev(values) if len(values) > 1 else 0.0
    return result


def gain(
    case: Case, noise: Noise, enhance: Callable[[Tensor], Tensor], seed: int
) -> tuple[float, float]:
    """Decibels above the best Gaussian filter, whole image and inside the brain."""
    noisy = case.degraded(noise, seed)
    oracle = best_gaussian(noisy, case.clean, case.brain)
    image = enhance(noisy)
    whole = psnr(image, case.clean) - psnr(oracle.whole, case.clean)
    inside = psnr(image, case.clean, case.brain) - psnr(oracle.brain, case.clean, case.brain)
    return whole, inside


def read(path: Path, slices: int) -> list[Case]:
    """Slices of a file as cases, scaled to [0, 1] by the file's maximum."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; name clean, skull-stripped T1 files.")
    array = pixels(path).astype(np.float32)
    array = array / array.max()
    if array.ndim == 2:
        planes = [array]
    else:
        area = (array > BODY).mean(axis=(0, 1))
        inside = np.flatnonzero(area > area.max() / 2)
        places = np.linspace(inside[0], inside[-1], slices).round().astype(int)
        planes = [array[..., place] for place in places]
    return [
        Case(f"{path.name} {n}", plane, (plane > BODY).long())
        for n, plane in enumerate(torch.from_numpy(p.copy())[None] for p in planes)
    ]


def pixels(path: Path) -> np.ndarray:
    """The array of a NIfTI, .npy or picture file, without unit axes and colour."""
    if path.suffix == ".npy":
        return np.load(path)
    if path.name.endswith((".nii", ".nii.gz")):
        image = nib.load(path)
        assert isinstance(image, nib.Nifti1Image)
        return np.squeeze(np.asarray(image.dataobj))
    from skimage.io import imread

    return imread(path, as_gray=True)


def mean_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over files, each file counted once; its deviation is that between files."""
    result: dict[str, Any] = {"image": "mean of files", "slices": sum(r["slices"] for r in rows)}
    for key in (key for key in rows[0] if key.endswith(("whole", "brain"))):
        values = [r[key] for r in rows]
        result[key] = fmean(values)
        result[f"{key} sd"] = stdev(values) if len(values) > 1 else 0.0
    return result


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    keys = [f"{noise.name} {name}" for noise in NOISES for name in ("whole", "brain")]
    lines = ["| image | slices | " + " | ".join(f"{k}, dB" for k in keys) + " |"]
    lines.append("|---" * (len(keys) + 2) + "|")
    for r in rows:
        cells = [f"{r[key]:+.2f} ± {r[key + ' sd']:.2f}" for key in keys]
        lines.append(f"| {r['image']} | {r['slices']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    fire.Fire(transfer)
