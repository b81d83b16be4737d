"""Pictures: orientation, cropping, and that each is written and not empty."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.image import imread

from gradprom.apps import figures
from gradprom.apps.evaluation import CLEAN, NOISY, Comparison
from gradprom.apps.training import GRADPROM, OFF, Run


def test_patients_right_is_on_the_left_and_anterior_is_up() -> None:
    image = torch.zeros(1, 6, 4)  # x to the patient's right, y to the front
    image[0, -1, -1] = 1
    shown = figures.view(image)
    assert shown.shape == (4, 6) and shown[0, 0] == 1


def test_planes_of_a_volume() -> None:
    image = torch.zeros(1, 6, 8, 4)
    image[0, -1, 4, 2] = 1  # right of the middle
    image[0, 3, -1, 2] = 2  # in front of it
    image[0, 3, 4, -1] = 3  # above it
    axial, coronal, sagittal = np.split(figures.view(image), [14, 24])
    assert axial[3:-3].shape == (8, 8) and coronal[3:-3].shape == (4, 8)
    assert axial[3 + 3, 1] == 1 and axial[3, 1 + 2] == 2
    assert coronal[3 + 1, 1] == 1 and coronal[3, 1 + 2] == 3
    assert sagittal[3 + 1, 0] == 2 and sagittal[3, 3] == 3


def test_pictures_are_cut_alike(results: list[Comparison]) -> None:
    shapes = {figures._shown(found, name).shape for found in results for name in found.images}
    assert len(shapes) == 1
    clean, noisy = (figures._shown(results[0], name) for name in (CLEAN, NOISY))
    assert np.array_equal(figures._error(results[0], CLEAN), np.zeros_like(clean))
    assert np.allclose(figures._error(results[0], NOISY), noisy.clip(0, 1) - clean, atol=1e-6)


def test_files_are_written(results: list[Comparison], tmp_path: Path) -> None:
    names = figures.draw_results(results, tmp_path)
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        picture = imread(tmp_path / name)
        assert picture.shape[1] > 1000 and picture[..., :3].std() > 0.05


def test_training_with_gaps_and_with_a_gate_that_was_never_used(tmp_path: Path) -> None:
    lines = [
        {"phase": "train", "epoch": 1, "gradprom_on_rate": None, "metrics": {}},
        {"phase": "train", "epoch": 2, "gradprom_on_rate": 0.5, "metrics": {}},
        {"phase": "validation", "epoch": 2, "metrics": {"val_psnr": 30.0}},
    ]
    gated = Run(GRADPROM, Path("a"), lines, 1.0)
    other = Run(OFF, Path("b"), lines[:1], 1.0)
    figures.draw_training(gated, other, tmp_path / "training.png")
    assert imread(tmp_path / "training.png").shape[1] == 1200
