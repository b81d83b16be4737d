"""Gradient clipping for MONAI's stock trainer."""

from __future__ import annotations

import torch
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents

from gradprom.errors import InputError
from gradprom.handlers._trainer import ends_window

__all__ = ["GradientClipping"]


class GradientClipping:
    r"""Scales the gradient down to a largest norm, once for each optimizer step.

    .. math:: d \leftarrow d \cdot \min(1, c / |d|)

    One image that the network has never seen the like of can give a gradient thousands of times
    the usual; Adam then moves every weight for many steps in that one direction, and a run that
    was fine is lost. Scaling does not turn d, so GradProm's :math:`\langle g, d \rangle \ge 0`
    still holds. Enter it after ``GradPromHandler``: what is clipped is then what the optimizer
    gets.

    Args:
        max_norm: c, > 0, in units of the unscaled gradient (AMP's loss scale is taken out first).

    Raises:
        InputError: if ``max_norm`` is not a number above 0.
    """

    def __init__(self, max_norm: float) -> None:
        if not max_norm > 0:
            raise InputError(
                f"max_norm of GradientClipping is {max_norm!r}; give a number above 0."
            )
        self.max_norm = max_norm

    def attach(self, engine: SupervisedTrainer) -> None:
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: SupervisedTrainer) -> None:
        if not ends_window(engine):
            return
        if engine.scaler is not None and engine.scaler.is_enabled():
            engine.scaler.unscale_(engine.optimizer)
        params = [p for group in engine.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(params, self.max_norm)
