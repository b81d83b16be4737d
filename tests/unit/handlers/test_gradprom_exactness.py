"""The handler in MONAI's trainer equals the method in plain PyTorch, to the last bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from monai.engines.utils import IterationEvents
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradprom.handlers import GradPromHandler
from gradprom.losses import AgreementLoss
from tests.properties import largest_difference
from tests.unit.handlers.rig import (
    At,
    Record,
    Reference,
    conv,
    cpu_scaler,
    cross_entropy,
    make_batches,
    make_handler,
    make_items,
    make_network,
    make_recogniser,
    make_trainer,
    meta_loader,
    mse,
)


def assert_same(network: nn.Module, reference: Reference, record: Record | None = None) -> None:
    assert largest_difference(network.state_dict(), reference.network.state_dict()) == 0.0
    if record is not None:
        assert record.gates == reference.gates
        torch.testing.assert_close(record.cosines, reference.cosines, rtol=1e-12, atol=1e-12)


def assert_both_ways(gates: list[float]) -> None:
    """A test of a gate that never opens or never shuts shows nothing."""
    assert 0 < sum(gates) < len(gates)


@pytest.mark.parametrize("set_to_none", [False, True])
@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_equals_plain_pytorch(dims: int, meta: bool, set_to_none: bool) -> None:
    items = make_items(dims)
    batches = make_batches(dims)
    network, recogniser, record = make_network(dims), make_recogniser(dims), Record()
    data = meta_loader(items) if meta else batches
    handlers = [make_handler(recogniser), record]
    make_trainer(network, data, handlers, 2, optim_set_to_none=set_to_none).run()
    reference = Reference(make_network(dims), make_recogniser(dims)).run(batches, 2)
    assert_same(network, reference, record)
    assert_both_ways(record.gates)
    untouched = make_recogniser(dims).state_dict()
    assert largest_difference(recogniser.state_dict(), untouched) == 0.0


@pytest.mark.parametrize("rule", ["weighted", "joint", "off"])
def test_other_rules_equal_plain_pytorch(rule: str) -> None:
    batches, network = make_batches(), make_network()
    make_trainer(network, batches, [make_handler(make_recogniser(), rule=rule)], 2).run()
    assert_same(network, Reference(make_network(), make_recogniser(), rule=rule).run(batches, 2))


@pytest.mark.parametrize("dims", [2, 3])
def test_learning_recogniser_equals_plain_pytorch(dims: int) -> None:
    batches = make_batches(dims)
    network, recogniser, record = make_network(dims), make_recogniser(dims), Record()
    make_trainer(network, batches, [make_handler(recogniser, learns=True), record], 2).run()
    reference = Reference(make_network(dims), make_recogniser(dims), learns=True).run(batches, 2)
    assert_same(network, reference, record)
    assert largest_difference(recogniser.state_dict(), reference.recogniser.state_dict()) == 0.0
    assert_both_ways(record.gates)


@pytest.mark.parametrize("learns", [False, True])
def test_one_decision_for_each_accumulated_step(learns: bool) -> None:
    # Five micro-batches in windows of two: the trainer flushes the last one alone.
    batches = make_batches(count=5)
    network, recogniser = make_network(), make_recogniser()
    decisions = Record()
    handlers = [make_handler(recogniser, learns=learns), decisions]
    make_trainer(network, batches, handlers, 3, accumulation_steps=2).run()
    reference = Reference(make_network(), make_recogniser(), learns=learns, window=2)
    assert_same(network, reference.run(batches, 3))
    ends = [e * 5 + i for e in range(3) for i in (1, 3, 4)]
    assert [decisions.gates[i] for i in ends] == reference.gates
    assert_both_ways(reference.gates)
    if learns:
        expected = reference.recogniser.state_dict()
        assert largest_difference(recogniser.state_dict(), expected) == 0.0


class Checkpointed(nn.Module):
    """The network of the rig, its middle recomputed in the backward pass."""

    def __init__(self, inner: nn.Sequential, use_reentrant: bool) -> None:
        super().__init__()
        self.inner, self.use_reentrant = inner, use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=self.use_reentrant)


@pytest.mark.parametrize("dims", [2, 3])
def test_non_reentrant_checkpointing(dims: int) -> None:
    batches, network = make_batches(dims), make_network(dims)
    wrapped = Checkpointed(network, use_reentrant=False)
    make_trainer(wrapped, batches, [make_handler(make_recogniser(dims))], 2).run()
    assert_same(network, Reference(make_network(dims), make_recogniser(dims)).run(batches, 2))


# Mixed precision. On a CPU an enabled scaler is put in by hand; its scales are powers of two, so
# that scaled and unscaled training are equal to the last bit.


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("steps", [1, 2])
def test_loss_scaling_changes_nothing(steps: int, learns: bool) -> None:
    batches, network, recogniser = make_batches(), make_network(), make_recogniser()
    handlers = [cpu_scaler(init_scale=2.0**10), make_handler(recogniser, learns=learns)]
    trainer = make_trainer(network, batches, handlers, 2, accumulation_steps=steps)
    trainer.run()
    reference = Reference(make_network(), make_recogniser(), window=steps, learns=learns)
    assert_same(network, reference.run(batches, 2))
    assert trainer.state.gradprom_skipped == 0
    assert_both_ways(reference.gates)


def test_a_handler_before_the_gate_may_unscale() -> None:
    unscale = At(IterationEvents.BACKWARD_COMPLETED, lambda e: e.scaler.unscale_(e.optimizer))
    for order in (0, 1):
        batches, network = make_batches(), make_network()
        handlers = [unscale]
        handlers.insert(order, make_handler(make_recogniser()))
        make_trainer(network, batches, [cpu_scaler(), *handlers], 1).run()
        assert_same(network, Reference(make_network(), make_recogniser()).run(batches))


@pytest.mark.parametrize("dims", [2, 3])
def test_bfloat16_autocast(dims: int) -> None:
    """As on a CPU, where autocast is in the inferer and the recogniser runs outside it."""

    def forward(network: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return network(x)

    def inferer(x: Tensor, network: nn.Module, *_: object, **__: object) -> Tensor:
        return forward(network, x)

    batches, network, record = make_batches(dims), make_network(dims), Record()
    handlers = [make_handler(make_recogniser(dims)), record]
    make_trainer(network, batches, handlers, 2, inferer=inferer).run()
    other = make_network(dims)
    reference = Reference(other, make_recogniser(dims), forward=lambda x: forward(other, x))
    assert_same(network, reference.run(batches, 2), record)


# Targets.


def test_items_without_target_contribute_nothing() -> None:
    marks = [[True, False], [False, False], [True, True], [False, True]] * 2
    batches = make_batches(count=8)
    recogniser = make_recogniser()

    def auxiliary(pred: Tensor, batch: dict[str, Any]) -> Tensor:
        # The mean over the whole batch, of losses that are zero where there is no target.
        each = nn.functional.cross_entropy(
            recogniser(pred), batch["recognition"][:, 0], reduction="none"
        ).mean((1, 2))
        present = torch.as_tensor(batch["recognition_present"])
        return torch.where(present, each, 0 * each).mean()

    marked = [{**b, "recognition_present": m} for b, m in zip(batches, marks, strict=True)]
    tensors = [
        {**b, "recognition_present": torch.tensor(m)} for b, m in zip(batches, marks, strict=True)
    ]
    reference = Reference(make_network(), recogniser, auxiliary=auxiliary).run(marked, 2)
    assert_both_ways(reference.gates)
    for data in (marked, tensors):
        network = make_network()
        with pytest.warns(UserWarning, match="No item of this batch") as said:
            make_trainer(network, data, [make_handler(make_recogniser())], 2).run()
        assert len([w for w in said if "No item" in str(w.message)]) == 1
        difference = largest_difference(network.state_dict(), reference.network.state_dict())
        assert difference < 1e-6  # the sums over items are in another order


def test_label_free_target_equals_plain_pytorch() -> None:
    batches, network = make_batches(), make_network()
    settings: dict[str, Any] = {"weight": 20.0, "threshold": 0.72}
    handler = GradPromHandler(make_recogniser(), auxiliary_target="clean", **settings)
    make_trainer(network, batches, [handler], 2).run()
    recogniser = make_recogniser()

    def auxiliary(pred: Tensor, batch: dict[str, Any]) -> Tensor:
        return AgreementLoss()(recogniser(pred), recogniser(batch["label"]))

    reference = Reference(make_network(), recogniser, auxiliary=auxiliary, **settings)
    assert_same(network, reference.run(batches, 2))
    assert_both_ways(reference.gates)


# The network need not be simple.


class PartlyUnused(nn.Module):
    """Has a parameter that nothing reaches."""

    def __init__(self, inner: nn.Sequential) -> None:
        super().__init__()
        self.inner = inner
        self.idle = conv(2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_unused_parameters_are_named_once_and_left_alone() -> None:
    batches, network = make_batches(), make_network()
    wrapped = PartlyUnused(network)
    before = wrapped.idle.weight.clone()
    with pytest.warns(UserWarning, match=r"2 parameters .*idle.weight, idle.bias") as said:
        make_trainer(wrapped, batches, [make_handler(make_recogniser())], 2).run()
    assert len(said) == 1
    assert_same(network, Reference(make_network(), make_recogniser()).run(batches, 2))
    assert torch.equal(wrapped.idle.weight, before) and wrapped.idle.weight.grad is None


class TwoHeads(nn.Module):
    """Answers with two channels, made by separate parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(2, 1, 1), conv(2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(x), self.second(x)], dim=1)


def test_a_parameter_without_primary_gradient_counts_as_zero_and_learns() -> None:
    batch, recogniser = make_batches(count=1)[0], conv(2, 2, 3)
    network = TwoHeads()
    before = copy.deepcopy(network)

    def primary(_: Tensor, label: Tensor) -> Tensor:
        return mse(network.first(batch["image"]), label)  # the second head has no gradient: None

    handler = make_handler(recogniser, rule="joint", weight=2.0)
    trainer = make_trainer(network, [batch], [handler], loss_function=primary, lr=1.0)
    trainer.run()
    loss = cross_entropy(recogniser(before(batch["image"])), batch["recognition"])
    h = torch.autograd.grad(loss, before.second.weight)[0]
    assert torch.equal(network.second.weight, before.second.weight - 2.0 * h)
