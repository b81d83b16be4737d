"""One JSON line per epoch, for trainers and evaluators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from monai.handlers import ValidationHandler

from gradprom.handlers import HistoryHandler


def _lines(path: Path) -> list[dict[str, Any]]:
    # a literal NaN or Infinity is not JSON, though Python would read it
    return [
        json.loads(line, parse_constant=pytest.fail)
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


def _trainer() -> Engine:
    engine = Engine(lambda *_: None)

    @engine.on(Events.EPOCH_COMPLETED)
    def _publish(engine: Engine) -> None:
        engine.state.rate = 0.25 * engine.state.epoch
        engine.state.tensor = torch.tensor(3.5)
        engine.state.nothing = float("nan")
        engine.state.metrics.update(loss=2.0, broken=float("inf"), several=torch.ones(2))

    return engine


def test_a_line_per_epoch(tmp_path: Path) -> None:
    path = tmp_path / "new" / "history.jsonl"
    trainer = _trainer()
    names = ["rate", "tensor", "nothing", "unpublished"]
    HistoryHandler(str(path), names).attach(trainer)
    trainer.run([0, 0, 0], max_epochs=2)
    first, second = _lines(path)
    assert (first["phase"], first["epoch"], first["iteration"]) == ("train", 1, 3)
    assert (second["epoch"], second["iteration"]) == (2, 6)
    assert (first["rate"], second["rate"], second["tensor"]) == (0.25, 0.5, 3.5)
    assert second["nothing"] is None and second["unpublished"] is None
    assert second["metrics"] == {"loss": 2.0, "broken": None, "several": None}
    assert second["seconds"] >= 0


def test_a_resumed_run_goes_on_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    for _ in range(2):
        trainer = _trainer()
        HistoryHandler(path).attach(trainer)
        trainer.run([0], max_epochs=1)
    assert len(_lines(path)) == 2


def test_evaluator_lines_have_the_epoch_of_the_trainer(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": torch.zeros(1, 1, 4), "label": torch.zeros(1, 1, 4)}],
        network=torch.nn.Identity(),
        val_handlers=[HistoryHandler(path)],
    )
    trainer = _trainer()
    ValidationHandler(interval=2, validator=evaluator).attach(trainer)
    HistoryHandler(path, ["rate"]).attach(trainer)
    trainer.run([0], max_epochs=4)
    found = [(line["phase"], line["epoch"]) for line in _lines(path)]
    assert found == [
        ("train", 1),
        ("validation", 2),
        ("train", 2),
        ("train", 3),
        ("validation", 4),
        ("train", 4),
    ]


def test_only_process_0_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ignite.distributed.get_rank", lambda: 1)
    trainer = _trainer()
    HistoryHandler(tmp_path / "history.jsonl").attach(trainer)
    trainer.run([0], max_epochs=1)
    assert not list(tmp_path.iterdir())
