"""A checkpoint is whole or not there, resumes once, and is refused if it does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from gradprom.errors import InputError
from gradprom.handlers import AtomicCheckpoint, BestModel, EpochSeed, save_atomically


class Unpicklable:
    """What torch.save fails on."""

    def __reduce__(self) -> str:
        raise OSError("disk full")


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_atomically({"value": 1}, path)
    with pytest.raises(OSError, match="disk full"):
        save_atomically({"value": Unpicklable()}, path)
    assert torch.load(path, weights_only=True) == {"value": 1}
    assert list(tmp_path.iterdir()) == [path]


def trained(path: Path, epochs: int, resume: bool) -> tuple[nn.Linear, Engine]:
    network = nn.Linear(1, 1)
    nn.init.zeros_(network.weight)

    def step(_: Engine, batch: float) -> None:
        with torch.no_grad():
            network.weight += batch

    trainer = Engine(step)
    AtomicCheckpoint(str(path), {"network": network, "none": None}, resume).attach(trainer)
    trainer.run([1.0, 1.0], max_epochs=epochs)
    return network, trainer


def test_a_resumed_run_goes_on_and_later_rounds_are_not_undone(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    trained(path, 2, resume=False)
    network, trainer = trained(path, 3, resume=True)
    assert network.weight.item() == 6 and trainer.state.iteration == 6
    trainer.state.max_epochs = None
    trainer.run([1.0, 1.0], max_epochs=4)
    assert network.weight.item() == 8


def test_without_resume_the_run_starts_afresh(tmp_path: Path) -> None:
    trained(tmp_path / "checkpoint.pt", 2, resume=False)
    assert trained(tmp_path / "checkpoint.pt", 1, resume=False)[0].weight.item() == 2


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_atomically({"network": nn.Linear(2, 2).state_dict()}, path)
    with pytest.raises(InputError, match=r"checkpoint\.pt cannot be resumed"):
        trained(path, 1, resume=True)


def test_the_best_model_is_kept_with_its_record(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    network = nn.Linear(1, 1)

    def validate(handler: BestModel, epoch: int, metric: float) -> None:
        nn.init.constant_(network.weight, float(epoch))
        state = SimpleNamespace(key_metric_name="psnr", metrics={"psnr": metric}, epoch=epoch)
        handler.save_if_best(SimpleNamespace(state=state))

    handler = BestModel(str(path), network)
    for epoch, metric in ((1, 10.0), (2, 12.0), (3, 11.0)):
        validate(handler, epoch, metric)
    assert torch.load(path, weights_only=True)["weight"].item() == 2
    record = json.loads(path.with_suffix(".json").read_text())
    assert record == {"epoch": 2, "name": "psnr", "metric": 12.0}
    validate(BestModel(str(path), network, resume=True), 4, 11.5)
    assert torch.load(path, weights_only=True)["weight"].item() == 2
    validate(BestModel(str(path), network), 4, 11.5)
    assert torch.load(path, weights_only=True)["weight"].item() == 4
    last = BestModel(str(path), network, resume=True, keep="last")
    validate(last, 5, 1.0)
    assert torch.load(path, weights_only=True)["weight"].item() == 5
    with pytest.raises(InputError, match="keep of BestModel is 'first'"):
        BestModel(str(path), network, keep="first")


def test_an_epoch_draws_the_same_whatever_came_before() -> None:
    drawn: dict[int, list[float]] = {}

    def run(first: int) -> None:
        trainer = Engine(lambda engine, _: drawn.setdefault(engine.state.epoch, []).append(draw()))
        EpochSeed(5).attach(trainer)
        trainer.load_state_dict({"epoch": first, "epoch_length": 1, "max_epochs": 3})
        trainer.run([0])

    def draw() -> float:
        return torch.rand(()).item()

    run(0)
    run(2)
    assert drawn[3][0] == drawn[3][1]
    assert len({drawn[1][0], drawn[2][0], drawn[3][0]}) == 3
