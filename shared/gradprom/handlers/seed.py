"""Randomness that depends on the seed and the epoch alone."""

from __future__ import annotations

from ignite.engine import Engine, Events
from monai.transforms import Randomizable
from monai.utils import set_determinism

__all__ = ["EpochSeed"]


class EpochSeed:
    """Re-seeds every source of randomness at the start of each epoch from (seed, epoch).

    A run that is resumed at epoch ``n`` then draws the same order, crops and noise as one that was
    never interrupted. Random transforms in the main process carry their own generators, so they
    are re-seeded too; worker processes are seeded from PyTorch's generator whenever the loader
    starts them.

    Args:
        seed: any whole number >= 0.
        transform: the (random) transform of the training dataset, ``@train#preprocessing``.
    """

    def __init__(self, seed: int, transform: object = None) -> None:
        self.seed = seed
        self.transform = transform

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        seed = (self.seed * 1_000_003 + engine.state.epoch) % 2**32
        set_determinism(seed)
        if isinstance(self.transform, Randomizable):
            self.transform.set_random_state(seed)
