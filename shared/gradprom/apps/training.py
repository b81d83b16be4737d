"""Trains a bundle in this process and hands out its networks."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import monai.bundle
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from torch import Tensor, nn
from tqdm import tqdm

import gradprom
from gradprom.bundle import find_input_error
from gradprom.errors import InputError
from gradprom.networks import load_weights
from gradprom.transforms.intensity import affine_map, inverse_affine_map, robust_range


@dataclass(frozen=True)
class Arm:
    """One training run: its name in tables, what it is, and the overlays that make it."""

    name: str
    rule: str
    overlays: tuple[str, ...]


GRADPROM = Arm("GradProm", "gradprom", ("demo.json",))
OFF = Arm("No gate (off)", "off", ("enhancement_only.json", "demo.json"))


@dataclass(frozen=True)
class Run:
    """Where a finished run left its weights, its history (one entry per line) and its minutes."""

    arm: Arm
    weights: Path
    history: list[dict[str, Any]]
    minutes: float


class ProgressBar:
    """Handler: a bar with the epochs done, the time left and how often the gate was on."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Open at the start, move at each epoch's end, close at the end."""
        engine.add_event_handler(Events.STARTED, self.open)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.move)
        engine.add_event_handler(Events.COMPLETED, self.close)

    def open(self, engine: Engine) -> None:
        """Show an empty bar."""
        # A log file would fill with a line for every redraw.
        interval = 0.2 if sys.stderr.isatty() else 15.0
        self.bar = tqdm(
            total=engine.state.max_epochs,
            initial=engine.state.epoch,
            desc=self.label,
            unit="epoch",
            mininterval=interval,
        )

    def move(self, engine: Engine) -> None:
        """One more epoch."""
        rate = getattr(engine.state, "gradprom_on_rate", None)
        if self.bar is not None:
            if rate is not None and rate == rate:  # nan while the gate is not in use
                self.bar.set_postfix_str(f"gate on {rate:.0%}", refresh=False)
            self.bar.update()

    def close(self) -> None:
        """Leave the full bar on the screen."""
        if self.bar is not None:
            self.bar.close()


def find_bundle(dims: int, bundle: str | None) -> Path:
    """The bundle's folder: `bundle`, or the one in ./bundles or in the checkout of this package.

    Raises:
        InputError: it has no configs/train.json or no configs/demo.json.
    """
    name = Path("bundles") / f"gradprom_mni152_{dims}d"
    checkout = Path(gradprom.__file__).parents[2]  # of an editable installation
    places = [Path(bundle)] if bundle else [Path.cwd() / name, checkout / name]
    for place in places:
        if all((place / "configs" / file).is_file() for file in ("train.json", "demo.json")):
            return place.absolute()
    raise InputError(
        f"{places[0]} is not a bundle with configs/train.json and configs/demo.json; "
        "run the demo in the repository's folder or give --bundle PATH."
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """No log lines and no warnings around the bar; an error is raised, not logged as well."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def train(bundle: Path, arm: Arm, output: Path, label: str, **overrides: Any) -> Run:  # noqa: ANN401
    """One `monai.bundle run` of train.json under the arm's overlays and with a progress bar.

    Args:
        bundle: its folder.
        arm: which rule.
        output: a fresh folder for checkpoints, weights and history.
        label: what stands before the bar.
        overrides: top-level keys of train.json, e.g. `seed=1`.

    Raises:
        InputError: what the bundle's own check found.
    """
    output.mkdir(parents=True, exist_ok=True)
    progress = output / "progress.json"
    handler = {"_target_": "gradprom.apps.training.ProgressBar", "label": label}
    progress.write_text(json.dumps({"+train#handlers": [handler]}), encoding="utf-8")
    names = ("train.json", *arm.overlays)
    files = [*(str(bundle / "configs" / name) for name in names), str(progress)]
    start = perf_counter()
    with _quiet():
        try:
            monai.bundle.run(
                config_file=files, bundle_root=str(bundle), output_dir=str(output), **overrides
            )
        except Exception as error:
            found = find_input_error(error)  # MONAI's parser wraps it in errors of its own
            raise (found or error) from error
    lines = (output / "history.jsonl").read_text(encoding="utf-8").splitlines()
    history = [json.loads(line) for line in lines]
    return Run(arm, output / "model.pt", history, (perf_counter() - start) / 60)


def network(bundle: Path, key: str, weights: Path, overlays: Sequence[str] = ()) -> nn.Module:
    """The network that `key` of the bundle's train.json defines, with weights, frozen."""
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / name) for name in ("train.json", *overlays)])
    parser["bundle_root"] = str(bundle)
    found: nn.Module = load_weights(parser.get_parsed_content(key), weights)
    return found.requires_grad_(False).eval()


def normalised(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network behind inference's own normalisation: [1, H, W(, D)] in any unit to the same."""

    def enhance(image: Tensor) -> Tensor:
        shift, scale = robust_range(image)
        with torch.no_grad():
            answer = network(affine_map(image, shift, scale)[None])[0]
        return inverse_affine_map(answer, shift, scale)

    return enhance
