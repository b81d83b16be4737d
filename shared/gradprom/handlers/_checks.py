"""What the gate refuses, each case because it would go wrong in silence."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine
from monai.engines import SupervisedTrainer
from torch.nn.parallel import DistributedDataParallel

from gradprom.errors import InputError
from gradprom.handlers._auxiliary import CLEAN, AuxiliaryBranch
from gradprom.handlers._trainer import unwrap

__all__ = ["agree_across_ranks", "check_branch", "check_network", "check_trainer"]


def _parameter_ids(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def check_trainer(engine: Engine) -> None:
    """Refuse an engine whose iteration is not the stock one, or that has a gate already.

    Raises:
        TypeError: not a ``SupervisedTrainer``.
        ValueError: another iteration, or a second gate.
    """
    if not isinstance(engine, SupervisedTrainer):
        raise TypeError(
            "GradPromHandler joins monai.engines.SupervisedTrainer, "
            f"got {type(engine).__name__}; use the stock trainer."
        )
    if getattr(engine._process_function, "__func__", None) is not SupervisedTrainer._iteration:
        raise InputError(
            "GradPromHandler relies on the order of events in SupervisedTrainer's own iteration; "
            "remove iteration_update, or the _iteration of the subclass."
        )
    if hasattr(engine.state, "gradprom_cosine"):
        raise InputError("This trainer has a GradPromHandler already; keep one entry of it.")


def check_network(engine: SupervisedTrainer) -> None:
    """Refuse networks for which the auxiliary gradient would be wrong.

    Raises:
        ValueError: no trainable parameter, parameters that the trainer's optimizer does not have,
            DDP with static_graph, or a sharded network.
    """
    network = unwrap(engine.network)
    # DDP queues the first iteration's delayed all-reduce in whichever backward comes first: ours.
    if isinstance(network, DistributedDataParallel) and network.static_graph:
        raise InputError("GradPromHandler cannot work with DDP's static_graph=True; set it False.")
    if any("FSDP" in c.__name__ or "FullySharded" in c.__name__ for c in type(network).__mro__):
        raise InputError("GradPromHandler cannot work with FSDP; wrap the network in DDP instead.")
    held = _parameter_ids(engine.optimizer)
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    if not named:
        raise InputError("The trainer's network has no trainable parameter; nothing to gate.")
    missing = [name for name, p in named if id(p) not in held]
    if missing:
        raise InputError(
            f"The trainer's optimizer lacks {len(missing)} trainable parameters of the network, "
            f"{missing[0]} first; give it all of network.parameters(), or freeze the others."
        )


def check_branch(engine: SupervisedTrainer, branch: AuxiliaryBranch) -> None:
    """Refuse recognisers that the trainer would step or that would go wrong under DDP.

    Raises:
        ValueError: see the messages.
    """
    params = list(branch.recogniser.parameters())
    ids = {id(p) for p in params}
    if ids & {id(p) for p in engine.network.parameters()}:
        raise InputError(
            "recogniser shares parameters with the trainer's network; give it its own."
        )
    if ids & _parameter_ids(engine.optimizer):
        raise InputError(
            "recogniser has parameters in the trainer's optimizer; give them an optimizer of their "
            "own as recogniser_optimizer."
        )
    device = engine.state.device
    if params and device is not None and params[0].device.type != device.type:
        raise InputError(
            f"recogniser is on {params[0].device} and the trainer on {device}; "
            "move it there with .to(@device)."
        )
    wrapped = isinstance(unwrap(branch.recogniser), DistributedDataParallel)
    if branch.optimizer is None:
        if wrapped:
            raise InputError(
                "A frozen recogniser must not be wrapped in DDP; pass the bare module."
            )
        return
    if branch.target == CLEAN:
        raise InputError("auxiliary_target clean needs a frozen recogniser; drop its optimizer.")
    _check_learning(engine, branch.optimizer, ids, wrapped)


def _check_learning(
    engine: SupervisedTrainer, optimizer: torch.optim.Optimizer, ids: set[int], wrapped: bool
) -> None:
    held = _parameter_ids(optimizer)
    if not held <= ids:
        raise InputError("recogniser_optimizer must hold parameters of the recogniser only.")
    network = unwrap(engine.network)
    if wrapped or not isinstance(network, DistributedDataParallel):
        return
    if torch.distributed.get_world_size(network.process_group) > 1:
        raise InputError(
            "A learning recogniser must be wrapped in DDP like the network, or its copies drift "
            "apart; wrap it, or drop recogniser_optimizer."
        )


def agree_across_ranks(engine: SupervisedTrainer, settings: dict[str, Any]) -> None:
    """Refuse processes whose gates are set differently.

    Args:
        engine: the trainer; only a network in DDP has other processes.
        settings: what has to be equal.

    Raises:
        ValueError: names the first setting that differs.
    """
    network = unwrap(engine.network)
    if not isinstance(network, DistributedDataParallel):
        return
    group = network.process_group
    everyone: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(everyone, settings, group=group)
    for rank, other in enumerate(everyone):
        for key, value in settings.items():
            if other.get(key) != value:
                raise InputError(
                    f"GradPromHandler differs between processes: {key} is {value!r} here and "
                    f"{other.get(key)!r} on rank {rank}; use one configuration for all."
                )
