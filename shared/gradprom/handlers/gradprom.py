"""GradProm as one handler of MONAI's stock trainer."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from gradprom.errors import InputError
from gradprom.gradients import Gate, Statistics, check_weight, promote_
from gradprom.handlers._auxiliary import CLEAN, AuxiliaryBranch
from gradprom.handlers._checks import (
    agree_across_ranks,
    check_branch,
    check_network,
    check_trainer,
)
from gradprom.handlers._epoch_sums import EPOCH_ATTRIBUTES, STEP_ATTRIBUTES, EpochSums
from gradprom.handlers._loss_scale import LossScale
from gradprom.handlers._network_gradient import NetworkGradient
from gradprom.handlers._trainer import (
    bare,
    ends_window,
    is_compiled,
    keep_buffers,
    primary_scale,
    scaler_enabled,
    starts_window,
    unwrap,
)
from gradprom.losses.agreement import AgreementLoss

__all__ = ["GradPromHandler"]


class GradPromHandler:
    """Lets a recogniser help to train an enhancement network only where the two agree.

    In each step of ``monai.engines.SupervisedTrainer`` the gradient g of the trainer's loss becomes

        d = g + lambda * w(cos(g, h)) * h,   h = d(auxiliary loss) / d(network parameters),

    with the rules of ``gradprom.gradients``. Source: Zhang and Cheng, "Gradient-Promotion"
    (arXiv 2501.01114); threshold, granularity and the recogniser's own un-gated update are our
    reading of its abstract and figure. With a frozen recogniser and rule ``joint`` this is ESTR
    (arXiv 1910.09185). The inequality <g, d> >= |g|^2 is about the gradient, not about what Adam
    makes of it.

    Works with AMP, ``accumulation_steps`` (one decision for each optimizer step), DDP,
    ``torch.compile``, MetaTensor, non-reentrant checkpointing and repeated ``run()``. Enter it
    before a handler that clips gradients. What a process needs between epochs is ``state_dict``:
    the loss scale and, if it learns, the recogniser and its optimizer.

    Published on ``engine.state``, after each optimizer step as tensors without dimension on the
    training device: ``gradprom_cosine`` (whole model), ``gradprom_gate`` (1 open, 0 shut; with
    granularity ``tensor`` the open fraction), ``gradprom_ratio`` (|h| / |g|, lambda not included).
    At the end of each epoch as floats, for ``state_attributes`` of MONAI's Stats and TensorBoard
    handlers: ``gradprom_mean_cosine`` and ``gradprom_mean_ratio`` over the steps with a finite,
    non-zero h; ``gradprom_on_rate`` over the optimizer steps in which the gate was in use;
    ``gradprom_skipped``, the steps whose auxiliary part was dropped because some number was not
    finite; ``gradprom_auxiliary_loss``, this process's mean. Each is 0 where there was none.

    Args:
        recogniser: network applied to the enhanced image, [B, C, H, W(, D)]; on the trainer's
            device. The handler sets its train() or eval() mode.
        auxiliary_loss: callable (answer, target) -> tensor; default ``AgreementLoss``, for target
            ``clean`` only.
        auxiliary_target: key of the batch, or ``clean``: the frozen recogniser's own answer on the
            trainer's label. A batch without the key shuts the gate, with one warning. If
            ``<key>_present`` is in the batch (see ``MarkMissingd``), items marked False contribute
            nothing.
        weight: lambda, a number >= 0, or a callable from the epoch (from 1) to such a number.
        rule: ``gradprom``, ``weighted``, ``joint``, ``off``, ``inverse`` or ``random``.
        granularity: ``model`` or ``tensor``.
        threshold: cosine at or below which the gate is shut, >= 0.
        start_epoch: first epoch, from 1, in which the gate is used.
        recogniser_optimizer: of the recogniser's parameters, which then learn by the un-gated
            auxiliary loss, from the first epoch and whatever the gate does; None freezes them.
        on_rate: probability that rule ``random`` opens.
        seed: for rule ``random``; a decision is a function of seed and iteration.

    Raises:
        TypeError: ``recogniser`` is not a module, or the engine not a ``SupervisedTrainer``.
        ValueError: an argument out of range; at the start of the run, a trainer, network or
            recogniser for which the result would be wrong.
    """

    def __init__(
        self,
        recogniser: nn.Module,
        auxiliary_loss: Callable[[Any, Any], Tensor] | None = None,
        auxiliary_target: str = "recognition",
        weight: float | Callable[[int], float] = 1.0,
        rule: str = "gradprom",
        granularity: str = "model",
        threshold: float = 0.0,
        start_epoch: int = 1,
        recogniser_optimizer: torch.optim.Optimizer | None = None,
        on_rate: float | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(recogniser, nn.Module):
            raise TypeError(f"recogniser must be a torch module, got {type(recogniser).__name__}.")
        if auxiliary_loss is None and auxiliary_target != CLEAN:
            raise InputError(
                f"auxiliary_loss is missing: auxiliary_target {auxiliary_target!r} needs a loss."
            )
        if start_epoch < 1:
            raise InputError(f"start_epoch counts from 1, got {start_epoch!r}.")
        self.gate = Gate(rule, granularity, threshold, on_rate)
        self.weight = weight if callable(weight) else check_weight(weight)
        self.start_epoch = start_epoch
        self.seed = seed
        self.branch = AuxiliaryBranch(
            recogniser, auxiliary_loss or AgreementLoss(), auxiliary_target, recogniser_optimizer
        )
        self._scale = LossScale()
        self._lambda = 0.0  # of this epoch; 0 while the gate is not in use
        self._generator: torch.Generator | None = None
        self._gradient: NetworkGradient
        self._sums: EpochSums

    def attach(self, engine: Engine) -> None:
        """Join a trainer.

        Raises:
            TypeError: ``engine`` is not a ``SupervisedTrainer``.
            ValueError: its iteration is not the stock one, or it has a gate already.
        """
        check_trainer(engine)
        for name in STEP_ATTRIBUTES + EPOCH_ATTRIBUTES:
            setattr(engine.state, name, 0.0)
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._take_auxiliary)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._gate_step)
        # At the last iteration, so that handlers of EPOCH_COMPLETED find the values wherever they
        # stand in the list; the other events end epochs that have no such iteration.
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._end_iteration)
        for event in (Events.TERMINATE_SINGLE_EPOCH, Events.TERMINATE, Events.EPOCH_COMPLETED):
            engine.add_event_handler(event, self._publish)

    def state_dict(self) -> dict[str, Any]:
        """Return loss scale and, if it learns, the recogniser and its optimizer."""
        state: dict[str, Any] = {"loss_scale": self._scale.state_dict()}
        if self.branch.optimizer is not None:
            state["recogniser"] = bare(self.branch.recogniser).state_dict()
            state["recogniser_optimizer"] = self.branch.optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state.

        Raises:
            ValueError: one of the two recognisers learns and the other is frozen.
        """
        if ("recogniser" in state) != self.branch.learns:
            raise InputError(
                "The saved GradPromHandler and this one differ in recogniser_optimizer: "
                "one recogniser learns, the other is frozen; use the settings of the saved run."
            )
        self._scale.load_state_dict(state["loss_scale"])
        if self.branch.optimizer is not None:
            bare(self.branch.recogniser).load_state_dict(state["recogniser"])
            self.branch.optimizer.load_state_dict(state["recogniser_optimizer"])

    def _start(self, engine: SupervisedTrainer) -> None:
        """Check and set up; runs again at each ``run()``, as in federated rounds."""
        check_network(engine)
        check_branch(engine, self.branch)
        if not self.branch.learns:
            self.branch.recogniser.requires_grad_(False).eval()
        self._gradient = NetworkGradient(unwrap(engine.network))
        self._sums = EpochSums(self._gradient.device)
        agree_across_ranks(engine, self._settings(engine))
        if is_compiled(engine.network):
            keep_buffers()

    def _settings(self, engine: SupervisedTrainer) -> dict[str, Any]:
        return {
            "gate": self.gate,
            "weight": "a schedule" if callable(self.weight) else self.weight,
            "start_epoch": self.start_epoch,
            "seed": self.seed,
            "auxiliary_target": self.branch.target,
            "whether the recogniser learns": self.branch.learns,
            "accumulation_steps": engine.accumulation_steps,
            "number of gated parameters": self._gradient.numel,
        }

    def _start_epoch(self, engine: SupervisedTrainer) -> None:
        epoch = engine.state.epoch
        weight = self.weight(epoch) if callable(self.weight) else self.weight
        in_use = epoch >= self.start_epoch and self.gate.rule != "off"
        self._lambda = check_weight(weight) if in_use else 0.0
        self._sums.start_epoch()

    def _take_auxiliary(self, engine: SupervisedTrainer) -> None:
        """Add this micro-batch's h to the step's; the trainer's backward is still to come."""
        if starts_window(engine):
            self._gradient.forget()
            self.branch.zero_grad()
        if self._lambda == 0 and not self.branch.learns:
            return
        pred = engine.state.output["pred"]
        if not isinstance(pred, Tensor) or not pred.requires_grad:
            raise InputError(
                "GradPromHandler needs the network's answer to be one tensor with a gradient, "
                f"got {type(pred).__name__}; return the enhanced image alone."
            )
        self._scale.prepare(pred.device, scaler_enabled(engine))
        pulled = self.branch.pull(engine, pred, self._scale.value / engine.accumulation_steps)
        if pulled is None:
            return
        pull, loss = pulled
        self._sums.add_loss(loss)
        if self._lambda > 0:
            self._gradient.add(pred, pull)

    @torch.no_grad()
    def _gate_step(self, engine: SupervisedTrainer) -> None:
        """Turn g into d, once for each optimizer step."""
        if not ends_window(engine):
            return
        recogniser_finite = self.branch.step(self._scale.value) if self.branch.learns else None
        statistics = self._promote(engine) if self._lambda > 0 else None
        self._adapt_scale(statistics, recogniser_finite)
        self._sums.add_step(engine.state, statistics, recogniser_finite)
        self._gradient.forget()

    def _promote(self, engine: SupervisedTrainer) -> Statistics:
        h, primary = self._gradient.reduced(), self._gradient.primary()
        unit = primary_scale(engine, h.device) / self._scale.value
        draw = self._draw(engine) if self.gate.rule == "random" else None
        return promote_(primary, h, self.gate, self._lambda, unit, draw)

    def _adapt_scale(self, statistics: Statistics | None, recogniser: Tensor | None) -> None:
        flags = [] if statistics is None else [statistics.auxiliary_finite]
        flags += [] if recogniser is None else [recogniser]
        if flags:
            self._scale.update(torch.stack(flags).all())

    def _draw(self, engine: SupervisedTrainer) -> Tensor:
        """Return uniform numbers that depend on seed and iteration only, equal on all ranks."""
        if self._generator is None:
            self._generator = torch.Generator(self._gradient.device)
        # Hashed, since neighbouring seeds would give the same decisions one iteration apart.
        mixed = random.Random(f"{self.seed} {engine.state.iteration}").getrandbits(31)
        self._generator.manual_seed(mixed)
        decisions = len(self._gradient.params) if self.gate.granularity == "tensor" else 1
        return torch.rand(decisions, generator=self._generator, device=self._gradient.device)

    def _end_iteration(self, engine: SupervisedTrainer) -> None:
        length = engine.state.epoch_length
        if length is not None and engine.state.iteration % length == 0:
            self._publish(engine)

    def _publish(self, engine: SupervisedTrainer, *_: int, **__: int) -> None:
        self._sums.publish(engine.state)
