"""One training step of each kind on MONAI's stock trainer, with the networks of a bundle."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.engines import IterationEvents, SupervisedTrainer
from monai.utils import set_determinism
from torch import Tensor, nn

from gradprom.handlers import GradPromHandler

BUNDLES = Path(__file__).parents[1] / "bundles"
ARMS = ("joint", "gradprom", "joint, frozen", "gradprom, frozen", "pcgrad")
"""Kinds of step. `frozen`: the recogniser does not learn. `pcgrad`: TorchJD's, it learns."""


@dataclass
class Parts:
    """What every kind of step has in common; made from one seed, so that all arms are alike."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Tensor, Tensor], Tensor]
    recogniser: nn.Module
    recogniser_optimizer: torch.optim.Optimizer | None
    auxiliary_loss: Callable[[Tensor, Tensor], Tensor]
    batch: dict[str, Tensor]
    device: torch.device

    def auxiliary(self, pred: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """The recognition loss of `pred`, [B, C, H, W(, D)]."""
        return self.auxiliary_loss(self.recogniser(pred), batch["recognition"].to(self.device))


class Joint:
    """The honest baseline: both losses are added, and one backward pass serves both networks."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def attach(self, engine: Engine) -> None:
        """Register both halves of the step."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.add)
        if self.parts.recogniser_optimizer:
            engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self.step)

    def add(self, engine: Engine) -> None:
        """Add the recognition loss to the enhancement loss."""
        if self.parts.recogniser_optimizer:
            self.parts.recogniser_optimizer.zero_grad()
        state: Any = engine.state
        loss = self.parts.auxiliary(state.output["pred"], state.batch)
        state.output["loss"] = state.output["loss"] + loss

    def step(self, engine: SupervisedTrainer) -> None:
        """Step the recogniser, through the trainer's scaler under mixed precision."""
        optimizer: Any = self.parts.recogniser_optimizer
        if engine.amp and engine.scaler:
            engine.scaler.step(optimizer)
        else:
            optimizer.step()


def make_parts(dims: int, frozen: bool, device: torch.device) -> Parts:
    """Networks, losses, patch and batch size of the bundle in `dims` dimensions, with random data.

    The weights are random too: what a step costs does not depend on their values.
    """
    set_determinism(0)
    bundle = BUNDLES / f"gradprom_mni152_{dims}d"
    config = ConfigParser(ConfigParser.load_config_file(bundle / "configs" / "train.json"))
    network, recogniser = (
        config.get_parsed_content(f"{name}_def").to(device) for name in ("network", "recogniser")
    )
    recogniser.requires_grad_(not frozen).train(not frozen)
    shape = (config["batch_size"], 1, *config["patch_size"])
    batch = {name: torch.rand(shape) for name in ("image", "label")}
    return Parts(
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), 1e-4),
        loss=config.get_parsed_content("train#loss"),
        recogniser=recogniser,
        recogniser_optimizer=None if frozen else torch.optim.Adam(recogniser.parameters(), 1e-4),
        auxiliary_loss=config.get_parsed_content("train#auxiliary_loss"),
        batch={**batch, "recognition": torch.randint(0, 4, shape).float()},
        device=device,
    )


def make_trainer(
    arm: str, dims: int, device: torch.device, steps: int, amp: str
) -> SupervisedTrainer:
    """A stock trainer for one of `ARMS` that stops after each step; the first `run` starts it."""
    parts = make_parts(dims, "frozen" in arm, device)
    handlers: list[Any] = []
    if arm.startswith("joint"):
        handlers = [Joint(parts)]
    elif arm.startswith("gradprom"):
        handlers = [
            GradPromHandler(
                parts.recogniser,
                parts.auxiliary_loss,
                recogniser_optimizer=parts.recogniser_optimizer,
            )
        ]
    trainer = SupervisedTrainer(
        device=device,
        max_epochs=1,
        train_data_loader=[parts.batch] * steps,
        network=parts.network,
        optimizer=parts.optimizer,
        loss_function=parts.loss,
        iteration_update=pcgrad(parts) if arm == "pcgrad" else None,
        train_handlers=handlers,
        amp=amp != "off",
        amp_kwargs={"dtype": getattr(torch, {"bf16": "bfloat16"}.get(amp, "float16"))},
    )
    trainer.logger.setLevel("WARNING")  # it tells of every interruption
    trainer.add_event_handler(Events.ITERATION_COMPLETED, trainer.interrupt)
    return trainer


def run_step(trainer: SupervisedTrainer) -> None:
    """Run one step. MONAI's `run` makes a new loss scaler each time, Ignite's keeps it."""
    if trainer.state.iteration > 0:
        Engine.run(trainer)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI's name of the scaler is an old one
        trainer.run()


def finish(trainer: SupervisedTrainer) -> None:
    """End the epoch after its last step, which the interruption has left open."""
    Engine.run(trainer)


def pcgrad(parts: Parts) -> Callable[[Any, dict[str, Tensor]], dict[str, Tensor]]:
    """A step by PCGrad (Yu et al., arXiv 2001.06782) as TorchJD computes it.

    Raises:
        ModuleNotFoundError: TorchJD, a development dependency, is not installed.
    """
    from torchjd.aggregation import PCGrad
    from torchjd.autojac import jac_to_grad, mtl_backward

    optimizer: Any = parts.recogniser_optimizer

    def update(engine: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:  # noqa: ANN401
        image, label = engine.prepare_batch(batch, engine.state.device, engine.non_blocking)
        engine.network.train()
        engine.optimizer.zero_grad()
        optimizer.zero_grad()
        pred = engine.inferer(image, engine.network)
        losses = [engine.loss_function(pred, label), parts.auxiliary(pred, batch)]
        shared = list(engine.network.parameters())
        heads: list[list[Tensor]] = [[], list(parts.recogniser.parameters())]
        mtl_backward(losses, pred, tasks_params=heads, shared_params=shared)
        jac_to_grad(shared, PCGrad())
        engine.optimizer.step()
        optimizer.step()
        return {"image": image, "label": label, "pred": pred, "loss": losses[0]}

    return update
