"""The gate of GradProm as pure functions on lists of gradients.

Symbols: g is the gradient of the primary loss (enhancement), h that of the auxiliary loss
(recognition), both with respect to the enhancement network; lambda (``weight``) >= 0; and

    d = g + lambda * w(c) * h,   c = <g, h> / (|g| |h|),   w in [0, 1].

Rule ``gradprom`` (Zhang and Cheng, arXiv 2501.01114) has w = 1 if c > threshold, else 0; with
lambda = 1 it is the unweighted rule of Du et al. (arXiv 1812.02224), whose weighted form,
w = max(0, c), is ``weighted``. For both, <g, d> >= |g|^2: -d never loses descent on the primary
loss. ``joint`` (always 1), ``off`` (always 0), ``inverse`` (1 if c <= threshold) and ``random``
(1 with probability ``on_rate``) are controls without that property.

Special cases: a missing gradient (None) counts as zeros; c = 0 where g or h is zero; w = 0 if all
of h is zero, or any number in g, h or the sum is not finite. Nothing here waits for the device: no
value is read on the host and no host value is copied to the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "GRANULARITIES",
    "RULES",
    "Gate",
    "Products",
    "Statistics",
    "check_weight",
    "cosine",
    "flatten",
    "inner_products",
    "promote",
    "promote_",
]

RULES = ("gradprom", "weighted", "joint", "off", "inverse", "random")
GRANULARITIES = ("model", "tensor")

_CHUNK = 1 << 22  # elements turned to double at once: bounds the transient memory to 64 MB
_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Gate:
    """Settings of the gate, checked once.

    Args:
        rule: one of ``RULES``.
        granularity: ``model``, one decision over all parameters, or ``tensor``, one for each.
        threshold: cosine at or below which the gate is shut, >= 0.
        on_rate: probability in [0, 1] that rule ``random`` opens; None for every other rule.

    Raises:
        ValueError: an argument is outside its range; the message names it and its value.
    """

    rule: str = "gradprom"
    granularity: str = "model"
    threshold: float = 0.0
    on_rate: float | None = None

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, got {self.rule!r}.")
        if self.granularity not in GRANULARITIES:
            raise ValueError(f"granularity must be model or tensor, got {self.granularity!r}.")
        if not _is_non_negative(self.threshold):
            raise ValueError(f"threshold must be a number >= 0, got {self.threshold!r}.")
        if self.rule == "random" and (self.on_rate is None or not 0 <= self.on_rate <= 1):
            raise ValueError(f"on_rate must be in [0, 1] for rule random, got {self.on_rate!r}.")
        if self.rule != "random" and self.on_rate is not None:
            raise ValueError(f"on_rate is for rule random only, got {self.on_rate!r}.")

    def weights(self, cosines: Tensor, draw: Tensor | None = None) -> Tensor:
        """Return w for each decision.

        Args:
            cosines: c of each decision, [blocks].
            draw: uniform numbers in [0, 1), [blocks]; needed by rule ``random`` alone, given from
                outside so that this function stays pure.

        Returns:
            w in [0, 1], [blocks], type of ``cosines``.

        Raises:
            ValueError: rule ``random`` without ``draw``.
        """
        if self.rule == "random":
            if draw is None or self.on_rate is None:
                raise ValueError("draw must hold uniform numbers for rule random, got None.")
            return (draw < self.on_rate).to(cosines.dtype)
        opened = (cosines > self.threshold).to(cosines.dtype)
        if self.rule == "gradprom":
            return opened
        if self.rule == "weighted":
            return opened * cosines
        if self.rule == "inverse":
            return 1 - opened
        return torch.full_like(cosines, float(self.rule == "joint"))


class Products(NamedTuple):
    """Inner products of each block, [blocks], of g in units of ``g_unit`` and h of ``h_unit``."""

    gh: Tensor
    gg: Tensor
    hh: Tensor
    g_unit: Tensor | float = 1.0
    h_unit: Tensor | float = 1.0

    def total(self) -> Products:
        """Return the products over all blocks, [1]."""
        gh, gg, hh = (products.sum(0, keepdim=True) for products in (self.gh, self.gg, self.hh))
        return Products(gh, gg, hh, self.g_unit, self.h_unit)

    def norms(self) -> tuple[Tensor, Tensor]:
        """Return |g| and |h| of each block, [blocks]; infinite or nan if any number in it is."""
        return self.gg.sqrt() * self.g_unit, self.hh.sqrt() * self.h_unit


class Statistics(NamedTuple):
    """What one decision was based on; tensors without dimension, on the gradients' device."""

    cosine: Tensor  # over the whole model, [-1, 1]; 0 where undefined
    gate: Tensor  # fraction of the decisions that are open, [0, 1]
    ratio: Tensor  # |h| / |g| over the whole model, lambda not included; 0 where undefined
    finite: Tensor  # bool: every number in g, h and their sum is finite
    auxiliary_finite: Tensor  # bool: every number in h is finite
    decided: Tensor  # bool: finite, and h is not zero


