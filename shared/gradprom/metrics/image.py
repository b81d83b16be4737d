"""Peak signal-to-noise ratio and structural similarity, of the whole image or inside the body."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor

from gradprom.errors import InputError

SSIM_SIGMA = 1.5
SSIM_RADIUS = 5  # window of 11: what Wang et al. used and scikit-image has with gaussian_weights


def _clipped(pred: Tensor, target: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    """Both images as plain float64 tensors within [0, data_range]."""
    if pred.shape != target.shape:
        raise InputError(
            f"pred has shape {tuple(pred.shape)} but target has {tuple(target.shape)}; "
            "give two [C, H, W(, D)] tensors of one shape."
        )
    if not data_range > 0:
        raise InputError(f"data_range is {data_range}; give a positive number.")
    sides = (side.as_subclass(Tensor).detach().double() for side in (pred, target))
    first, second = (side.clamp(0, data_range) for side in sides)
    return first, second.to(first.device)


def _mean(values: Tensor, mask: Tensor | None) -> float:
    """Mean of `values` over the true voxels of `mask`; nan if there is none."""
    if mask is None:
        return float(values.mean())
    mask = mask.as_subclass(Tensor).to(values.device)
    if mask.dtype is not torch.bool or mask.shape[1:] != values.shape[1:]:
        raise InputError(
            f"mask is {mask.dtype} of shape {tuple(mask.shape)}; "
            f"give a boolean one of shape (1, {', '.join(map(str, values.shape[1:]))})."
        )
    return float(values[mask.expand_as(values)].mean())


def psnr(
    pred: Tensor, target: Tensor, mask: Tensor | None = None, data_range: float = 1.0
) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(data_range² / mean squared error).

    Both sides are clipped to [0, data_range] first, so that black made negative costs nothing.

    Args:
        pred, target: [C, H, W(, D)] of one shape, any real dtype, any device.
        mask: boolean [1 or C, H, W(, D)]; only its true voxels count (inside the body).
        data_range: largest possible value, > 0; the smallest is 0.

    Returns:
        The figure in dB: inf for identical images, nan for a mask without a true voxel or for an
        image with nan.

    Raises:
        InputError: shapes differ, `mask` is not boolean, or `data_range` is not positive.
    """
    pred, target = _clipped(pred, target, data_range)
    error = _mean((pred - target).square(), mask)
    if error == 0:
        return float("inf")
    return float(10 * torch.log10(torch.tensor(data_range**2 / error, dtype=torch.float64)))


def _window() -> list[float]:
    """Weights of the Gaussian window, sum 1."""
    steps = torch.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (steps / SSIM_SIGMA).square())
    return [float(weight) for weight in weights / weights.sum()]


def _smooth(image: Tensor) -> Tensor:
    """Gaussian-weighted local mean over every axis but the first, borders mirrored.

    The mirror (d c b a | a b c d | d c b a) is repeated as often as an axis shorter than the
    window needs, so no image is too small.
    """
    window = _window()
    for axis in range(1, image.ndim):
        size = image.shape[axis]
        place = torch.arange(-SSIM_RADIUS, size + SSIM_RADIUS, device=image.device) % (2 * size)
        padded = image.index_select(axis, torch.minimum(place, 2 * size - 1 - place))
        total = torch.zeros_like(image)
        for k, weight in enumerate(window):  # no unfolded copy: eleven times a volume is too much
            total.add_(padded.narrow(axis, k, size), alpha=weight)
        image = total
    return image


def ssim(
    pred: Tensor, target: Tensor, mask: Tensor | None = None, data_range: float = 1.0
) -> float:
    """Structural similarity (Wang et al. 2004, equation 13), mean over channels and voxels.

    SSIM = (2 m_x m_y + c1)(2 s_xy + c2) / ((m_x² + m_y² + c1)(s_x² + s_y² + c2)) with c1 =
    (0.01 data_range)², c2 = (0.03 data_range)² and local moments under a Gaussian window (sigma
    1.5, 11 wide, borders mirrored; 3D windows for volumes). Each channel is taken by itself. The
    map equals scikit-image's (gaussian_weights, population covariance); unlike there, border
    voxels count in the mean.

    Args, returned specials and errors: as for `psnr`; identical images give 1.
    """
    x, y = _clipped(pred, target, data_range)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    m_x, m_y = _smooth(x), _smooth(y)
    s_x, s_y = _smooth(x * x) - m_x**2, _smooth(y * y) - m_y**2
    s_xy = _smooth(x * y) - m_x * m_y
    above = (2 * m_x * m_y + c1) * (2 * s_xy + c2)
    below = (m_x**2 + m_y**2 + c1) * (s_x + s_y + c2)
    return _mean(above / below, mask)


class _ImageMetric(Metric):
    """Mean of a figure over images, summed over all processes under DDP."""

    _state_dict_all_req_keys = ("_total", "_count")

    def __init__(
        self,
        figure: Callable[..., float],
        output_transform: Callable[[Any], Any],
        data_range: float,
    ) -> None:
        self._figure = figure
        self._data_range = data_range
        # Lists of images are ours to walk through; Ignite would unroll pairs only.
        super().__init__(output_transform, skip_unrolling=True)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all images."""
        self._total = torch.zeros((), dtype=torch.float64)
        self._count = 0

    @reinit__is_reduced
    def update(self, output: Sequence[Sequence[Tensor]]) -> None:
        """Add the images of `(pred, label)` or `(pred, label, body)`, lists of [C, H, W(, D)]."""
        if len(output) not in (2, 3):
            raise InputError(
                f"output_transform gave {len(output)} parts; give (pred, label) or "
                "(pred, label, body)."
            )
        for pred, label, *body in zip(*output, strict=True):
            mask = body[0].as_subclass(Tensor) > 0 if body else None
            if mask is None or bool(mask.any()):
                self._total += self._figure(pred, label, mask, self._data_range)
                self._count += 1

    @sync_all_reduce("_total", "_count")
    def compute(self) -> float:
        """Mean over images; an image without a body voxel is left out."""
        if self._count == 0:
            raise NotComputableError("no image with a body was given to the metric.")
        return float(self._total / self._count)


class PSNR(_ImageMetric):
    """Ignite metric: mean of `psnr` over images, in dB.

    Args:
        output_transform: turns `engine.state.output` into lists (pred, label) or (pred, label,
            body) of channel-first tensors, e.g. `monai.handlers.from_engine(["pred", "label"])`;
            `body` is a mask or a label map, its voxels > 0 count.
        data_range: as for `psnr`.
    """

    def __init__(
        self, output_transform: Callable[[Any], Any] = lambda x: x, data_range: float = 1.0
    ) -> None:
        super().__init__(psnr, output_transform, data_range)


class SSIM(_ImageMetric):
    """Ignite metric: mean of `ssim` over images; arguments as for `PSNR`."""

    def __init__(
        self, output_transform: Callable[[Any], Any] = lambda x: x, data_range: float = 1.0
    ) -> None:
        super().__init__(ssim, output_transform, data_range)
