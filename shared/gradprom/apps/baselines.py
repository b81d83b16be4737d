"""Classical denoisers to compare with: Gaussian filter of oracle width, non-local means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from skimage.filters import gaussian
from skimage.restoration import denoise_nl_means
from torch import Tensor

from gradprom.metrics import psnr

WIDTHS = tuple(round(0.2 + 0.1 * step, 1) for step in range(16))
"""Standard deviations in pixels among which the Gaussian filter's is chosen, 0.2 to 1.7."""

STRENGTHS = (0.4, 0.6, 0.8, 1.0, 1.2)
"""Filter strengths h of non-local means, in estimated noise deviations."""

PATCH_SIZE = 5
PATCH_DISTANCE = {2: 6, 3: 2}
"""Search radius in pixels; small in 3D, where the time grows with its cube."""


@dataclass(frozen=True)
class Oracle:
    """The Gaussian filter's best answers for one image, and the widths that gave them."""

    whole: Tensor
    brain: Tensor
    width_whole: float
    width_brain: float


def best_gaussian(noisy: Tensor, clean: Tensor, brain: Tensor) -> Oracle:
    """The Gaussian filter whose width is chosen for each image by looking at the truth.

    No one can filter better with a Gaussian: the width of the highest PSNR of the whole image and,
    separately, that of the highest PSNR inside the brain, among `WIDTHS`.

    Args:
        noisy, clean: [1, H, W(, D)] in [0, 1].
        brain: boolean, same shape.
    """
    filtered = [_gaussian(noisy, width) for width in WIDTHS]
    whole = int(np.argmax([psnr(image, clean) for image in filtered]))
    inside = int(np.argmax([psnr(image, clean, brain) for image in filtered]))
    return Oracle(filtered[whole], filtered[inside], WIDTHS[whole], WIDTHS[inside])


def _gaussian(image: Tensor, width: float) -> Tensor:
    return torch.from_numpy(gaussian(image[0].numpy(), width))[None]


def estimate_sigma(image: np.ndarray) -> float:
    """Noise deviation from the image alone: median |Haar detail| / 0.6745 (Donoho, Johnstone 1994).

    The detail is the difference of neighbours along every axis, which hardly sees anatomy. Zeros
    are left out, so that a background without noise does not count. 0 for a constant image.
    """
    for axis in range(image.ndim):
        pairs = image.shape[axis] // 2
        even, odd = (image.take(range(start, 2 * pairs, 2), axis) for start in (0, 1))
        image = (even - odd) / np.sqrt(2)
    detail = np.abs(image[image != 0])
    return float(np.median(detail)) / 0.6745 if detail.size else 0.0


def non_local_means(noisy: Tensor, strength: float) -> Tensor:
    """Non-local means (Buades et al. 2005; scikit-image's fast variant) with estimated noise.

    Args:
        noisy: [1, H, W(, D)] in [0, 1].
        strength: h in units of the estimated deviation, > 0.
    """
    image = noisy[0].numpy().astype(np.float32)
    sigma = estimate_sigma(image)
    if sigma == 0:
        return noisy.clone()
    answer = denoise_nl_means(
        image,
        patch_size=PATCH_SIZE,
        patch_distance=PATCH_DISTANCE[image.ndim],
        h=strength * sigma,
        sigma=sigma,
        fast_mode=True,
    )
    return torch.from_numpy(answer)[None]


def tune_non_local_means(
    noisy: Sequence[Tensor], clean: Sequence[Tensor], brain: Sequence[Tensor]
) -> float:
    """The strength among `STRENGTHS` with the highest mean of whole-image and in-brain PSNR.

    Args: images of the validation block as for `best_gaussian`, with one kind and level of noise.
    """

    def quality(strength: float) -> float:
        triples = zip(noisy, clean, brain, strict=True)
        answers = [(non_local_means(x, strength), y, mask) for x, y, mask in triples]
        return float(np.mean([psnr(x, y) + psnr(x, y, mask) for x, y, mask in answers]))

    return max(STRENGTHS, key=quality)