def check_weight(weight: float) -> float:
    """Return lambda.

    Raises:
        ValueError: it is negative or not finite.
    """
    if not _is_non_negative(weight):
        raise ValueError(f"weight (lambda) must be a number >= 0, got {weight!r}.")
    return float(weight)


def _is_non_negative(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value >= 0


def flatten(gradients: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    """Join gradients in one float32 buffer, zeros where there is none.

    Args:
        gradients: any shapes.
        like: the parameters in the same order; they give the size of a missing gradient.

    Returns:
        A copy, [sum of numbers of elements].
    """
    parts = [
        p.new_zeros(p.numel(), dtype=torch.float32, requires_grad=False)
        if gradient is None
        else gradient.detach().reshape(-1).float()
        for gradient, p in zip(gradients, like, strict=True)
    ]
    return torch.cat(parts) if len(parts) != 1 else parts[0].clone()


def inner_products(g: Tensor, h: Tensor, sizes: list[int]) -> Products:
    """Return <g, h>, <g, g> and <h, h> of consecutive blocks of two flat buffers.

    Sums are in float64, where no square of a float32 leaves the range; Apple's MPS has no float64:
    there both buffers are divided by their largest magnitude first and the sums are in float32.

    Args:
        g: primary gradient, [elements], float32.
        h: auxiliary gradient, [elements], float32.
        sizes: elements of each block.
    """
    dtype = torch.float32 if g.device.type == "mps" else torch.float64
    return _products(g, h, sizes, dtype)


def _products(g: Tensor, h: Tensor, sizes: list[int], dtype: torch.dtype) -> Products:
    wide = dtype == torch.float64
    g_unit, h_unit = (1.0, 1.0) if wide else (_largest(g), _largest(h))
    g, h = (g, h) if wide else (g / g_unit, h / h_unit)
    blocks = zip(g.split(sizes), h.split(sizes), strict=True)
    gh, gg, hh = torch.stack([_block_products(a, b, dtype) for a, b in blocks]).unbind(1)
    return Products(gh, gg, hh, g_unit, h_unit)


def _largest(flat: Tensor) -> Tensor:
    """Return the largest magnitude, 1 for zeros, so that one can divide by it."""
    largest = flat.abs().amax()
    return torch.where(largest == 0, 1.0, largest)


def _block_products(g: Tensor, h: Tensor, dtype: torch.dtype) -> Tensor:
    """Return [<g, h>, <g, g>, <h, h>] of one block, [3]."""
    total = torch.zeros(3, dtype=dtype, device=g.device)
    for g_part, h_part in zip(g.split(_CHUNK), h.split(_CHUNK), strict=True):
        a, b = g_part.to(dtype), h_part.to(dtype)
        total += torch.stack([torch.dot(a, b), torch.dot(a, a), torch.dot(b, b)])
    return total


def cosine(products: Products) -> Tensor:
    """Return c of each block, [blocks], in [-1, 1]; 0 where a norm is zero or not finite."""
    norms = products.gg.sqrt() * products.hh.sqrt()
    c = (products.gh / norms).clamp(-1, 1)
    return torch.where((norms > 0) & norms.isfinite(), c, 0.0)


def promote(
    primary: Sequence[Tensor | None],
    auxiliary: Sequence[Tensor | None],
    gate: Gate | None = None,
    weight: float = 1.0,
    draw: Tensor | None = None,
) -> tuple[list[Tensor | None], Statistics]:
    """Return d = g + lambda * w(c) * h and the statistics of the decision.

    Args:
        primary: g, one tensor for each parameter; None counts as zeros.
        auxiliary: h, in the same order.
        gate: the rule; default ``Gate()``, which is GradProm over the whole model.
        weight: lambda >= 0.
        draw: uniform numbers for rule ``random``, [1] or [parameters].

    Returns:
        d, new tensors of the shapes and types of g, None where both g and h are; statistics.

    Raises:
        ValueError: ``weight`` is negative, or there is no gradient at all.
    """
    pairs = list(zip(primary, auxiliary, strict=True))
    known = [(g, h) for g, h in pairs if g is not None or h is not None]
    if not known:
        raise ValueError("primary and auxiliary must hold at least one gradient, got none.")
    d = [_copy_or_zeros(g, h) for g, h in known]
    flat_h = flatten([h for _, h in known], d)
    statistics = promote_(d, flat_h, gate or Gate(), weight, draw=draw)
    remaining = iter(d)
    return [None if g is None and h is None else next(remaining) for g, h in pairs], statistics


def _copy_or_zeros(g: Tensor | None, h: Tensor | None) -> Tensor:
    if g is not None:
        return g.detach().clone()
    assert h is not None
    return torch.zeros_like(h)


def promote_(
    primary: Sequence[Tensor],
    auxiliary: Tensor,
    gate: Gate,
    weight: float,
    unit: Tensor | float = 1.0,
    draw: Tensor | None = None,
) -> Statistics:
    """Turn g into d in place; like ``promote``, for gradients that others hold views of.

    Args:
        primary: g, one tensor for each parameter; becomes d.
        auxiliary: h, flat float32 as ``flatten`` makes it; **its contents are destroyed**.
        gate: the rule.
        weight: lambda >= 0.
        unit: positive factor by which h is to be multiplied first, a tensor without dimension on
            the same device when it depends on a loss scale.
        draw: uniform numbers for rule ``random``, [1] or [parameters].

    Raises:
        ValueError: ``weight`` is negative.
    """
    check_weight(weight)
    sizes = [g.numel() for g in primary]
    blocks = sizes if gate.granularity == "tensor" else [auxiliary.numel()]
    products = inner_products(flatten(primary, primary), auxiliary, blocks)
    statistics, weights = _decide(products, gate, weight, unit, draw)
    # A shut gate writes zeros instead of multiplying by zero: 0 * nan is nan.
    for part, w in zip(auxiliary.split(blocks), weights.unbind(), strict=True):
        part.mul_(weight * w * unit).masked_fill_(w == 0, 0.0)
    steps = [h.view_as(g) for h, g in zip(auxiliary.split(sizes), primary, strict=True)]
    # In place: with gradient_as_bucket_view the gradients are views of DDP's buckets.
    torch._foreach_add_(list(primary), steps)
    return statistics


def _decide(
    products: Products, gate: Gate, weight: float, unit: Tensor | float, draw: Tensor | None
) -> tuple[Statistics, Tensor]:
    """Return the statistics and w of each block, [blocks]."""
    whole = products.total()
    g_norm, h_norm = whole.norms()
    auxiliary_finite = h_norm.isfinite()
    # |g| + lambda |h| bounds every element of d, so a finite sum means a finite d.
    finite = auxiliary_finite & (g_norm + weight * unit * h_norm <= _LARGEST)
    decided = finite & (h_norm > 0)
    weights = gate.weights(cosine(products), draw) * decided
    statistics = Statistics(
        cosine=torch.where(finite, cosine(whole), 0.0),
        gate=(weights > 0).to(weights.dtype).mean(0, keepdim=True),
        ratio=torch.where(finite & (g_norm > 0), unit * h_norm / g_norm, 0.0),
        finite=finite,
        auxiliary_finite=auxiliary_finite,
        decided=decided,
    )
    return Statistics(*(value.squeeze(0) for value in statistics)), weights
