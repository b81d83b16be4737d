"""The auxiliary gradient with respect to the enhancement network."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradprom.errors import InputError
from gradprom.gradients import flatten
from gradprom.handlers._auxiliary import outside_autocast, plain

__all__ = ["NetworkGradient"]


class NetworkGradient:
    """Collects h over the micro-batches of one optimizer step, in one flat float32 buffer.

    Args:
        network: the trainer's network, without the wrapper of ``torch.compile``.
    """

    def __init__(self, network: nn.Module) -> None:
        named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in named]
        self.params = [p for _, p in named]
        self._ddp = network if isinstance(network, DistributedDataParallel) else None
        self._reached: list[bool] | None = None
        self._sum: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.params[0].device

    @property
    def numel(self) -> int:
        """Number of gated parameters."""
        return sum(p.numel() for p in self.params)

    def forget(self) -> None:
        """Begin a step."""
        self._sum = None

    def add(self, pred: Tensor, pull: Tensor) -> None:
        """Add a micro-batch; its graph is kept for the trainer's own backward.

        Args:
            pred: enhanced image with its graph, [B, C, H, W(, D)].
            pull: gradient at the enhanced image, same shape.

        Raises:
            ValueError: no parameter is reached, as in reentrant checkpoints.
        """
        with outside_autocast(pred.device):
            parts = torch.autograd.grad(
                plain(pred), self.params, pull.to(pred.dtype), retain_graph=True, allow_unused=True
            )
        reached = [part is not None for part in parts]
        if self._reached is None:
            self._check(reached)
        self._reached = reached
        h = flatten(parts, self.params)
        self._sum = h if self._sum is None else self._sum.add_(h)

    def reduced(self) -> Tensor:
        """Return the step's h, the mean over the processes of DDP; zeros if nothing was added."""
        h = self._sum
        if h is None:
            h = torch.zeros(self.numel, device=self.device)
        if self._ddp is not None:
            # DDP reduces only what backward() of the trainer's loss brings; and every process has
            # to take part, with or without targets, and to decide on the same numbers.
            torch.distributed.all_reduce(h, group=self._ddp.process_group)
            h /= torch.distributed.get_world_size(self._ddp.process_group)
        return h

    def primary(self) -> list[Tensor]:
        """Return the trainer's gradients, made where only the auxiliary loss has one."""
        for p, reached in zip(self.params, self._reached or [], strict=False):
            if p.grad is None and reached:
                p.grad = torch.zeros_like(p)
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]

    def _check(self, reached: list[bool]) -> None:
        if not any(reached):
            raise InputError(
                "The auxiliary gradient reaches no parameter of the network; "
                "use torch.utils.checkpoint with use_reentrant=False."
            )
        unused = [name for name, r in zip(self.names, reached, strict=True) if not r]
        if unused:
            warnings.warn(
                f"The auxiliary gradient does not reach {len(unused)} parameters of the network: "
                f"{', '.join(unused)}; right if they are unused, wrong if they are in a reentrant "
                "checkpoint (set use_reentrant=False).",
                stacklevel=2,
            )
