"""What the handler costs, publishes and leaves alone in the trainer."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.handlers import StatsHandler, TensorBoardStatsHandler
from torch import Tensor, nn
from torch._functorch import config

from gradprom.handlers import GradPromHandler
from gradprom.handlers._epoch_sums import EPOCH_ATTRIBUTES, STEP_ATTRIBUTES, EpochSums
from tests.properties import NoHostAccess, largest_difference
from tests.unit.handlers.rig import (
    At,
    Batch,
    Record,
    Reference,
    cross_entropy,
    make_batches,
    make_handler,
    make_network,
    make_recogniser,
    make_trainer,
    sgd,
)


class Counting(nn.Module):
    """Counts forward passes and notes the mode of each."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append(self.training)
        return self.inner(x)


# Cost.


@pytest.mark.parametrize(
    ("settings", "forwards"),
    [
        ({}, 6),
        ({"rule": "off"}, 0),
        ({"weight": 0.0}, 0),
        ({"start_epoch": 2}, 3),
        ({"weight": lambda epoch: 0.1 * (epoch - 1)}, 3),
        ({"rule": "off", "learns": True}, 6),
        ({"start_epoch": 3, "learns": True}, 6),
    ],
)
def test_the_recogniser_runs_only_where_it_is_needed(
    settings: dict[str, object], forwards: int
) -> None:
    batches, recogniser = make_batches(count=3), Counting(make_recogniser())
    network, before = make_network(), make_recogniser()
    make_trainer(network, batches, [make_handler(recogniser, **settings)], 2).run()
    learns = bool(settings.get("learns"))
    assert recogniser.modes == [learns] * forwards
    moved = largest_difference(recogniser.inner.state_dict(), before.state_dict())
    assert (moved > 0) == learns


def test_a_gate_that_is_off_leaves_training_as_it_is() -> None:
    batches, network, plain = make_batches(), make_network(), make_network()
    make_trainer(network, batches, [make_handler(make_recogniser(), rule="off")], 2).run()
    make_trainer(plain, batches, [], 2).run()
    assert largest_difference(network.state_dict(), plain.state_dict()) == 0.0


