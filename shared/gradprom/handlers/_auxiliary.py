"""The recognition branch: from the enhanced image to the gradient at the enhanced image."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradprom.errors import InputError

__all__ = ["CLEAN", "AuxiliaryBranch", "outside_autocast", "plain"]

CLEAN = "clean"


def plain(tensor: Tensor) -> Tensor:
    """Return a plain tensor in place of a MetaTensor, in the same graph."""
    return tensor.as_subclass(torch.Tensor)


def outside_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which autocast is off, as backward passes require."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


class AuxiliaryBranch:
    """Recogniser, its loss, its target and, when it learns, its optimizer.

    The graph of the recogniser starts at a detached copy of the enhanced image and is freed before
    the enhancement network is run backwards.

    Args:
        recogniser: maps [B, C, H, W(, D)] to an answer that ``loss`` understands.
        loss: callable (answer, target) -> tensor.
        target: key of the batch, or ``clean``.
        optimizer: of the recogniser's own parameters; None keeps the recogniser frozen.
    """

    def __init__(
        self,
        recogniser: nn.Module,
        loss: Callable[[Any, Any], Tensor],
        target: str,
        optimizer: torch.optim.Optimizer | None,
    ) -> None:
        self.recogniser = recogniser
        self.loss = loss
        self.target = target
        self.optimizer = optimizer
        self._warned = False

    @property
    def learns(self) -> bool:
        """Whether the recogniser has an optimizer."""
        return self.optimizer is not None

    def zero_grad(self) -> None:
        """Forget the recogniser's gradients."""
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)

    def pull(
        self, engine: SupervisedTrainer, pred: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Return the gradient at the enhanced image and the loss.

        The first is d(scale * loss * n / B) / d(pred), float32, shape of ``pred``, where n of the
        B items have a target; the second is the loss over those n items. A learning recogniser's
        own gradients are accumulated on the way. None if no item has a target.

        Args:
            engine: the trainer, for the batch and the device.
            pred: enhanced image, [B, C, H, W(, D)].
            scale: loss scale divided by the number of accumulated micro-batches.
        """
        if self.recogniser.training != self.learns:
            # The trainer switches the mode of its own network only, validation may switch ours.
            self.recogniser.train(self.learns)
        leaf = plain(pred).detach().float().requires_grad_()
        target, present = self._find_target(engine, len(leaf))
        if target is None or not present:
            self._without_target(leaf)
            return None
        partial = len(present) < len(leaf)
        inputs = _rows(leaf, present) if partial else leaf
        answer = self.recogniser(inputs)
        loss = self.loss(answer, _rows(target, present) if partial else target).mean().float()
        weighted = loss * (len(present) / len(leaf)) if partial else loss
        return self._backward(weighted * scale, leaf), loss.detach()

    def step(self, scale: Tensor) -> Tensor | None:
        """Step the recogniser and return whether its gradients were finite, on the device.

        If any is not, all are replaced by zeros. None, and no step, without gradients.
        """
        if self.optimizer is None:
            return None
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        grads = [p.grad for p in params if p.grad is not None]
        if not grads:
            return None
        torch._foreach_mul_(grads, 1.0 / scale)
        finite = torch.stack(torch._foreach_norm(grads, float("inf"))).isfinite().all()
        for grad in grads:
            grad.masked_fill_(~finite, 0.0)
        self.optimizer.step()
        return finite

    def _backward(self, loss: Tensor, leaf: Tensor) -> Tensor:
        if not loss.requires_grad:
            raise InputError(
                "auxiliary_loss has no gradient, so the gate has nothing to decide on; remove what "
                "cuts it (argmax, detach, no_grad) from the recogniser or the loss."
            )
        with outside_autocast(leaf.device):
            if not self.learns:
                return torch.autograd.grad(loss, leaf)[0]
            # Not autograd.grad: only backward() fires the hooks by which DDP reduces gradients.
            loss.backward()
        if leaf.grad is None:
            raise InputError(
                "auxiliary_loss does not depend on the enhanced image; the recogniser must be "
                "applied to it without detach or no_grad."
            )
        return leaf.grad

    def _find_target(self, engine: SupervisedTrainer, size: int) -> tuple[Tensor | None, list[int]]:
        """Return the target, None if there is none, and the numbers of the items that have one."""
        if self.target == CLEAN:
            clean = engine.state.output.get("label")
            if not isinstance(clean, Tensor):
                return None, []
            with torch.no_grad():
                return self.recogniser(plain(clean).float()), list(range(size))
        batch = engine.state.batch
        target = batch.get(self.target) if isinstance(batch, Mapping) else None
        if target is None:
            return None, []
        if not isinstance(target, Tensor):
            raise InputError(
                f"auxiliary_target {self.target!r} of the batch must be a tensor, "
                f"got {type(target).__name__}; convert it with EnsureTyped."
            )
        flags = batch.get(f"{self.target}_present", [True] * size)
        flags = flags.tolist() if isinstance(flags, Tensor) else flags
        target = plain(target).to(engine.state.device, non_blocking=engine.non_blocking)
        return target, [i for i, flag in enumerate(flags) if flag]

    def _without_target(self, leaf: Tensor) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"No item of this batch has the auxiliary target {self.target!r}: the gate is off "
                "for such batches; this is said once.",
                stacklevel=2,
            )
        if self.learns and isinstance(self.recogniser, DistributedDataParallel):
            # Other ranks may have targets, and their all-reduce waits for this rank's gradients.
            sums = [part.float().sum() for part in _tensors(self.recogniser(leaf))]
            (torch.stack(sums).sum() * 0.0).backward()


def _rows(batch: Tensor, rows: list[int]) -> Tensor:
    # Slices, since an index made from a Python list would be copied to the device.
    return torch.cat([batch[i : i + 1] for i in rows])


def _tensors(answer: object) -> Iterator[Tensor]:
    if isinstance(answer, Tensor):
        yield answer
    elif isinstance(answer, Mapping):
        yield from (t for part in answer.values() for t in _tensors(part))
    elif isinstance(answer, (list, tuple)):
        yield from (t for part in answer for t in _tensors(part))
