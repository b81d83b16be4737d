"""One JSON line per epoch: what the gate did and what the metrics were."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.engines import Evaluator


class HistoryHandler:
    """Appends one line of JSON to a file at the end of every epoch.

    Keys: `phase` ("train", or "validation" on a MONAI evaluator), `epoch` (the trainer's, which
    MONAI's ValidationHandler hands on), `iteration`, `seconds` (of this epoch), one key per entry
    of `attributes`, and `metrics` (numbers in `engine.state.metrics`). A trainer and its evaluator
    may share the file. Numbers that are not finite, and attributes that nobody has published,
    become null. Only process 0 writes. A resumed run goes on in the file.

    Args:
        path: the file; missing folders are made.
        attributes: names on `engine.state`, e.g. "gradprom_on_rate". What publishes them at the
            end of the epoch must stand before this handler in the list of handlers.
    """

    def __init__(self, path: str | PathLike[str], attributes: Sequence[str] = ()) -> None:
        self.path = Path(path)
        self.attributes = tuple(attributes)

    def attach(self, engine: Engine) -> None:
        """Register the writing at the end of each epoch."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Append the line of the epoch that has just ended."""
        if idist.get_rank() > 0:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self._line(engine), allow_nan=False) + "\n")

    def _line(self, engine: Engine) -> dict[str, Any]:
        """The epoch as a dictionary that JSON can hold."""
        state = engine.state
        return {
            "phase": "validation" if isinstance(engine, Evaluator) else "train",
            "epoch": state.epoch,
            "iteration": state.iteration,
            "seconds": _number(state.times[Events.EPOCH_COMPLETED.name]),
            **{name: _number(getattr(state, name, None)) for name in self.attributes},
            "metrics": {str(name): _number(value) for name, value in state.metrics.items()},
        }


def _number(value: Any) -> float | None:  # noqa: ANN401 - whatever others publish
    """`value` as a finite float, else None."""
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several elements
        return None
    return number if math.isfinite(number) else None
