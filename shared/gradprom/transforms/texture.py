"""Texture that an atlas does not have, lent by photographs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from torch.nn.functional import interpolate

__all__ = ["RandTextured"]

PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "retina",
    "rocket",
)
"""Natural and microscopy images inside the scikit-image wheel (CC0 or no known restriction)."""


class RandTextured(RandomizableTransform, MapTransform):
    r"""Blends a photograph's texture into the body of a clean image, so that a denoiser learns to
    keep texture.

    .. math:: x' = (1 - a)\,x + a\,(0.5 + 0.2\,t) \text{ where } x > 0, \qquad a = s\,u^3

    ``t`` is a random crop of a photograph with zero mean and unit deviation, clipped
    to 2.5, enlarged or reduced;
    ``u`` is uniform in [0, 1] and ``s`` is ``strength``. In 3D, ``t`` is the sum of three
    photographs, each extruded along another axis, divided by the square root of three. Texture,
    not anatomy: an average of many heads has none, and a denoiser trained on it alone removes the
    fine structure of a single head.

    Args:
        keys: clean images ``[C, H, W(, D)]`` in [0, 1]; all keys of one item get the same texture.
        prob: probability that an item is changed.
        strength: largest share of texture, in [0, 1].
    """

    def __init__(self, keys: KeysCollection, prob: float = 0.5, strength: float = 1.0) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        if not 0 <= strength <= 1:
            raise ValueError(f"`strength` must lie in [0, 1], got {strength!r}.")
        self.strength = strength

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return item
        shape = item[self.keys[0]].shape[1:]
        share = self.strength * self.R.random() ** 3
        texture = 0.5 + 0.2 * self._texture(tuple(shape))
        for key in self.key_iterator(item):
            image = item[key]
            item[key] = torch.where(
                image > 0, (1 - share) * image + share * texture.to(image), image
            )
        return item

    def _texture(self, shape: tuple[int, ...]) -> torch.Tensor:
        if len(shape) == 2:
            return self._crop(shape)
        planes = [
            self._crop((*shape[:axis], *shape[axis + 1 :])).unsqueeze(axis) for axis in range(3)
        ]
        return sum(planes, torch.zeros(shape)) / 3**0.5

    def _crop(self, shape: tuple[int, ...]) -> torch.Tensor:
        photograph = _photograph(PHOTOGRAPHS[self.R.randint(len(PHOTOGRAPHS))])
        zoom = np.exp(self.R.uniform(np.log(0.6), np.log(2.5)))
        size = [
            min(round(s * zoom), limit) for s, limit in zip(shape, photograph.shape, strict=True)
        ]
        corner = [
            self.R.randint(limit - s + 1) for s, limit in zip(size, photograph.shape, strict=True)
        ]
        patch = photograph[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
        patch = interpolate(patch[None, None], size=shape, mode="bilinear", align_corners=False)[
            0, 0
        ]
        if self.R.random() < 0.5:
            patch = patch.flip(0)
        # A few bright pixels on black would stand twenty deviations out of [0, 1].
        return ((patch - patch.mean()) / (patch.std() + 1e-3)).clamp(-2.5, 2.5)


@cache
def _photograph(name: str) -> torch.Tensor:
    """A grey photograph ``[H, W]`` in [0, 1]."""
    from skimage import data  # an optional dependency, needed for training only

    pixels = np.asarray(getattr(data, name)(), dtype=np.float32) / 255
    return torch.from_numpy(pixels[..., :3].mean(-1) if pixels.ndim == 3 else pixels)
