"""A run that is stopped and continued from its state dicts equals one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.handlers import LrScheduleHandler

from gradprom.handlers import GradPromHandler
from tests.properties import largest_difference
from tests.unit.handlers.rig import (
    At,
    Record,
    cpu_scaler,
    make_batches,
    make_handler,
    make_network,
    make_recogniser,
    make_trainer,
)

EPOCHS, STEPS = 4, 6
SCHEDULERS = {
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.95**step),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.3, EPOCHS * STEPS),
}


class Run:
    """Everything that takes part in a training run."""

    def __init__(self, scheduler: str, learns: bool, scaled: bool) -> None:
        self.network, self.recogniser, self.record = make_network(), make_recogniser(), Record()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.01)
        self.scheduler = SCHEDULERS[scheduler](self.optimizer)
        # Two epochs of random decisions, of which a continued run must see the second half.
        settings: dict[str, Any] = {"rule": "random", "on_rate": 0.5, "seed": 3}
        if learns:
            learning = torch.optim.Adam(self.recogniser.parameters(), lr=0.01)
            settings["recogniser_optimizer"] = learning
        self.gate = make_handler(self.recogniser, **settings)
        handlers = [self.gate, LrScheduleHandler(self.scheduler, False, epoch_level=False)]
        handlers += [self.record] + ([cpu_scaler()] if scaled else [])
        self.trainer = make_trainer(
            self.network, make_batches(count=STEPS), handlers, EPOCHS, optimizer=self.optimizer
        )

    def parts(self) -> dict[str, Any]:
        names = ("network", "optimizer", "scheduler", "gate", "trainer")
        return {name: getattr(self, name) for name in names}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(("learns", "scaled"), [(False, False), (True, False), (True, True)])
def test_resumed_run_equals_straight_run(
    scheduler: str, learns: bool, scaled: bool, tmp_path: Path
) -> None:
    straight = Run(scheduler, learns, scaled)
    straight.trainer.run()

    first = Run(scheduler, learns, scaled)
    stop = At(Events.EPOCH_COMPLETED(once=2), lambda engine: engine.terminate())
    stop.attach(first.trainer)
    first.trainer.run()
    state = {name: part.state_dict() for name, part in first.parts().items()}
    torch.save(state, tmp_path / "state.pt")

    second = Run(scheduler, learns, scaled)
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    for name, part in second.parts().items():
        part.load_state_dict(loaded[name])
    second.trainer.run()

    pairs = [(straight.network, second.network), (straight.recogniser, second.recogniser)]
    for one, other in pairs:
        assert largest_difference(one.state_dict(), other.state_dict()) == 0.0
    assert first.record.gates + second.record.gates == straight.record.gates
    assert 0 < sum(second.record.gates) < len(second.record.gates)


def test_state_of_a_learning_recogniser_holds_its_optimizer_and_scale() -> None:
    recogniser = make_recogniser()
    handler = make_handler(recogniser, learns=True)
    handlers = [cpu_scaler(), handler]
    make_trainer(make_network(), make_batches(count=5), handlers).run()
    state = handler.state_dict()
    assert state["loss_scale"] == {"scale": 65536.0, "good_steps": 5}
    other = make_recogniser(seed=9)
    fresh = make_handler(other, learns=True)
    fresh.load_state_dict(state)
    assert largest_difference(other.state_dict(), recogniser.state_dict()) == 0.0
    momentum = fresh.branch.optimizer.state_dict()["state"][0]["momentum_buffer"]
    assert torch.equal(momentum, state["recogniser_optimizer"]["state"][0]["momentum_buffer"])


def test_state_of_a_frozen_recogniser_is_the_scale_alone() -> None:
    assert set(make_handler(make_recogniser()).state_dict()) == {"loss_scale"}
    assert isinstance(make_handler(make_recogniser()), GradPromHandler)
