"""Batches in which only some items have a recognition target."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from gradprom.errors import InputError

__all__ = ["MarkMissingd"]


class MarkMissingd(MapTransform):
    """Gives items that lack a key a filler, so that a batch can be formed, and says which they are.

    ``<key>_present`` becomes True or False. ``gradprom.handlers.GradPromHandler`` leaves items
    marked False out of the auxiliary loss. Enter it after loading and before spatial transforms.

    Args:
        keys: keys that may be missing, or None, in an item.
        like: key of the image, [C, H, W(, D)], whose size, type and geometry the filler takes.
        fill: value of the filler, one channel.

    Raises:
        ValueError: an item lacks ``like`` too.
    """

    def __init__(self, keys: KeysCollection, like: str = "image", fill: float = 0) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.like = like
        self.fill = fill

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with every key and its mark."""
        item = dict(data)
        for key in self.keys:
            present = item.get(key) is not None
            item[f"{key}_present"] = present
            if not present:
                item[key] = self._filler(item)
        return item

    def _filler(self, item: Mapping[Hashable, Any]) -> Tensor:
        if self.like not in item:
            raise InputError(f"MarkMissingd finds no {self.like!r} in the item; load it first.")
        image = torch.as_tensor(item[self.like])
        filler = torch.full((1, *image.shape[1:]), self.fill, dtype=image.dtype)
        if isinstance(image, MetaTensor):
            return MetaTensor(filler, meta=image.meta)
        return filler
