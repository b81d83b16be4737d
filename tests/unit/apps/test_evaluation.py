"""Cases, noise and the figures of every method."""

from __future__ import annotations

import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from gradprom.apps import evaluation
from gradprom.apps.evaluation import CLEAN, GAUSSIAN, LABELS, NLM, NOISY, Case, Comparison, Noise
from gradprom.metrics import psnr, ssim


def test_noise_is_seeded_by_seed_noise_and_name(cases: list[Case]) -> None:
    noise = Noise("gaussian", 0.1)
    first = cases[0].degraded(noise, 0)
    assert torch.equal(first, cases[0].degraded(noise, 0))
    others = (
        cases[0].degraded(noise, 1) - cases[0].clean,
        (cases[0].degraded(Noise("gaussian", 0.05), 0) - cases[0].clean) * 2,
        cases[1].degraded(noise, 0) - cases[1].clean,
    )
    for other in others:
        assert not torch.allclose(first - cases[0].clean, other, atol=1e-3)
    assert first.min() < 0  # not clipped


def test_reading(tmp_path: Path) -> None:
    items = []
    for z in range(7):
        item = {"image": f"images/z{z}.nii.gz", "label": f"labels/z{z}.nii.gz"}
        for value, path in ((255 - z, item["image"]), (z % 4, item["label"])):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            array = np.full((4, 5), value, np.uint8)
            nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / path)
        items.append(item)
    datalist = tmp_path / "datalist.json"
    datalist.write_text(json.dumps({"test": items}))
    found = evaluation.read_cases(datalist, "test", 3)
    assert [case.name for case in found] == ["z0", "z3", "z6"]
    assert found[1].clean.shape == (1, 4, 5)
    assert found[1].clean.unique().tolist() == pytest.approx([252 / 255])
    assert found[1].tissue.unique().tolist() == [3] and found[1].brain.all()
    assert len(evaluation.read_cases(datalist, "test", 100)) == 7


def test_dice_is_the_mean_of_the_tissues_present() -> None:
    tissue = torch.tensor([[[0, 1, 1, 2, 2, 2]]])
    found = torch.tensor([[[0, 1, 2, 2, 2, 2]]])
    # CSF: 2 * 1 / (2 + 1); grey matter: 2 * 3 / (3 + 4); white matter is in neither
    assert evaluation.tissue_dice(found, tissue) == pytest.approx((2 / 3 + 6 / 7) / 2)


def test_every_method_is_scored_on_every_case(results: list[Comparison], cases: list[Case]) -> None:
    for found in results:
        assert list(found.scores) == [NOISY, GAUSSIAN, NLM, "No gate (off)", "GradProm", CLEAN]
        assert all(len(v) == len(cases) for s in found.scores.values() for v in s.values())
        assert found.scores["No gate (off)"] == found.scores[NOISY]
        assert found.scores[CLEAN]["psnr"] == [math.inf] * len(cases)
        assert found.scores[CLEAN]["dice"] == [1.0] * len(cases)
        assert len(found.labels[LABELS]) == len(cases)
        noisy = cases[1].degraded(found.noise, 0)
        assert torch.equal(found.images[NOISY][1], noisy)
        assert found.scores[NOISY]["psnr"][1] == psnr(noisy, cases[1].clean)
        inside = ssim(noisy, cases[1].clean, cases[1].brain)
        assert found.scores[NOISY]["ssim_brain"][1] == inside


def test_the_gaussian_is_chosen_for_each_region(results: list[Comparison]) -> None:
    for found in results:
        for figure in ("psnr", "psnr_brain"):
            best, noisy = found.scores[GAUSSIAN][figure], found.scores[NOISY][figure]
            assert all(a > b for a, b in zip(best, noisy, strict=True))


def test_the_recogniser_sees_any_unit_alike(cases: list[Case]) -> None:
    class Above(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.full_like(image, 0.5), image], 1)

    image = cases[0].clean
    once = evaluation.segment(Above(), image)
    assert torch.equal(once, evaluation.segment(Above(), 300 * image - 40))