def test_the_recognisers_graph_is_freed_before_the_network_runs_backwards() -> None:
    alive: weakref.WeakSet[Kept] = weakref.WeakSet()
    seen: list[int] = []

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            alive.add(self)

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make_recogniser()

        def forward(self, x: Tensor) -> Tensor:
            with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
                answer = self.inner(x)
            seen.append(len(alive))
            return answer

    for learns in (False, True):
        seen.clear()
        network = make_network()
        network[0].weight.register_hook(lambda _: seen.append(len(alive)))
        handlers = [make_handler(Watched(), learns=learns)]
        make_trainer(network, make_batches(count=1), handlers).run()
        in_forward, in_auxiliary_pass, in_primary_pass = seen
        assert in_forward > 0 and in_auxiliary_pass == in_primary_pass == 0


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("granularity", ["model", "tensor"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_no_callback_of_a_step_reads_or_copies(
    device: str, granularity: str, learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors on meta stand for those on an accelerator: any copy from or to the host shows."""
    network, recogniser = make_network().to(device), make_recogniser().to(device)
    batches = [
        {**{k: v.to(device) for k, v in b.items()}, "recognition_present": [True, bool(i % 2)]}
        for i, b in enumerate(make_batches(count=4))
    ]
    handler = make_handler(recogniser, learns=learns, granularity=granularity)
    watch = NoHostAccess()
    monkeypatch.setattr(EpochSums, "publish", lambda *_: None)  # the one read of an epoch
    # From after STARTED until the epoch's sums are read.
    handlers = [At(Events.EPOCH_STARTED, lambda _: watch.__enter__())]
    handlers += [handler, At(Events.ITERATION_COMPLETED, lambda e: leave(e, watch))]

    def leave(engine: SupervisedTrainer, watch: NoHostAccess) -> None:
        if engine.state.iteration == 3:
            watch.__exit__(None, None, None)
            engine.terminate()

    trainer = SupervisedTrainer(
        device,
        1,
        batches,
        network,
        sgd(network, 0.1),
        nn.MSELoss(),
        train_handlers=handlers,
        accumulation_steps=2,
        decollate=False,
    )
    trainer.run()
    assert trainer.state.iteration == 3
    assert trainer.state.gradprom_cosine.device.type == device


# What is published.


def test_step_values_are_tensors_and_epoch_values_floats() -> None:
    batches, record = make_batches(), Record()
    trainer = make_trainer(make_network(), batches, [make_handler(make_recogniser()), record])
    trainer.run()
    state = trainer.state
    assert all(getattr(state, n).ndim == 0 for n in STEP_ATTRIBUTES)
    assert all(isinstance(getattr(state, n), float) for n in EPOCH_ATTRIBUTES)
    assert state.gradprom_mean_cosine == pytest.approx(sum(record.cosines) / 6, rel=1e-12)
    assert state.gradprom_mean_ratio == pytest.approx(sum(record.ratios) / 6, rel=1e-12)
    assert state.gradprom_on_rate == sum(record.gates) / 6
    assert state.gradprom_skipped == 0


def test_ratio_and_loss_are_those_of_the_method() -> None:
    batch, network, recogniser = make_batches(count=1)[0], make_network(), make_recogniser()
    trainer = make_trainer(network, [batch], [make_handler(recogniser, weight=0.01)], lr=0.0)
    trainer.run()
    theta = list(network.parameters())
    pred = network(batch["image"])
    auxiliary = cross_entropy(recogniser(pred), batch["recognition"])
    h = torch.autograd.grad(auxiliary, theta, retain_graph=True)
    g = torch.autograd.grad(nn.functional.mse_loss(pred, batch["label"]), theta)
    norms = [torch.cat([x.flatten() for x in v]).double().norm() for v in (h, g)]
    assert trainer.state.gradprom_ratio == pytest.approx(float(norms[0] / norms[1]), rel=1e-12)
    assert trainer.state.gradprom_auxiliary_loss == pytest.approx(auxiliary.item(), rel=1e-6)


@pytest.mark.parametrize("position", [0, 1])
def test_monai_handlers_find_the_epochs_values_wherever_they_stand(
    position: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    names = list(EPOCH_ATTRIBUTES)
    logging.getLogger("gate-test").setLevel(logging.INFO)
    logging.getLogger("gate-test").addHandler(caplog.handler)  # MONAI's loggers do not propagate
    written: dict[str, list[float]] = {name: [] for name in names}

    class Writer(SummaryWriter):
        def add_scalar(self, tag: str, scalar_value: float, *_: object, **__: object) -> None:
            if tag in written:
                written[tag].append(scalar_value)

    ours: list[dict[str, float]] = []
    handlers: list[object] = [
        StatsHandler(iteration_log=False, name="gate-test", state_attributes=names),
        TensorBoardStatsHandler(Writer(str(tmp_path)), iteration_log=False, state_attributes=names),
    ]
    handlers.insert(2 * position, make_handler(make_recogniser()))
    keep = At(Events.COMPLETED, lambda e: ours.append({n: getattr(e.state, n) for n in names}))
    with caplog.at_level(logging.INFO, logger="gate-test"):
        make_trainer(make_network(), make_batches(), [*handlers, keep], 2).run()
    assert all(len(written[n]) == 2 and written[n][1] == ours[0][n] for n in names)
    assert written["gradprom_mean_cosine"][0] != 0 != written["gradprom_auxiliary_loss"][0]
    last = [r.getMessage() for r in caplog.records if "gradprom_on_rate" in r.getMessage()][-1]
    assert all(f"{n}: {ours[0][n]}" in last for n in names)


@pytest.mark.parametrize("end", ["terminate", "terminate_epoch", "unknown length"])
def test_epochs_that_end_early_are_published(end: str) -> None:
    batches = make_batches()
    data: Sequence[Batch] | Iterator[Batch] = iter(batches[:3]) if "length" in end else batches

    def stop(engine: SupervisedTrainer) -> None:
        if engine.state.iteration == 3 and "length" not in end:
            getattr(engine, end)()

    at_end: list[float] = []
    handlers = [
        make_handler(make_recogniser()),
        At(Events.ITERATION_COMPLETED, stop),
        At(Events.EPOCH_COMPLETED, lambda e: at_end.append(e.state.gradprom_mean_cosine)),
    ]
    record = Record()
    trainer = make_trainer(make_network(), data, [*handlers, record])
    trainer.run()
    assert trainer.state.gradprom_mean_cosine == pytest.approx(sum(record.cosines) / 3, rel=1e-12)
    assert at_end in ([], [trainer.state.gradprom_mean_cosine])


def test_gate_of_single_tensors_is_the_open_fraction() -> None:
    record = Record()
    handlers = [make_handler(make_recogniser(), granularity="tensor"), record]
    make_trainer(make_network(), make_batches(), handlers, 2).run()
    assert {gate * 6 % 1 for gate in record.gates} == {0.0}
    assert any(0 < gate < 1 for gate in record.gates)


# Schedules and controls.


def test_lambda_schedule_and_start_epoch() -> None:
    batches, network = make_batches(), make_network()
    schedule = {1: 0.5, 2: 0.3, 3: 0.1}
    handler = make_handler(make_recogniser(), weight=schedule.__getitem__, start_epoch=2)
    make_trainer(network, batches, [handler], 3).run()
    reference = Reference(make_network(), make_recogniser())
    for epoch, weight in schedule.items():
        reference.rule, reference.weight = "off" if epoch < 2 else "gradprom", weight
        reference.run(batches)
    assert largest_difference(network.state_dict(), reference.network.state_dict()) == 0.0


def test_random_decisions_depend_on_seed_and_iteration_alone() -> None:
    def gates(seed: int, epochs: int, start: int = 1, granularity: str = "model") -> list[float]:
        record = Record()
        random = {"rule": "random", "on_rate": 0.4, "granularity": granularity}
        handler = make_handler(make_recogniser(), seed=seed, start_epoch=start, **random)
        batch = make_batches(count=1, per_batch=1, size=3)
        make_trainer(make_network(), batch * 50, [handler, record], epochs, lr=0.01).run()
        return record.gates

    first = gates(0, 4)
    assert 0.25 < sum(first) / 200 < 0.55  # four standard deviations
    torch.manual_seed(99)
    assert gates(0, 4) == first  # no other generator matters
    assert gates(0, 2, start=2)[50:] == first[50:100]  # nor what went before
    assert gates(1, 1)[:-1] != first[1:50]  # another seed is no shift of the first
    each = gates(0, 1, granularity="tensor")
    assert abs(sum(each) / 50 - 0.4) < 0.12 and len(set(each)) > 2


def test_inverse_opens_where_gradprom_shuts() -> None:
    records = []
    for rule in ("gradprom", "inverse"):
        records.append(Record())
        handlers = [make_handler(make_recogniser(), rule=rule), records[-1]]
        make_trainer(make_network(), make_batches(), handlers, lr=0.0).run()
    assert [1 - gate for gate in records[0].gates] == records[1].gates
    assert 0 < sum(records[0].gates) < 6


# Repeated runs, modes, targets.


def test_running_again_continues(recwarn: pytest.WarningsRecorder) -> None:
    batches, network = make_batches(), make_network()
    trainer = make_trainer(network, batches, [make_handler(make_recogniser())])
    for rounds in (1, 2, 3):  # as a federated client does
        trainer.state.max_epochs = rounds
        trainer.run()
    reference = Reference(make_network(), make_recogniser()).run(batches, 3)
    assert largest_difference(network.state_dict(), reference.network.state_dict()) == 0.0
    assert not [w for w in recwarn if "gradient" in str(w.message)]


@pytest.mark.parametrize("learns", [False, True])
def test_mode_is_restored_after_validation_changed_it(learns: bool) -> None:
    recogniser = Counting(make_recogniser())
    disturb = At(Events.ITERATION_STARTED, lambda _: recogniser.train(not learns))
    handlers = [make_handler(recogniser, learns=learns), disturb]
    make_trainer(make_network(), make_batches(count=2), handlers).run()
    assert recogniser.modes == [learns, learns]


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("kind", ["no key", "none", "tuple"])
def test_batches_without_target_shut_the_gate_with_one_warning(kind: str, learns: bool) -> None:
    full = make_batches()
    batches: list[object] = [{"image": b["image"], "label": b["label"]} for b in full]
    if kind == "none":
        batches = [{**b, "recognition": None} for b in batches]
    if kind == "tuple":
        batches = [(b["image"], b["label"]) for b in full]
    network, plain, recogniser = make_network(), make_network(), make_recogniser()
    handler = make_handler(recogniser, learns=learns, rule="joint")
    trainer = make_trainer(network, batches, [handler], 2, decollate=False)
    with pytest.warns(UserWarning, match="'recognition': the gate is off") as said:
        trainer.run()
    assert len(said) == 1
    make_trainer(plain, full, [], 2).run()
    assert largest_difference(network.state_dict(), plain.state_dict()) == 0.0
    assert largest_difference(recogniser.state_dict(), make_recogniser().state_dict()) == 0.0
    assert trainer.state.gradprom_on_rate == trainer.state.gradprom_auxiliary_loss == 0


def test_label_free_target_without_label_shuts_the_gate() -> None:
    batches = [{"image": b["image"]} for b in make_batches()]
    handler = GradPromHandler(make_recogniser(), auxiliary_target="clean")

    def unsupervised(pred: Tensor, _: object) -> Tensor:
        return (pred**2).mean()

    trainer = make_trainer(make_network(), batches, [handler], loss_function=unsupervised)
    with pytest.warns(UserWarning, match="'clean'"):
        trainer.run()


# Compilation.


def test_compiled_network_with_late_start() -> None:
    torch.compiler.reset()
    batches, network = make_batches(), make_network()
    handler = make_handler(make_recogniser(), start_epoch=2)
    compiled = {"compile": True, "compile_kwargs": {"backend": "aot_eager"}}
    with config.patch(donated_buffer=True):  # as torch sets it, and restored afterwards
        make_trainer(network, batches, [handler], 2, **compiled).run()
        assert config.donated_buffer is False
    reference = Reference(make_network(), make_recogniser(), rule="off").run(batches)
    reference.rule = "gradprom"
    reference.run(batches)
    assert largest_difference(network.state_dict(), reference.network.state_dict()) < 1e-6
