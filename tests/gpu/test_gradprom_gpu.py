"""What only a CUDA device can show: AMP, compiled kernels, waiting, memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ignite.engine import EventEnum, Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.networks.nets import UNet
from torch import nn
from torch._functorch import config

from gradprom.gradients import GRANULARITIES, RULES, Gate, flatten, promote_
from gradprom.handlers import GradPromHandler
from gradprom.handlers._loss_scale import LossScale
from tests.properties import largest_difference
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
    sgd,
)

pytestmark = pytest.mark.gpu
DEVICE = "cuda"


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    """Switch TF32 off, which rounds convolutions to ten bits, and choose repeatable kernels."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, False
    with torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False):
        yield
    matmul.allow_tf32 = before


def on_device(batches: list[Batch]) -> list[Batch]:
    return [{k: v.to(DEVICE) for k, v in batch.items()} for batch in batches]


def trainer_for(
    network: nn.Module, batches: list[Batch], handlers: list[Any], epochs: int = 1, **kwargs: object
) -> SupervisedTrainer:
    settings = {"optimizer": sgd(network, 0.2), "loss_function": nn.MSELoss(), **kwargs}
    return SupervisedTrainer(
        DEVICE, epochs, batches, network, train_handlers=handlers, decollate=False, **settings
    )


