"""Assertions that several test modules share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["NoHostAccess", "assert_keeps_descent", "largest_difference"]

_ROUND = torch.finfo(torch.float32).eps / 2  # unit roundoff
_TINY = 2.0**-149  # smallest float32: below the normal range the error is absolute


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1).double() for t in tensors])


def assert_keeps_descent(
    primary: Sequence[Tensor], auxiliary: Sequence[Tensor], d: Sequence[Tensor], weight: float
) -> None:
    """Assert <g, d> >= |g|^2 up to the rounding of d in float32.

    Each element of d is rounded three times (w, product, sum), each time by at most one unit
    roundoff of the terms.
    """
    g, h, d_flat = _flat(primary), _flat(auxiliary), _flat(d)
    allowed = g.abs() @ (4 * _ROUND * (g.abs() + weight * h.abs()) + 4 * _TINY)
    assert g @ d_flat >= g @ g - allowed, f"<g, d> = {g @ d_flat:.3e} < |g|^2 = {g @ g:.3e}"


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Return the largest absolute difference of two state dicts with equal keys."""
    assert first.keys() == second.keys()
    return max(float((first[k].double() - second[k].double()).abs().max()) for k in first)


class _NoHostTensors(TorchFunctionMode):
    """Raises where numbers of the host become a tensor on an accelerator."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        del types
        out = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor):
            assert isinstance(out, Tensor)
            assert out.device.type == "cpu", "torch.tensor copies a number to the device"
        return out


class NoHostAccess(TorchDispatchMode):
    """Raises where a value is read by the host, or a tensor copied between devices.

    On a GPU each of these makes the host wait for the device, as do operators whose output size
    depends on values, and ``torch.tensor(number, device=...)``, which copies. Tensors on ``meta``
    stand for those on an accelerator.
    """

    FORBIDDEN = (
        "aten::_local_scalar_dense",
        "aten::is_nonzero",
        "aten::item",
        "aten::equal",
        "aten::nonzero",
        "aten::masked_select",
        "aten::_unique2",
    )

    def __enter__(self) -> NoHostAccess:
        self._numbers = _NoHostTensors()
        self._numbers.__enter__()
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._numbers.__exit__(*error)

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        del types
        name = func._schema.name
        assert name not in self.FORBIDDEN, f"{name} reads a value on the host"
        if name == "aten::index":
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            assert not masks, "a mask as index makes the size depend on values"
        out = func(*args, **(kwargs or {}))
        if name in ("aten::_to_copy", "aten::copy_", "aten::_copy_from"):
            devices = {t.device.type for t in (*args, out) if isinstance(t, Tensor)}
            assert len(devices) == 1, f"{name} copies between {devices}"
        return out
