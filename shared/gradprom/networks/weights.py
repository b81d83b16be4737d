"""Loading a network's weights, strictly."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from gradprom.errors import InputError

__all__ = ["load_weights"]


def load_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """Loads a bare state dict into ``network`` and returns it.

    Only tensors are read (``weights_only``), every key must match, and the file may come from any
    device.

    Raises:
        InputError: if the file is missing, unreadable, or made for another network.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"weights {path} do not exist; train them with the command in the bundle's "
            "docs/README.md or name another file."
        )
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"weights {path} do not fit {type(network).__name__} ({reason}); name the file that "
            "belongs to this bundle."
        ) from error
    return network
