"""Clipping acts once a step, on the unscaled gradient, behind the gate."""

from __future__ import annotations

import pytest
import torch
from monai.engines.utils import IterationEvents

from gradprom.errors import InputError
from gradprom.handlers import GradientClipping
from tests.unit.handlers.rig import At, cpu_scaler, make_batches, make_network, make_trainer


def norms(max_norm: float, *handlers: object, **kwargs: object) -> list[float]:
    """Norm of the gradient that the optimizer gets, for each of six micro-batches."""
    network = make_network()
    seen: list[float] = []

    def look(_: object) -> None:
        grads = [p.grad for p in network.parameters() if p.grad is not None]
        seen.append(torch.cat([g.flatten() for g in grads]).norm().item())

    clip = GradientClipping(max_norm)
    chain = [*handlers, clip, At(IterationEvents.BACKWARD_COMPLETED, look)]
    make_trainer(network, make_batches(), chain, **kwargs).run()
    return seen


def test_long_gradients_get_the_largest_norm_and_short_ones_stay() -> None:
    free = norms(1e9)
    limit = sorted(free)[0] / 2
    assert norms(limit) == pytest.approx([limit] * len(free), rel=1e-4)
    assert norms(1e9) == free


def test_loss_scale_is_taken_out_first() -> None:
    scaled = norms(1e9, cpu_scaler(init_scale=1024.0))
    assert scaled[0] == pytest.approx(norms(1e9)[0], rel=1e-5)


def test_accumulated_gradients_are_clipped_once_at_the_step() -> None:
    free, clipped = norms(1e9, accumulation_steps=2), norms(1e-3, accumulation_steps=2)
    assert clipped[0] == pytest.approx(free[0])  # no step yet
    assert clipped[1] == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
def test_a_limit_that_is_no_limit_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="max_norm of GradientClipping"):
        GradientClipping(value)
