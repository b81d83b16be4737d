"""A comparison of tiny images that every part of the report can be made from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradprom.apps import evaluation
from gradprom.apps.evaluation import Case, Comparison


class Levels(nn.Module):
    """Logits of four tissues by the nearest of four grey levels."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        levels = torch.tensor([0.0, 0.4, 0.7, 1.0])
        return -torch.stack([(image[:, 0] - level).square() for level in levels], 1)


def make_cases(dims: int, count: int = 2) -> list[Case]:
    """Nested boxes of three tissues; case k is darker by a little."""
    tissue = torch.zeros(1, 28, 32, *([12] if dims == 3 else []), dtype=torch.long)
    tissue[:, 4:-4, 4:-4], tissue[:, 8:-8, 8:-8], tissue[:, 12:-12, 12:-12] = 1, 2, 3
    clean = torch.tensor([0.0, 0.4, 0.7, 1.0])[tissue]
    return [Case(f"z{k}", clean * (1 - 0.02 * k), tissue) for k in range(count)]


@pytest.fixture(params=[2, 3])
def dims(request: pytest.FixtureRequest) -> int:
    """Spatial dimensions."""
    return int(request.param)


@pytest.fixture
def cases(dims: int) -> list[Case]:
    """Two images."""
    return make_cases(dims)


@pytest.fixture
def results(cases: list[Case]) -> list[Comparison]:
    """All noises, with the identity and a shrinking as networks."""
    enhancers = {"No gate (off)": lambda x: x, "GradProm": lambda x: 0.9 * x + 0.05}
    return [
        evaluation.compare(cases, noise, enhancers, Levels(), seed=0, strength=0.8)
        for noise in evaluation.NOISES
    ]
