"""What the stock trainer is doing at the moment."""

from __future__ import annotations

import torch
from monai.engines import SupervisedTrainer
from torch import Tensor, nn
from torch.amp.grad_scaler import OptState
from torch.nn.parallel import DistributedDataParallel

__all__ = [
    "bare",
    "ends_window",
    "is_compiled",
    "keep_buffers",
    "primary_scale",
    "scaler_enabled",
    "starts_window",
    "unwrap",
]


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside ``torch.compile``."""
    inner = getattr(module, "_orig_mod", module)
    assert isinstance(inner, nn.Module)
    return inner


def bare(module: nn.Module) -> nn.Module:
    """Return the module inside compile and DDP, whose state dict has plain names."""
    module = unwrap(module)
    return unwrap(module.module) if isinstance(module, DistributedDataParallel) else module


def is_compiled(module: nn.Module) -> bool:
    """Return whether the module or a part of it went through ``torch.compile``."""
    return any(
        hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None
        for part in module.modules()
    )


def keep_buffers() -> None:
    """Let compiled networks be run backwards twice.

    A backward that was compiled while the gate was not in use (before the first epoch of the gate,
    in a batch without target) donates its buffers and then refuses ``retain_graph=True``.
    """
    from torch._functorch import config  # not at the top: only compiled networks need it

    config.donated_buffer = False


def _position(engine: SupervisedTrainer) -> int:
    """Return the number of this micro-batch in its epoch, from 0, as the trainer counts."""
    index, length = engine.state.iteration - 1, engine.state.epoch_length
    return int(index if length is None else index % length)


def starts_window(engine: SupervisedTrainer) -> bool:
    """Return whether the trainer has just zeroed its gradients."""
    return _position(engine) % engine.accumulation_steps == 0


def ends_window(engine: SupervisedTrainer) -> bool:
    """Return whether the trainer is about to step its optimizer."""
    done = _position(engine) + 1
    return done % engine.accumulation_steps == 0 or done == engine.state.epoch_length


def scaler_enabled(engine: SupervisedTrainer) -> bool:
    """Return whether the trainer scales its loss; it makes a new scaler at each ``run()``."""
    return engine.scaler is not None and engine.scaler.is_enabled()


def primary_scale(engine: SupervisedTrainer, device: torch.device) -> Tensor:
    """Return the factor that is still in the trainer's gradients, without dimension, on device."""
    one = torch.ones((), device=device)
    if engine.scaler is None or not scaler_enabled(engine):
        return one
    # A handler before ours may have unscaled already, to clip.
    state = engine.scaler._per_optimizer_states.get(id(engine.optimizer), {})
    return one if state.get("stage") is OptState.UNSCALED else engine.scaler.scale(one)
