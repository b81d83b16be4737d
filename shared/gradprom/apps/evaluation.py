"""Every method on the same noisy images of the held-out block, and its figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import nibabel as nib
import numpy as np
import torch
from monai.metrics import compute_dice
from monai.networks import one_hot
from torch import Tensor, nn

from gradprom.apps import baselines
from gradprom.metrics import psnr, ssim
from gradprom.transforms.intensity import affine_map, robust_range
from gradprom.transforms.noise import add_noise
from gradprom.transforms.recognise import recognise

NOISY, GAUSSIAN, NLM, CLEAN = "Noisy", "Best Gaussian", "Non-local means", "Clean"
LABELS = "Labels"
FIGURES = ("psnr", "psnr_brain", "ssim", "ssim_brain", "dice")
TISSUES = ("background", "CSF", "grey matter", "white matter")


@dataclass(frozen=True)
class Noise:
    """Kind ("gaussian", "rician") and deviation of a noise, in units of the range [0, 1]."""

    kind: str
    sigma: float

    @property
    def name(self) -> str:
        """As it stands in tables, e.g. "Gaussian 0.05"."""
        return f"{self.kind.capitalize()} {self.sigma:.2f}"


NOISES = (Noise("gaussian", 0.05), Noise("gaussian", 0.10), Noise("rician", 0.10))


@dataclass(frozen=True)
class Case:
    """A clean image [1, H, W(, D)] in [0, 1] and its tissue labels (0 to 3), same shape."""

    name: str
    clean: Tensor
    tissue: Tensor

    @property
    def brain(self) -> Tensor:
        """True inside the brain."""
        return self.tissue > 0

    def degraded(self, noise: Noise, seed: int) -> Tensor:
        """The noisy image, not clipped; it depends on seed, noise and the case's name alone."""
        key = crc32(f"{seed} {noise.name} {self.name}".encode())
        return add_noise(self.clean, noise.sigma, noise.kind, torch.Generator().manual_seed(key))


@dataclass
class Comparison:
    """What every method makes of one noise: images and label maps, and figures per image."""

    noise: Noise
    images: dict[str, list[Tensor]] = field(default_factory=dict)
    labels: dict[str, list[Tensor]] = field(default_factory=dict)
    scores: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    settings: dict[str, object] = field(default_factory=dict)


def read_cases(datalist: Path, part: str, count: int) -> list[Case]:
    """At most `count` cases, evenly spread over one part of the data list."""
    items = json.loads(datalist.read_text(encoding="utf-8"))[part]
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [_read(datalist.parent, items[place]) for place in places]


def _read(root: Path, item: Mapping[str, str]) -> Case:
    files = (nib.load(root / item[key]) for key in ("image", "label"))
    image, label = (np.asarray(file.dataobj) for file in files)  # type: ignore[attr-defined]
    clean = torch.from_numpy(image.astype(np.float32) / 255)[None]
    tissue = torch.from_numpy(label.astype(np.int64))[None]
    return Case(Path(item["image"]).name.removesuffix(".nii.gz"), clean, tissue)


def tissue_dice(found: Tensor, tissue: Tensor) -> float:
    """Mean Dice of CSF, grey and white matter; a tissue absent from `tissue` is left out."""
    first, second = (one_hot(each[None].long(), len(TISSUES)) for each in (found, tissue))
    return float(compute_dice(first, second, include_background=False).nanmean())


def segment(recogniser: nn.Module, image: Tensor) -> Tensor:
    """Label map [1, H, W(, D)] of an image in any unit, normalised as the recogniser learnt it."""
    return recognise(recogniser, affine_map(image, *robust_range(image)))


def compare(
    cases: Sequence[Case],
    noise: Noise,
    enhancers: Mapping[str, Callable[[Tensor], Tensor]],
    recogniser: nn.Module,
    seed: int,
    strength: float,
) -> Comparison:
    """All methods on all cases under one noise.

    Args:
        enhancers: networks by the name they have in tables, [1, H, W(, D)] to the same.
        recogniser: frozen; it segments every image as it is.
        seed: of the noise.
        strength: of non-local means, see `baselines.non_local_means`.
    """
    found = Comparison(noise)
    widths = []
    for case in cases:
        noisy = case.degraded(noise, seed)
        oracle = baselines.best_gaussian(noisy, case.clean, case.brain)
        widths.append((oracle.width_whole, oracle.width_brain))
        answers = {NOISY: noisy, GAUSSIAN: oracle.whole}
        answers[NLM] = baselines.non_local_means(noisy, strength)
        answers |= {name: enhance(noisy) for name, enhance in enhancers.items()}
        for name, image in answers.items():
            inside = oracle.brain if name == GAUSSIAN else image
            _add(found, name, case, image, inside, segment(recogniser, image))
        _add(found, CLEAN, case, case.clean, case.clean, segment(recogniser, case.clean))
    found.labels[LABELS] = [case.tissue for case in cases]
    found.settings = {"gaussian_widths_whole_brain": widths, "non_local_means_strength": strength}
    return found


def _add(
    found: Comparison, name: str, case: Case, whole: Tensor, inside: Tensor, labels: Tensor
) -> None:
    """Keep an answer; `inside` is the image that is scored inside the brain."""
    figures = {
        "psnr": psnr(whole, case.clean),
        "psnr_brain": psnr(inside, case.clean, case.brain),
        "ssim": ssim(whole, case.clean),
        "ssim_brain": ssim(inside, case.clean, case.brain),
        "dice": tissue_dice(labels, case.tissue),
    }
    found.images.setdefault(name, []).append(whole)
    found.labels.setdefault(name, []).append(labels)
    scores = found.scores.setdefault(name, {figure: [] for figure in FIGURES})
    for figure, value in figures.items():
        scores[figure].append(value)


def tuned_strength(cases: Sequence[Case], noise: Noise, seed: int) -> float:
    """The strength of non-local means that does best on the validation block under this noise."""
    return baselines.tune_non_local_means(
        [case.degraded(noise, seed) for case in cases],
        [case.clean for case in cases],
        [case.brain for case in cases],
    )