# The pure functions.


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("rule", RULES)
def test_the_gate_never_makes_the_host_wait(rule: str, granularity: str) -> None:
    g = [torch.randn(64, 64, device=DEVICE) for _ in range(4)]
    h = flatten([torch.randn_like(x) for x in g], g)
    gate = Gate(rule, granularity, on_rate=0.5 if rule == "random" else None)
    draw = torch.rand(4 if granularity == "tensor" else 1, device=DEVICE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        promote_(g, h, gate, 0.5, torch.full((), 2.0, device=DEVICE), draw)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# The handler against plain PyTorch.


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("dims", [2, 3])
def test_equals_plain_pytorch(dims: int, steps: int, learns: bool) -> None:
    batches = on_device(make_batches(dims))
    network, recogniser = make_network(dims).to(DEVICE), make_recogniser(dims).to(DEVICE)
    handlers = [make_handler(recogniser, learns=learns)]
    trainer_for(network, batches, handlers, 2, accumulation_steps=steps).run()
    reference = Reference(
        make_network(dims).to(DEVICE),
        make_recogniser(dims).to(DEVICE),
        window=steps,
        learns=learns,
    ).run(batches, 2)
    # Kernels may differ in the order of their sums between the two ways of taking gradients.
    assert largest_difference(network.state_dict(), reference.network.state_dict()) < 1e-5
    expected = reference.recogniser.state_dict()
    assert largest_difference(recogniser.state_dict(), expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("learns", [False, True])
def test_mixed_precision_decides_as_single_precision(
    dtype: torch.dtype, steps: int, learns: bool
) -> None:
    batches = on_device(make_batches(count=8, per_batch=4, size=16))
    finals, cosines, states = [], [], []
    for amp in (False, True):
        network, recogniser = make_network().to(DEVICE), make_recogniser().to(DEVICE)
        record = Record()
        handler = make_handler(recogniser, learns=learns)
        settings = {"amp": amp, "amp_kwargs": {"dtype": dtype}, "accumulation_steps": steps}
        trainer = trainer_for(network, batches, [handler, record], 2, **settings)
        trainer.run()
        finals.append(network.state_dict())
        cosines.append(torch.tensor(record.cosines))
        states.append(handler.state_dict()["loss_scale"]["scale"])
        assert trainer.state.gradprom_skipped == 0
    assert (cosines[0] - cosines[1]).abs().max() < 0.1  # eight bits in bfloat16
    assert largest_difference(*finals) < 0.02
    assert states == [LossScale.START, LossScale.START]


def test_auxiliary_overflow_in_half_precision_comes_down_by_itself() -> None:
    batches, record = on_device(make_batches(count=30)), Record()
    network = make_network().to(DEVICE)

    def large(answer: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return 1e5 * cross_entropy(answer, target)

    settings: dict[str, Any] = {"auxiliary_loss": large, "rule": "joint", "weight": 1e-6}
    handler = make_handler(make_recogniser().to(DEVICE), **settings)
    trainer = trainer_for(
        network, batches, [handler, record], amp=True, amp_kwargs={"dtype": torch.float16}
    )
    trainer.run()
    assert record.gates[0] == 0 and record.gates[-1] == 1
    assert handler.state_dict()["loss_scale"]["scale"] < LossScale.START
    assert trainer.scaler.get_scale() == 65536
    assert all(p.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("start_epoch", [1, 2])
def test_compiled_network(start_epoch: int) -> None:
    torch.compiler.reset()
    batches, finals = on_device(make_batches()), []
    for compiled in (False, True):
        network = make_network().to(DEVICE)
        handler = make_handler(make_recogniser().to(DEVICE), start_epoch=start_epoch)
        with config.patch(donated_buffer=True):  # as torch sets it, and restored afterwards
            trainer_for(network, batches, [handler], 2, compile=compiled).run()
        finals.append(network.state_dict())
    assert largest_difference(*finals) < 1e-5


# Volumes.


def volume_parts(size: int) -> tuple[nn.Module, nn.Module, list[Batch]]:
    torch.manual_seed(0)
    channels, strides = (16, 32, 64), (2, 2)
    network = UNet(3, 1, 1, channels, strides, num_res_units=2).to(DEVICE)
    recogniser = UNet(3, 1, 4, channels, strides, num_res_units=1).to(DEVICE)
    shape = (1, 1, size, size, size)
    batch = {
        "image": torch.randn(shape, device=DEVICE),
        "label": torch.randn(shape, device=DEVICE),
        "recognition": torch.randint(0, 4, shape, device=DEVICE),
    }
    return network, recogniser, [batch] * 4


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("learns", [False, True])
def test_no_callback_makes_the_host_wait_on_a_volume(amp: bool, learns: bool) -> None:
    network, recogniser, batches = volume_parts(96)
    optimizer = torch.optim.Adam(recogniser.parameters(), 1e-3) if learns else None
    handler = GradPromHandler(recogniser, cross_entropy, recogniser_optimizer=optimizer)

    def mode(event: EventEnum, name: str) -> At:
        return At(event, lambda _: torch.cuda.set_sync_debug_mode(name))

    # Around both callbacks of a step and nothing else; the trainer's own scaler waits.
    events = (IterationEvents.LOSS_COMPLETED, IterationEvents.BACKWARD_COMPLETED)
    handlers = [mode(event, "error") for event in events]
    handlers += [handler, *(mode(event, "default") for event in events)]
    try:
        trainer = trainer_for(network, batches, handlers, 1, amp=amp)
        trainer.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.state.gradprom_skipped == 0
    assert trainer.state.gradprom_mean_cosine != 0


def peak_memory(rule: str, size: int = 96) -> int:
    network, recogniser, batches = volume_parts(size)
    handler = GradPromHandler(recogniser, cross_entropy, rule=rule, weight=0.1)
    reset = At(Events.ITERATION_STARTED, lambda _: torch.cuda.reset_peak_memory_stats())
    base = torch.cuda.memory_allocated()
    trainer_for(network, batches, [reset, handler]).run()
    return torch.cuda.max_memory_allocated() - base


def peak_memory_of_joint_training(size: int = 96) -> int:
    """One backward pass of the summed loss, as ESTR and joint training do it."""
    network, recogniser, batches = volume_parts(size)
    recogniser.requires_grad_(False).eval()

    def add(engine: SupervisedTrainer) -> None:
        output = engine.state.output
        answer = recogniser(output["pred"])
        output["loss"] = output["loss"] + 0.1 * cross_entropy(answer, batches[0]["recognition"])

    reset = At(Events.ITERATION_STARTED, lambda _: torch.cuda.reset_peak_memory_stats())
    base = torch.cuda.memory_allocated()
    trainer_for(network, batches, [reset, At(IterationEvents.LOSS_COMPLETED, add)]).run()
    return torch.cuda.max_memory_allocated() - base


def test_peak_memory_is_that_of_joint_training() -> None:
    """The gate adds a few copies of the parameters, which are small beside a volume."""
    gated, joint = peak_memory("gradprom"), peak_memory_of_joint_training()
    assert gated < 1.05 * joint, f"{gated / 2**20:.0f} MiB against {joint / 2**20:.0f} MiB"


def test_device_and_host_decide_alike() -> None:
    g = [torch.randn(100, 10) for _ in range(3)]
    h = [0.1 * x + torch.randn_like(x) for x in g]
    for rule in ("gradprom", "weighted"):
        results = []
        for device in ("cpu", DEVICE):
            d = [copy.deepcopy(x).to(device) for x in g]
            statistics = promote_(d, flatten(h, h).to(device), Gate(rule), 0.3)
            results.append((statistics.cosine.cpu(), [x.cpu() for x in d]))
        assert abs(results[0][0] - results[1][0]) < 1e-12
        for x, y in zip(results[0][1], results[1][1], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)
