"""Run a frozen recogniser on items, so that stock metrics can score what it sees."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ensure_tuple
from torch import Tensor, nn

from gradprom.errors import InputError
from gradprom.networks.blending import crop_like, pad_to_multiple

# A U-Net with up to four halvings then accepts any size, also one that it was not trained on.
MULTIPLE = 16


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every submodule has its own mode again."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def recognise(recogniser: nn.Module, image: Tensor, argmax: bool = True) -> Tensor:
    """The recogniser's answer on one image, as it is when frozen.

    Args:
        recogniser: maps [1, C, H, W(, D)] to logits [1, K, H, W(, D)]; its mode is restored. It
            sees the image with its far border repeated up to a multiple of 16.
        image: [C, H, W(, D)], on any device.
        argmax: give the label map [1, H, W(, D)] (int64) instead of the logits.

    Returns:
        The answer, without gradient, on the image's device; a MetaTensor if the image is one.
    """
    weight = next(recogniser.parameters(), image)
    batch = image.as_subclass(Tensor)[None].to(weight.device, weight.dtype)
    padded = pad_to_multiple(batch, MULTIPLE)
    with _evaluating(recogniser):
        answer = recogniser(padded).as_subclass(Tensor)
    answer = (crop_like(answer, batch) if answer.shape[2:] == padded.shape[2:] else answer)[0]
    answer = (answer.argmax(0, keepdim=True) if argmax else answer).to(image.device)
    return MetaTensor(answer, meta=image.meta) if isinstance(image, MetaTensor) else answer


class Recognised(MapTransform):
    """Stores a frozen recogniser's label map of each key's image under another key.

    With it, `monai.handlers.MeanDice` in a config scores the noisy, the enhanced and the clean
    image alike: `Recognised(["image", "pred", "label"], recogniser, ["seen_image", "seen_pred",
    "seen_label"])` as postprocessing, `from_engine(["seen_pred", "recognition"])` as its output.

    Args:
        keys: images, [C, H, W(, D)].
        recogniser: as for `recognise`.
        output_keys: one for each key.
        argmax: as for `recognise`.
        allow_missing_keys: leave out keys that an item does not have.

    Raises:
        InputError: `keys` and `output_keys` differ in number.
    """

    def __init__(
        self,
        keys: KeysCollection,
        recogniser: nn.Module,
        output_keys: KeysCollection,
        argmax: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.recogniser = recogniser
        self.output_keys = ensure_tuple(output_keys)
        self.argmax = argmax
        if len(self.output_keys) != len(self.keys):
            raise InputError(
                f"Recognised has {len(self.keys)} keys but {len(self.output_keys)} output_keys; "
                "give one for each."
            )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A copy of the item with the answers added."""
        item = dict(data)
        for key, output_key in self.key_iterator(item, self.output_keys):
            item[output_key] = recognise(self.recogniser, item[key], self.argmax)
        return item
