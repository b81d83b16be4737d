"""Task-driven medical image quality enhancement for MONAI.

An enhancement network is trained so that the clinic's next step, a recognition network, profits
from it. The tour:

- :mod:`gradprom.gradients`: the mathematics of the gate, pure functions on tensors.
- :mod:`gradprom.handlers`: ``GradPromHandler`` and what stands beside it in ``train#handlers``.
- :mod:`gradprom.networks`, :mod:`gradprom.losses`, :mod:`gradprom.transforms`,
    :mod:`gradprom.inferers`,
  :mod:`gradprom.metrics`, :mod:`gradprom.data`: the parts that bundle configs name.
- :mod:`gradprom.bundle`: the checks that every bundle runs first.
- :mod:`gradprom.apps`: what ``python -m gradprom`` offers.

``import gradprom`` alone is fast; a subpackage is imported when it is first named.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from gradprom.version import __version__

SUBPACKAGES = (
    "apps",
    "bundle",
    "data",
    "errors",
    "gradients",
    "handlers",
    "inferers",
    "losses",
    "metrics",
    "networks",
    "transforms",
)

__all__ = ["__version__"]


def __getattr__(name: str) -> ModuleType:
    # Config expressions say `gradprom.data.load_datalist` after `$import gradprom`.
    if name in SUBPACKAGES:
        return import_module(f"gradprom.{name}")
    raise AttributeError(f"module 'gradprom' has no attribute {name!r}")
