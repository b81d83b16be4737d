"""Tiny networks, data and a plain PyTorch loop with which the handler is compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from ignite.engine import EventEnum, Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedTrainer
from torch import Tensor, nn

from gradprom.handlers import GradPromHandler

CLASSES = 3
LR, RECOGNISER_LR, WEIGHT = 0.2, 0.2, 0.3
Batch = dict[str, Any]


def conv(dims: int, inputs: int, outputs: int) -> nn.Module:
    kind = nn.Conv2d if dims == 2 else nn.Conv3d
    return kind(inputs, outputs, 3, padding=1)


def make_network(dims: int = 2, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(conv(dims, 1, 4), nn.Tanh(), conv(dims, 4, 4), nn.Tanh(), conv(dims, 4, 1))


def make_recogniser(dims: int = 2, seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(conv(dims, 1, 4), nn.Tanh(), conv(dims, 4, CLASSES))


def cross_entropy(answer: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(answer, target[:, 0].long())


def mse(pred: Tensor, label: Tensor) -> Tensor:
    return nn.functional.mse_loss(pred, label)


def make_items(dims: int = 2, count: int = 12, size: int = 6, seed: int = 2) -> list[Batch]:
    """Items of noise; the cosine of such gradients takes both signs."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1,) + (size,) * dims
    return [
        {
            "image": torch.randn(shape, generator=generator),
            "label": torch.randn(shape, generator=generator),
            "recognition": torch.randint(0, CLASSES, shape, generator=generator),
        }
        for _ in range(count)
    ]


def make_batches(
    dims: int = 2, count: int = 6, per_batch: int = 2, **kwargs: object
) -> list[Batch]:
    items = make_items(dims, count * per_batch, **kwargs)
    groups = [items[i : i + per_batch] for i in range(0, len(items), per_batch)]
    return [{k: torch.stack([item[k] for item in group]) for k in group[0]} for group in groups]


def meta_loader(items: Sequence[Batch], per_batch: int = 2) -> DataLoader:
    """A MONAI loader whose batches are MetaTensors."""
    data = [{k: MetaTensor(v) for k, v in item.items()} for item in items]
    return DataLoader(Dataset(data), batch_size=per_batch)


def sgd(module: nn.Module, lr: float) -> torch.optim.SGD:
    return torch.optim.SGD(module.parameters(), lr=lr, momentum=0.5)


@dataclass
class Record:
    """Attached last, keeps what the gate published at each optimizer step."""

    gates: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def attach(self, engine: SupervisedTrainer) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: SupervisedTrainer) -> None:
        self.gates.append(float(engine.state.gradprom_gate))
        self.cosines.append(float(engine.state.gradprom_cosine))
        self.ratios.append(float(engine.state.gradprom_ratio))


class At:
    """Handler that calls a function at an event."""

    def __init__(self, event: EventEnum, function: Callable[[Any], object]) -> None:
        self.event, self.function = event, function

    def attach(self, engine: SupervisedTrainer) -> None:
        engine.add_event_handler(self.event, self.function)


def cpu_scaler(**kwargs: object) -> At:
    """Give the trainer an enabled scaler, as on CUDA, where MONAI makes its own at each run()."""

    def swap(engine: SupervisedTrainer) -> None:
        engine.amp, engine.scaler = True, torch.amp.GradScaler("cpu", **kwargs)
        engine.amp_kwargs = {"enabled": False}  # the trainer's autocast is hard-wired to CUDA

    return At(Events.STARTED, swap)


def make_trainer(
    network: nn.Module,
    data: Iterable[Batch],
    handlers: Sequence[Any],
    epochs: int = 1,
    lr: float = LR,
    **kwargs: object,
) -> SupervisedTrainer:
    kwargs = {"loss_function": mse, "optimizer": sgd(network, lr), **kwargs}
    return SupervisedTrainer("cpu", epochs, data, network, train_handlers=list(handlers), **kwargs)


def make_handler(recogniser: nn.Module, learns: bool = False, **kwargs: object) -> GradPromHandler:
    if learns:
        kwargs["recogniser_optimizer"] = sgd(recogniser, RECOGNISER_LR)
    kwargs = {"auxiliary_loss": cross_entropy, "weight": WEIGHT, **kwargs}
    return GradPromHandler(recogniser, **kwargs)


@dataclass
class Reference:
    """GradProm written out: two gradients from one forward pass, no handler, no trainer."""

    network: nn.Module
    recogniser: nn.Module
    weight: float = WEIGHT
    rule: str = "gradprom"
    threshold: float = 0.0
    learns: bool = False
    window: int = 1
    lr: float = LR
    forward: Callable[[Tensor], Tensor] | None = None
    auxiliary: Callable[[Tensor, Batch], Tensor] | None = None
    cosines: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = sgd(self.network, self.lr)
        self.recogniser_optimizer = sgd(self.recogniser, RECOGNISER_LR)
        self.recogniser.train(self.learns)

    @property
    def gates(self) -> list[float]:
        return [float(c > self.threshold) for c in self.cosines]

    def run(self, batches: Sequence[Batch], epochs: int = 1) -> Reference:
        for _ in range(epochs):
            for i in range(0, len(batches), self.window):
                self.step(batches[i : i + self.window])
        return self

    def step(self, batches: Sequence[Batch]) -> None:
        theta, phi = list(self.network.parameters()), list(self.recogniser.parameters())
        for p in (*theta, *phi):
            p.grad = torch.zeros_like(p)
        h = [torch.zeros_like(p) for p in theta]
        for batch in batches:
            pred = (self.forward or self.network)(batch["image"])
            auxiliary = self._auxiliary(pred.float(), batch) / self.window
            parts = torch.autograd.grad(auxiliary, [*theta, *phi], retain_graph=True)
            h = [a + b for a, b in zip(h, parts[: len(theta)], strict=True)]
            for p, k in zip(phi, parts[len(theta) :], strict=True):
                p.grad += k
            loss = mse(pred, batch["label"]) / self.window
            for p, g in zip(theta, torch.autograd.grad(loss, theta), strict=True):
                p.grad += g
        self._combine(theta, h)
        self.optimizer.step()
        if self.learns:
            self.recogniser_optimizer.step()

    def _auxiliary(self, pred: Tensor, batch: Batch) -> Tensor:
        if self.auxiliary is not None:
            return self.auxiliary(pred, batch)
        return cross_entropy(self.recogniser(pred), batch["recognition"])

    def _combine(self, theta: list[nn.Parameter], h: list[Tensor]) -> None:
        g_flat = torch.cat([p.grad.reshape(-1).double() for p in theta])
        h_flat = torch.cat([x.reshape(-1).double() for x in h])
        c = float(g_flat @ h_flat / (g_flat.norm() * h_flat.norm()))
        self.cosines.append(c)
        opened = float(c > self.threshold)
        w = {"gradprom": opened, "weighted": opened * c, "joint": 1.0, "off": 0.0}[self.rule]
        for p, x in zip(theta, h, strict=True):
            if w:
                p.grad += (self.weight * w) * x
