"""The classical filters: neutral cases, the oracle really is one, the noise estimate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.filters import gaussian

from gradprom.apps import baselines
from gradprom.apps.evaluation import Case, Noise
from gradprom.metrics import psnr

NOISE = Noise("gaussian", 0.1)


@pytest.mark.parametrize("shape", [(96, 96), (33, 47), (24, 24, 25)])
@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_sigma_is_estimated(shape: tuple[int, ...], sigma: float) -> None:
    ramp = np.linspace(0, 1, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    noisy = ramp + sigma * np.random.default_rng(0).standard_normal(shape)
    assert baselines.estimate_sigma(noisy) == pytest.approx(sigma, rel=0.1)


def test_sigma_without_noise_and_with_a_noiseless_background() -> None:
    assert baselines.estimate_sigma(np.full((8, 8), 3.0)) == 0
    noisy = np.zeros((128, 128))
    noisy[32:96, 32:96] = 0.1 * np.random.default_rng(0).standard_normal((64, 64))
    assert baselines.estimate_sigma(noisy) == pytest.approx(0.1, rel=0.1)


def test_no_width_is_better_than_the_oracles(cases: list[Case]) -> None:
    case = cases[0]
    noisy = case.degraded(NOISE, seed=0)
    found = baselines.best_gaussian(noisy, case.clean, case.brain)
    for width in baselines.WIDTHS:
        image = torch.from_numpy(gaussian(noisy[0].numpy(), width))[None]
        assert psnr(image, case.clean) <= psnr(found.whole, case.clean)
        assert psnr(image, case.clean, case.brain) <= psnr(found.brain, case.clean, case.brain)
    assert found.width_whole in baselines.WIDTHS


def test_a_clean_image_is_hardly_filtered(cases: list[Case]) -> None:
    found = baselines.best_gaussian(cases[0].clean, cases[0].clean, cases[0].brain)
    assert found.width_whole == found.width_brain == min(baselines.WIDTHS)


def test_non_local_means_removes_noise_and_leaves_a_constant_image(cases: list[Case]) -> None:
    case = cases[0]
    noisy = case.degraded(NOISE, seed=0)
    assert psnr(baselines.non_local_means(noisy, 0.8), case.clean) > psnr(noisy, case.clean) + 2
    flat = torch.full_like(noisy, 0.3)
    assert torch.equal(baselines.non_local_means(flat, 0.8), flat)


def test_the_strength_is_the_best_of_those_tried(
    cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "STRENGTHS", (0.1, 0.8, 30.0))
    noisy = [case.degraded(NOISE, seed=0) for case in cases]
    clean, brain = [case.clean for case in cases], [case.brain for case in cases]
    assert baselines.tune_non_local_means(noisy, clean, brain) == 0.8
