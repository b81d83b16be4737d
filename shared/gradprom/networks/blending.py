"""A small U-Net that denoises by blending filters, in 2D and 3D."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from monai.networks.layers.factories import Conv
from torch import nn
from torch.nn import functional as F

__all__ = ["BlendingUNet"]

WIDTHS = (0.3, 0.6, 0.9, 1.5)
"""Standard deviations in pixels of the filters at the start; the first hardly smooths."""


class ResidualBlock(nn.Module):
    """``x + conv(relu(conv(x)))``, of the shape of ``x``: ``[B, C, H, W(, D)]``."""

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        self.first = conv(channels, channels, kernel_size=3, padding=1)
        self.second = conv(channels, channels, kernel_size=3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(torch.relu(self.first(x)))


class BlendingUNet(nn.Module):
    r"""Denoiser that chooses, for each pixel, how much to smooth, and adds what smoothing took
    away.

    .. math:: \hat y = \sum_k w_k(x) \odot (f_k * x) + r(x), \qquad \sum_k w_k = 1, \; w_k > 0

    :math:`f_k` are a few learnable filters of 5 taps an axis, Gaussians of growing width at the
    start; a U-Net gives the weights :math:`w_k` (softmax) and a correction :math:`r`. It is the
    idea of kernel-predicting denoisers (Bako et al., ACM TOG 36:97, 2017; Mildenhall et al., arXiv
    1712.02327) with a bank in place of free kernels, and starts near the best Gaussian filter,
    where a network that predicts image or noise starts from nothing.

    The U-Net works on the half-resolution grid: each block of 2 x 2 (x 2) pixels is moved into
    channels and back (pixel shuffle, Shi et al., arXiv 1609.05158), which costs a denoiser little
    and saves most of its time (FFDNet, Zhang et al., arXiv 1710.04026). Each of the
    ``len(channels) - 1`` levels halves the grid and adds, not concatenates, the skip. There is no
    normalisation layer: a batch statistic changes with the noise level, and inference would not be
    what was trained.

    The input is padded by repeating its border to a multiple of ``2 ** len(channels)`` and the
    output cropped, so any size is accepted.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels; the output has as many. They share filters and weights.
        channels: width of each level, finest first.

    Shapes:
        input and output ``[B, in_channels, H, W(, D)]``; values are expected near [0, 1], and are
        not clipped.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int = 1, channels: Sequence[int] = (32, 64, 96)
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"`spatial_dims` must be 2 or 3, got {spatial_dims!r}.")
        conv, up = Conv[Conv.CONV, spatial_dims], Conv[Conv.CONVTRANS, spatial_dims]
        block = 2**spatial_dims
        steps = list(pairwise(channels))
        self.filters = len(WIDTHS)
        self.multiple = 2 ** len(channels)
        self.bank = conv(
            1, self.filters, kernel_size=5, padding=2, padding_mode="replicate", bias=False
        )
        with torch.no_grad():
            self.bank.weight.copy_(gaussians(spatial_dims))
        self.head = conv(in_channels * block, channels[0], kernel_size=3, padding=1)
        self.encoders = nn.ModuleList(ResidualBlock(spatial_dims, a) for a, _ in steps)
        self.downs = nn.ModuleList(conv(a, b, kernel_size=2, stride=2) for a, b in steps)
        self.bottom = ResidualBlock(spatial_dims, channels[-1])
        self.ups = nn.ModuleList(up(b, a, kernel_size=2, stride=2) for a, b in reversed(steps))
        self.decoders = nn.ModuleList(ResidualBlock(spatial_dims, a) for a, _ in reversed(steps))
        answers = (self.filters + in_channels) * block
        self.tail = conv(channels[0], answers, kernel_size=3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips: list[torch.Tensor] = []
        features = self.head(fold(pad_to_multiple(x, self.multiple)))
        # TorchScript knows no strict= for zip.
        for encode, down in zip(self.encoders, self.downs):  # noqa: B905
            features = encode(features)
            skips.append(features)
            features = down(features)
        features = self.bottom(features)
        for up, decode in zip(self.ups, self.decoders):  # noqa: B905
            features = decode(up(features) + skips.pop())
        answer = crop_like(unfold(self.tail(features)), x)
        weights = answer[:, : self.filters].softmax(1).unsqueeze(1)
        filtered = self.bank(x.flatten(0, 1).unsqueeze(1)).unflatten(0, x.shape[:2])
        return (weights * filtered).sum(2) + answer[:, self.filters :]


def gaussians(spatial_dims: int) -> torch.Tensor:
    """Gaussian kernels of :data:`WIDTHS`, each of sum 1, ``[len(WIDTHS), 1, 5, 5(, 5)]``."""
    taps = torch.arange(-2.0, 3.0)
    kernels = []
    for width in WIDTHS:
        line = torch.softmax(-(taps**2) / (2 * width**2), 0)
        kernel = line
        for _ in range(spatial_dims - 1):
            kernel = kernel[..., None] * line
        kernels.append(kernel)
    return torch.stack(kernels)[:, None]


def pad_to_multiple(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Repeats the far border of ``[B, C, H, W(, D)]`` until each spatial size is a multiple of
    ``multiple``."""
    padding: list[int] = []
    for size in x.shape[:1:-1]:
        padding += [0, -size % multiple]
    return F.pad(x, padding, mode="replicate")


def crop_like(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The near corner of ``x`` that has the spatial size of ``like``."""
    for axis in range(2, like.dim()):
        x = x.narrow(axis, 0, like.shape[axis])
    return x


def fold(x: torch.Tensor) -> torch.Tensor:
    """``[B, C, 2h, 2w(, 2d)]`` to ``[B, C * 2 ** dims, h, w(, d)]``."""
    if x.dim() == 4:
        return F.pixel_unshuffle(x, 2)
    b, c, h, w, d = x.shape
    x = x.reshape(b, c, h // 2, 2, w // 2, 2, d // 2, 2).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(b, c * 8, h // 2, w // 2, d // 2)


def unfold(x: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`fold`."""
    if x.dim() == 4:
        return F.pixel_shuffle(x, 2)
    b, c, h, w, d = x.shape
    x = x.reshape(b, c // 8, 2, 2, 2, h, w, d).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(b, c // 8, 2 * h, 2 * w, 2 * d)
