"""From a clean image and its recognition label to what the trainer expects."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import Transform

__all__ = ["AsEnhancementPair"]


class AsEnhancementPair(Transform):
    """Renames an item's ``image`` (clean) and ``label`` (recognition) to the trainer's names.

    ``{"image": clean, "label": recognition}`` becomes
    ``{"image": clean, "label": clean, "recognition": recognition}``:
    MONAI's trainer compares its prediction from ``image`` with ``label``, so after this ``image``
    is there to be degraded. Without a ``label`` (a site that has none) there is no ``recognition``
    and the gate stays off.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if "label" in item:
            item["recognition"] = item["label"]
        item["label"] = item["image"]
        item["image"] = item["image"].clone()
        return item
