"""Noise has the stated moments, texture stays in the body, the pair has MONAI's names."""

from __future__ import annotations

import math

import pytest
import torch
from monai.data import MetaTensor

from gradprom.transforms import AsEnhancementPair, FixedNoised, RandTextured, add_noise


def named(values: torch.Tensor, name: str) -> MetaTensor:
    return MetaTensor(values, meta={"filename_or_obj": f"folder/{name}"})


@pytest.mark.parametrize("sigma", [0.02, 0.15])
def test_gaussian_noise_has_mean_zero_and_the_stated_deviation(sigma: float) -> None:
    image = torch.full((1, 300, 300), 0.4)
    noise = add_noise(image, sigma) - image
    assert abs(noise.mean()) < 4 * sigma / 300
    assert noise.std() == pytest.approx(sigma, rel=0.02)


def test_rician_noise_of_air_is_rayleigh_and_of_bright_tissue_nearly_gaussian() -> None:
    air = add_noise(torch.zeros(1, 300, 300), 0.1, "rician")
    assert air.mean() == pytest.approx(0.1 * math.sqrt(math.pi / 2), rel=0.01)
    assert air.min() >= 0
    bright = add_noise(torch.ones(1, 300, 300), 0.05, "rician")
    assert bright.std() == pytest.approx(0.05, rel=0.02)
    assert bright.mean() == pytest.approx(math.sqrt(1 + 0.05**2), abs=1e-3)


def test_no_noise_is_the_identity() -> None:
    image = torch.randn(1, 9, 9)
    assert torch.equal(add_noise(image, 0.0), image)
    torch.testing.assert_close(add_noise(image, 0.0, "rician"), image.abs())


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 0, got -0\.1"):
        add_noise(torch.zeros(1, 2, 2), -0.1)
    with pytest.raises(ValueError, match="got 'poisson'"):
        add_noise(torch.zeros(1, 2, 2), 0.1, "poisson")


def test_fixed_noise_depends_on_seed_and_name_alone() -> None:
    image = torch.zeros(1, 8, 8)
    first, again, other = (
        FixedNoised("image", 0.1)({"image": named(image, name)})["image"]
        for name in ("a.nii.gz", "a.nii.gz", "b.nii.gz")
    )
    seeded = FixedNoised("image", 0.1, seed=1)({"image": named(image, "a.nii.gz")})["image"]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, seeded)
    assert torch.equal(image, torch.zeros(1, 8, 8))


@pytest.mark.parametrize("shape", [(1, 40, 30), (1, 12, 20, 16)])
def test_texture_changes_the_body_only(shape: tuple[int, ...]) -> None:
    image = torch.full(shape, 0.5)
    image[:, :5] = 0
    transform = RandTextured("image", prob=1.0, strength=1.0).set_random_state(3)
    out = transform({"image": image.clone()})["image"]
    assert (out[:, :5] == 0).all()
    assert out[:, 5:].std() > 0
    again = RandTextured("image", prob=1.0, strength=1.0).set_random_state(3)
    assert torch.equal(again({"image": image})["image"], out)
    neutral = RandTextured("image", prob=1.0, strength=0.0).set_random_state(3)
    assert torch.equal(neutral({"image": image})["image"], image)


def test_texture_strength_is_a_share() -> None:
    with pytest.raises(ValueError, match=r"lie in \[0, 1\], got 1\.5"):
        RandTextured("image", strength=1.5)


def test_pair_has_the_trainers_names_and_two_images() -> None:
    clean, tissue = torch.rand(1, 4, 4), torch.ones(1, 4, 4)
    item = AsEnhancementPair()({"image": clean, "label": tissue})
    assert item["recognition"] is tissue
    assert item["label"] is clean
    item["image"] += 1
    assert not torch.equal(item["image"], item["label"])
    assert "recognition" not in AsEnhancementPair()({"image": clean})
