"""What the gate publishes on ``engine.state``."""

from __future__ import annotations

import torch
from ignite.engine import State
from torch import Tensor

from gradprom.gradients import Statistics

__all__ = ["EPOCH_ATTRIBUTES", "STEP_ATTRIBUTES", "EpochSums"]

STEP_ATTRIBUTES = ("gradprom_cosine", "gradprom_gate", "gradprom_ratio")
EPOCH_ATTRIBUTES = (
    "gradprom_mean_cosine",
    "gradprom_on_rate",
    "gradprom_mean_ratio",
    "gradprom_skipped",
    "gradprom_auxiliary_loss",
)


class EpochSums:
    """Sums over an epoch that stay on the device and are read once, at its end."""

    def __init__(self, device: torch.device) -> None:
        # Apple's MPS has no float64.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        # Rows: cosine, gate, ratio, decided steps, skipped steps, loss, counted losses.
        self._sums = torch.zeros(7, dtype=dtype, device=device)
        self._zero = torch.zeros((), dtype=dtype, device=device)
        self._steps = 0
        self._pending = False

    def start_epoch(self) -> None:
        """Forget the sums."""
        self._sums.zero_()
        self._steps, self._pending = 0, True

    def add_loss(self, loss: Tensor) -> None:
        """Count the auxiliary loss of one micro-batch; one that is not finite is left out."""
        finite = loss.isfinite()
        row = torch.stack([torch.where(finite, loss, 0.0), finite.to(loss.dtype)])
        self._sums[5:] += row.to(self._sums.dtype)

    def add_step(
        self, state: State, statistics: Statistics | None, recogniser_finite: Tensor | None
    ) -> None:
        """Publish the step's values and count them.

        Args:
            state: ``engine.state``.
            statistics: of the gate; None while it is not in use.
            recogniser_finite: bool, None when no recogniser was stepped.
        """
        if statistics is not None:
            self._steps += 1
            values = [statistics.cosine, statistics.gate, statistics.ratio, statistics.decided]
            self._sums[:4] += torch.stack([value.to(self._sums.dtype) for value in values])
        for name, value in zip(STEP_ATTRIBUTES, statistics or (self._zero,) * 3, strict=False):
            setattr(state, name, value)
        flags = [None if statistics is None else statistics.finite, recogniser_finite]
        good = [flag for flag in flags if flag is not None]
        if good:
            skipped = ~torch.stack(good).all()
            self._sums[4] += skipped

    def publish(self, state: State) -> None:
        """Read the device once and set the epoch's values, unless this epoch has them already."""
        if not self._pending:
            return
        self._pending = False
        cosine, gate, ratio, decided, skipped, loss, losses = self._sums.tolist()
        means = (cosine / max(decided, 1), gate / max(self._steps, 1), ratio / max(decided, 1))
        values = (*means, skipped, loss / max(losses, 1))
        for name, value in zip(EPOCH_ATTRIBUTES, values, strict=True):
            setattr(state, name, value)
