"""Overflow in either branch, with the CPU's scaler in place of CUDA's."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import Tensor

from gradprom.handlers import GradPromHandler
from gradprom.handlers._loss_scale import LossScale
from tests.properties import largest_difference
from tests.unit.handlers.rig import (
    At,
    Record,
    Reference,
    cpu_scaler,
    cross_entropy,
    make_batches,
    make_handler,
    make_network,
    make_recogniser,
    make_trainer,
    mse,
)

BAD = 2  # number of the step that overflows, from 0
TOO_LARGE = 1e36  # finite in float32, infinite once multiplied by the loss scale of 65536


class OverflowAt:
    """A loss whose gradient is multiplied by a factor in one call."""

    def __init__(self, loss: object, call: int, factor: float) -> None:
        self.loss, self.call, self.factor, self.calls = loss, call, factor, 0

    def __call__(self, answer: Tensor, target: Tensor) -> Tensor:
        value = self.loss(answer, target)
        self.calls += 1
        return value * self.factor if self.calls == self.call + 1 else value


def scale_of(handler: GradPromHandler) -> float:
    return float(handler.state_dict()["loss_scale"]["scale"])


def test_auxiliary_overflow_costs_one_decision_and_nothing_else() -> None:
    batches, network, record = make_batches(), make_network(), Record()
    loss = OverflowAt(cross_entropy, BAD, TOO_LARGE)
    handler = make_handler(make_recogniser(), rule="joint", auxiliary_loss=loss)
    trainer = make_trainer(network, batches, [cpu_scaler(), handler, record])
    trainer.run()

    reference = Reference(make_network(), make_recogniser(), rule="joint")
    for i, batch in enumerate(batches):
        reference.rule = "off" if i == BAD else "joint"
        reference.step([batch])
    assert largest_difference(network.state_dict(), reference.network.state_dict()) == 0.0
    assert record.gates == [float(i != BAD) for i in range(len(batches))]
    assert trainer.state.gradprom_skipped == 1
    assert trainer.scaler.get_scale() == LossScale.START  # the trainer's scale never heard of it
    assert scale_of(handler) == LossScale.START / 2


def test_a_scale_that_starts_too_high_comes_down_by_itself() -> None:
    # Without an own scale the gate would stay shut for ever.
    batches, record = make_batches(count=12), Record()

    def large(answer: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(answer, target) * 1e37

    handler = make_handler(make_recogniser(), weight=1e-38, rule="joint", auxiliary_loss=large)
    make_trainer(make_network(), batches, [cpu_scaler(), handler, record]).run()
    opened = record.gates.index(1.0)
    assert 1 <= opened < 12 and record.gates[opened:] == [1.0] * (12 - opened)
    assert scale_of(handler) == LossScale.START / 2**opened


def test_primary_overflow_is_left_to_the_trainers_scaler() -> None:
    batches, network, recogniser = make_batches(), make_network(), make_recogniser()
    primary = OverflowAt(mse, BAD, TOO_LARGE)
    handler = make_handler(recogniser, learns=True, rule="joint")
    trainer = make_trainer(network, batches, [cpu_scaler(), handler], loss_function=primary)
    trainer.run()

    reference = Reference(make_network(), make_recogniser(), rule="joint", learns=True)
    step = reference.optimizer.step
    for i, batch in enumerate(batches):
        reference.optimizer.step = (lambda: None) if i == BAD else step
        reference.step([batch])
    assert largest_difference(network.state_dict(), reference.network.state_dict()) == 0.0
    expected = reference.recogniser.state_dict()
    assert largest_difference(recogniser.state_dict(), expected) == 0.0  # it learnt all the same
    assert trainer.scaler.get_scale() == LossScale.START / 2
    assert scale_of(handler) == LossScale.START
    assert trainer.state.gradprom_skipped == 1


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_learning_recogniser_survives_a_gradient_that_is_not_finite(factor: float) -> None:
    batches, network, recogniser = make_batches(), make_network(), make_recogniser()
    loss = OverflowAt(cross_entropy, BAD, factor)
    handler = make_handler(recogniser, learns=True, rule="joint", auxiliary_loss=loss)
    trainer = make_trainer(network, batches, [handler])
    trainer.run()
    assert all(p.isfinite().all() for p in (*network.parameters(), *recogniser.parameters()))
    assert trainer.state.gradprom_skipped == 1
    assert 0 < trainer.state.gradprom_auxiliary_loss < 10  # mean of the others


def test_overflow_in_one_of_several_micro_batches_drops_the_step() -> None:
    batches, record = make_batches(count=4), Record()
    loss = OverflowAt(cross_entropy, 0, float("inf"))
    handler = make_handler(make_recogniser(), rule="joint", auxiliary_loss=loss)
    make_trainer(make_network(), batches, [handler, record], accumulation_steps=2).run()
    assert [record.gates[1], record.gates[3]] == [0.0, 1.0]


def test_a_new_scaler_at_each_run_is_noticed() -> None:
    batches, network = make_batches(), make_network()
    exponents = iter([16, 3])
    scalers = At(
        Events.STARTED,
        lambda engine: cpu_scaler(init_scale=2.0 ** next(exponents)).function(engine),
    )
    trainer = make_trainer(network, batches, [scalers, make_handler(make_recogniser())])
    trainer.run()
    assert isinstance(trainer, SupervisedTrainer)
    trainer.state.max_epochs = 2
    trainer.run()
    assert trainer.scaler.get_scale() == 8
    reference = Reference(make_network(), make_recogniser()).run(batches, 2)
    assert largest_difference(network.state_dict(), reference.network.state_dict()) == 0.0


# The scale alone.


def make_scale(enabled: bool = True) -> LossScale:
    scale = LossScale()
    scale.prepare(torch.device("cpu"), enabled)
    return scale


def test_scale_halves_at_once_and_doubles_after_good_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LossScale, "GROWTH_INTERVAL", 3)
    scale, seen = make_scale(), []
    for finite in (False, True, True, False, True, True, True, True):
        scale.update(torch.tensor(finite))
        seen.append(float(scale.value) / LossScale.START)
    assert seen == [0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.5, 0.5]


@pytest.mark.parametrize("finite", [True, False])
def test_scale_stays_within_bounds(monkeypatch: pytest.MonkeyPatch, finite: bool) -> None:
    monkeypatch.setattr(LossScale, "GROWTH_INTERVAL", 1)
    scale = make_scale()
    for _ in range(100):
        scale.update(torch.tensor(finite))
    assert scale.value == (LossScale.LARGEST if finite else LossScale.SMALLEST)


def test_scale_that_is_not_enabled_stays_one() -> None:
    scale = make_scale(enabled=False)
    scale.update(torch.tensor(False))
    assert scale.value == 1


def test_scale_round_trip() -> None:
    scale = make_scale()
    for finite in (False, True, True):
        scale.update(torch.tensor(finite))
    other = LossScale()
    other.load_state_dict(scale.state_dict())
    assert other.state_dict() == scale.state_dict() == {"scale": 32768.0, "good_steps": 2}
    other.prepare(torch.device("cpu"), True)
    assert other.value == 32768
    with pytest.raises(RuntimeError, match="prepare"):
        _ = LossScale().value
