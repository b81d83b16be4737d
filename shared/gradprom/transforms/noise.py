"""Noise of a stated kind and level, the same in every run."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import PurePath
from typing import Any
from zlib import crc32

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

__all__ = ["FixedNoised", "add_noise"]


def add_noise(
    image: torch.Tensor,
    sigma: float,
    kind: str = "gaussian",
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    r"""Adds Gaussian or Rician noise of standard deviation ``sigma``, in the image's own units;
    nothing is clipped.

    .. math:: y = x + \sigma n_1 \qquad\text{or}\qquad y = \sqrt{(x + \sigma n_1)^2 + (\sigma
        n_2)^2}

    Rician noise is that of a magnitude MR image (Gudbjartsson and Patz, Magn. Reson. Med. 34:910,
    1995), where zero is air; ``n_1`` and ``n_2`` are independent standard normal. ``sigma = 0``
    gives the Gaussian case's identity and the Rician case's magnitude.

    Raises:
        ValueError: if ``sigma`` is negative or ``kind`` is neither ``gaussian`` nor ``rician``.
    """
    if sigma < 0:
        raise ValueError(f"`sigma` must be at least 0, got {sigma!r}.")
    if kind not in ("gaussian", "rician"):
        raise ValueError(f"`kind` must be 'gaussian' or 'rician', got {kind!r}.")
    normal = torch.randn((2, *image.shape), generator=generator).to(image)
    real = image + sigma * normal[0]
    return real if kind == "gaussian" else torch.hypot(real, sigma * normal[1])


class FixedNoised(MapTransform):
    """Adds noise that depends on the seed and on the case's file name alone, so that runs and
    methods compare.

    Args:
        keys: images ``[C, H, W(, D)]``; ``sigma`` is in their units.
        sigma: standard deviation, >= 0.
        kind: ``gaussian`` or ``rician``, see :func:`add_noise`.
        seed: any whole number.
    """

    def __init__(
        self, keys: KeysCollection, sigma: float, kind: str = "gaussian", seed: int = 0
    ) -> None:
        super().__init__(keys)
        self.sigma = sigma
        self.kind = kind
        self.seed = seed

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            name = PurePath(str(getattr(item[key], "meta", {}).get("filename_or_obj", ""))).name
            generator = torch.Generator().manual_seed(crc32(f"{self.seed} {name}".encode()))
            item[key] = add_noise(item[key], self.sigma, self.kind, generator)
        return item
