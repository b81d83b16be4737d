"""Checkpoints that are whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from monai.engines import Evaluator
from torch.nn.parallel import DistributedDataParallel

from gradprom.errors import InputError

__all__ = ["AtomicCheckpoint", "BestModel", "save_atomically"]


def save_atomically(content: object, path: str | Path) -> None:
    """``torch.save`` into a temporary file beside ``path``, which then takes its name in one
    step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class AtomicCheckpoint:
    """Saves everything that a run needs to go on, every ``interval`` epochs, and loads it when
    asked to resume.

    MONAI's ``CheckpointSaver`` writes in place, so that a crash while it writes leaves neither the
    old nor the new file.

    Args:
        path: the file; it holds tensors and plain containers only and loads with
            ``weights_only=True``.
        objects: what to keep, by name: networks, optimizers, schedulers; None is left out, the
            trainer is added.
        resume: load ``path`` at the start of the run if it exists; a missing file starts afresh.
        interval: epochs between two saves.

    Raises:
        InputError: if the file cannot be read, or holds other names or shapes than ``objects``.
    """

    def __init__(
        self, path: str, objects: Mapping[str, Any], resume: bool = False, interval: int = 1
    ) -> None:
        self.path = Path(path)
        self.objects = {name: item for name, item in objects.items() if item is not None}
        self.resume = resume
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        self.objects.setdefault("trainer", engine)
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(
            Events.EPOCH_COMPLETED(every=self.interval) | Events.COMPLETED, self.save
        )

    def save(self) -> None:
        if idist.get_rank() == 0:
            save_atomically(
                {name: unwrap(x).state_dict() for name, x in self.objects.items()}, self.path
            )

    def load(self, engine: Engine) -> None:
        # STARTED fires again in each federated round, where the rounds before must not be undone.
        if not self.resume or engine.state.iteration > 0 or not self.path.exists():
            return
        epochs = engine.state.max_epochs
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            objects = {name: unwrap(x) for name, x in self.objects.items()}
            Checkpoint.load_objects(to_load=objects, checkpoint=content, strict=True)
        except Exception as error:
            raise InputError(
                f"checkpoint {self.path} cannot be resumed ({error}); remove it or run with "
                "--resume False."
            ) from error
        engine.state.max_epochs = epochs  # the caller decides how long to train, not the file


class BestModel:
    """Keeps the network's bare state dict from the validation with the highest key metric so far.

    Attach it to the evaluator. The file is what ``inference.json`` loads; beside it
    ``<name>.json`` says which epoch and metric it is, which is also how a resumed run knows what
    there is to beat.

    Args:
        path: the file, written atomically, by the first process only.
        network: whose ``state_dict`` is kept, on the CPU and without a DistributedDataParallel
            wrapper.
        resume: whether the metric of an existing file counts.
        keep: ``best``, or ``last`` where a schedule ends at a learning rate of zero and validation
            images are unlike those that the network is for.

    Raises:
        InputError: if ``keep`` is neither.
    """

    def __init__(
        self, path: str, network: torch.nn.Module, resume: bool = False, keep: str = "best"
    ) -> None:
        if keep not in ("best", "last"):
            raise InputError(f"keep of BestModel is {keep!r}; give 'best' or 'last'.")
        self.path = Path(path)
        self.network = network
        self.keep = keep
        self.record = self.path.with_suffix(".json")
        self.best = float("-inf")
        if resume and self.record.exists() and self.path.exists():
            self.best = json.loads(self.record.read_text())["metric"]

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self.save_if_best)

    def save_if_best(self, engine: Evaluator) -> None:
        name = engine.state.key_metric_name
        metric = float(engine.state.metrics[name])
        worse = metric <= self.best and self.keep == "best"
        if worse or idist.get_rank() > 0:
            return
        self.best = metric
        weights = {key: value.cpu() for key, value in unwrap(self.network).state_dict().items()}
        save_atomically(weights, self.path)
        record = {"epoch": engine.state.epoch, "name": name, "metric": metric}
        self.record.write_text(json.dumps(record) + "\n")


def unwrap(item: Any) -> Any:  # noqa: ANN401 - networks, optimizers, engines
    """The network inside a DistributedDataParallel wrapper; anything else as it is."""
    return item.module if isinstance(item, DistributedDataParallel) else item
