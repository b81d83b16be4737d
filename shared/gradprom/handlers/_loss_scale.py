"""Loss scale of the auxiliary branch, apart from the trainer's."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["LossScale"]


class LossScale:
    """Dynamic loss scale that never leaves the device.

    In half precision small gradients vanish unless the loss is multiplied by a scale. The auxiliary
    branch has its own, so that an overflow in it neither shuts the gate for good nor makes the
    trainer's scaler skip a good step. The scale is halved when the auxiliary gradient is not finite
    and doubled after ``GROWTH_INTERVAL`` finite steps in a row, as in ``torch.amp.GradScaler``.
    All scales are powers of two: scaling and unscaling change no digit.
    """

    START = 2.0**16
    GROWTH_INTERVAL = 2000
    SMALLEST, LARGEST = 2.0**-16, 2.0**24

    def __init__(self) -> None:
        self._enabled = False
        self._value = self.START
        self._good_steps = 0
        self._scale: Tensor | None = None
        self._good: Tensor | None = None

    def prepare(self, device: torch.device, enabled: bool) -> None:
        """Make the tensors once; a scale that is not enabled stays 1."""
        self._enabled = enabled
        if self._scale is None or self._scale.device != device:
            self._scale = torch.full((), self._value if enabled else 1.0, device=device)
            self._good = torch.full((), self._good_steps, dtype=torch.int32, device=device)

    @property
    def value(self) -> Tensor:
        """The scale, float32 without dimension, on the device."""
        if self._scale is None:
            raise RuntimeError("LossScale.prepare must come before LossScale.value.")
        return self._scale

    def update(self, finite: Tensor) -> None:
        """Adapt the scale after a step.

        Args:
            finite: bool without dimension, every auxiliary gradient of the step was finite.
        """
        if not self._enabled or self._scale is None or self._good is None:
            return
        good = torch.where(finite, self._good + 1, 0)
        grow = good >= self.GROWTH_INTERVAL
        scale = torch.where(finite, self._scale, self._scale * 0.5)
        scale = torch.where(grow, scale * 2.0, scale)
        self._scale = scale.clamp(self.SMALLEST, self.LARGEST)
        self._good = torch.where(grow, 0, good).to(torch.int32)

    def state_dict(self) -> dict[str, float | int]:
        """Return scale and number of good steps as Python numbers; reads the device."""
        if self._enabled and self._scale is not None and self._good is not None:
            return {"scale": float(self._scale), "good_steps": int(self._good)}
        return {"scale": self._value, "good_steps": self._good_steps}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Continue from a state; takes effect at the next ``prepare``."""
        self._value, self._good_steps = float(state["scale"]), int(state["good_steps"])
        self._scale = self._good = None
