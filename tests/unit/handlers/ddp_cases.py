"""What two processes do in test_gradprom_ddp; in a module of its own, which they import."""

from __future__ import annotations

import datetime
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from gradprom.handlers import GradPromHandler
from tests.unit.handlers.rig import (
    Batch,
    Record,
    conv,
    cpu_scaler,
    cross_entropy,
    make_batches,
    make_handler,
    make_network,
    make_recogniser,
    make_trainer,
)

WORLD = 2
EPOCHS = 2
# Rank 0 has the even items, rank 1 the odd ones; None: the key is missing from that rank's batch.
MARKS: list[list[list[bool] | None]] = [
    [[True, True], [True, True]],
    [[True, True], None],
    [None, [True, False]],
    [None, None],
    [[False, True], [False, False]],
    [[True, True], [False, True]],
]


class Idle(nn.Module):
    """Has a parameter that nothing reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.idle = make_network(), conv(2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = make_network()

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


def half(batches: list[Batch], rank: int) -> list[Batch]:
    return [{k: v[rank::WORLD] for k, v in batch.items()} for batch in batches]


def with_marks(batches: list[Batch], rank: int) -> list[Batch]:
    marked = []
    for batch, marks in zip(batches, MARKS, strict=True):
        if marks[rank] is None:
            marked.append({k: v for k, v in batch.items() if k != "recognition"})
        else:
            marked.append({**batch, "recognition_present": marks[rank]})
    return marked


def train(
    rank: int,
    dims: int = 2,
    learns: bool = False,
    marked: bool = False,
    module: nn.Module | None = None,
    ddp: dict[str, Any] | None = None,
    handler: dict[str, Any] | None = None,
    extra: tuple[object, ...] = (),
    **trainer: object,
) -> dict[str, Any]:
    """Train on this rank's half of the batches and return weights and decisions."""
    batches = half(make_batches(dims, per_batch=4), rank)
    batches = with_marks(batches, rank) if marked else batches
    module = make_network(dims) if module is None else module
    network = DistributedDataParallel(module, **(ddp or {}))
    recogniser = make_recogniser(dims)
    wrapped = DistributedDataParallel(recogniser) if learns else recogniser
    gate, record = make_handler(wrapped, learns=learns, **(handler or {})), Record()
    engine = make_trainer(network, batches, [*extra, gate, record], EPOCHS, **trainer)
    engine.run()
    inner = getattr(module, "inner", module)
    return {
        "network": {k: v.clone() for k, v in inner.state_dict().items()},
        "recogniser": {k: v.clone() for k, v in recogniser.state_dict().items()},
        "gates": record.gates,
        "cosines": record.cosines,
        "scale": gate.state_dict()["loss_scale"]["scale"],
        "state_keys": list(gate.state_dict().get("recogniser", {})),
    }


def bfloat16(x: Tensor, network: nn.Module, *_: object, **__: object) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return network(x)


class OverflowOnOneRank:
    """Infinite in one step on rank 1, though finite on rank 0."""

    def __init__(self, rank: int) -> None:
        self.rank, self.calls = rank, 0

    def __call__(self, answer: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        factor = 1e38 if self.rank == 1 and self.calls == 3 else 1.0
        return cross_entropy(answer, target) * factor


def unwrapped(rank: int) -> object:
    return train_with(rank, make_handler(make_recogniser(), learns=True))


def disagreeing(rank: int) -> object:
    return train_with(rank, make_handler(make_recogniser(), threshold=0.1 * rank))


def train_with(rank: int, gate: GradPromHandler) -> object:
    network = DistributedDataParallel(make_network())
    make_trainer(network, half(make_batches(per_batch=4), rank), [gate]).run()
    return None


COMPILED = {"compile": True, "compile_kwargs": {"backend": "aot_eager"}}
CASES: dict[str, Callable[[int], object]] = {
    "2d": train,
    "3d": lambda r: train(r, dims=3),
    "bucket view": lambda r: train(r, ddp={"gradient_as_bucket_view": True}),
    "find unused, none unused": lambda r: train(r, ddp={"find_unused_parameters": True}),
    "find unused": lambda r: train(r, module=Idle(), ddp={"find_unused_parameters": True}),
    "accumulation": lambda r: train(r, accumulation_steps=4),
    "learning": lambda r: train(r, learns=True),
    "learning, accumulation": lambda r: train(r, learns=True, accumulation_steps=4),
    "targets missing": lambda r: train(r, marked=True),
    "targets missing, learning": lambda r: train(r, marked=True, learns=True),
    "checkpoint": lambda r: train(r, module=Checkpointed()),
    "compiled": lambda r: train(r, handler={"start_epoch": 2}, **COMPILED),
    "scaled": lambda r: train(r, extra=(cpu_scaler(),)),
    "overflow on one rank": lambda r: train(
        r,
        extra=(cpu_scaler(),),
        handler={"auxiliary_loss": OverflowOnOneRank(r), "rule": "joint"},
    ),
    "bf16": lambda r: train(r, inferer=bfloat16),
    "random": lambda r: train(r, handler={"rule": "random", "on_rate": 0.5}),
    "learning, not wrapped": unwrapped,
    "disagreeing": disagreeing,
}


def attempt(case: Callable[[int], object], rank: int) -> object:
    """Return what the case returns or raises, so that the others still run."""
    try:
        return case(rank)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"


def work(rank: int, folder: str) -> None:
    """Run every case as one of the processes and save what came out."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # looked at in the tests of one process
    store = torch.distributed.FileStore(str(Path(folder) / "store"), WORLD)
    torch.distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=WORLD, timeout=datetime.timedelta(seconds=60)
    )
    results = {name: attempt(case, rank) for name, case in CASES.items()}
    torch.save(results, Path(folder) / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()
