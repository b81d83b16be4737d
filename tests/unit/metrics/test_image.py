"""PSNR and SSIM against scikit-image, exact values, special cases, and as metrics of an engine."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from monai.data import MetaTensor
from monai.handlers import from_engine
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from gradprom.errors import InputError
from gradprom.metrics import PSNR, SSIM, psnr, ssim

SHAPES = [(1, 40, 33), (2, 24, 17), (1, 14, 13, 12)]


def _pair(shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(shape, generator=generator, dtype=torch.float64)
    pred = target + 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return pred, target


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("data_range", [1.0, 4.0])
def test_psnr_equals_skimage_on_clipped_images(shape: tuple[int, ...], data_range: float) -> None:
    pred, target = (side * data_range for side in _pair(shape))
    expected = peak_signal_noise_ratio(
        target.numpy(), pred.numpy().clip(0, data_range), data_range=data_range
    )
    assert psnr(pred, target, data_range=data_range) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_ssim_equals_the_map_of_skimage(shape: tuple[int, ...]) -> None:
    pred, target = _pair(shape)
    mask = torch.zeros((1, *shape[1:]), dtype=torch.bool)
    mask[:, 3:9, 2:9] = True
    maps = [
        structural_similarity(
            x.numpy().clip(0, 1),
            y.numpy(),
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )[1]
        for x, y in zip(pred, target, strict=True)
    ]
    assert ssim(pred, target) == pytest.approx(np.mean(maps), abs=1e-12)
    inside = np.mean([each[mask[0].numpy()] for each in maps])
    assert ssim(pred, target, mask) == pytest.approx(inside, abs=1e-12)


def test_known_values() -> None:
    target = torch.full((1, 8, 8), 0.5)
    assert psnr(target + 0.1, target) == pytest.approx(20, abs=1e-5)
    # constant images: only the luminance term is left, (2ab + c1) / (a² + b² + c1)
    expected = (2 * 0.6 * 0.5 + 1e-4) / (0.6**2 + 0.5**2 + 1e-4)
    assert ssim(target + 0.1, target) == pytest.approx(expected, abs=1e-6)


def test_identical_images() -> None:
    image = _pair((1, 20, 20))[1]
    assert psnr(image, image) == math.inf
    assert ssim(image, image) == 1.0


@pytest.mark.parametrize("figure", [psnr, ssim])
def test_what_lies_outside_the_range_costs_nothing(figure: Callable[..., float]) -> None:
    image = _pair((1, 16, 16))[1].round()
    assert figure(image * 3 - 1, image) == figure(image, image)
    assert figure(image, image * 3 - 1) == figure(image, image)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 50), (1, 1, 7, 2)])
def test_small_images(shape: tuple[int, ...]) -> None:
    pred, target = _pair(shape)
    assert -1 <= ssim(pred, target) <= 1
    assert ssim(target, target) == pytest.approx(1)


def test_ssim_of_one_row_repeated_equals_the_row() -> None:
    """A mirror beyond the image's size is right if it repeats the row for ever."""
    pred, target = _pair((1, 1, 30))
    several = ssim(pred.expand(1, 40, 30), target.expand(1, 40, 30))
    assert ssim(pred, target) == pytest.approx(several, abs=1e-12)


def test_only_the_mask_counts() -> None:
    pred, target = _pair((2, 16, 16))
    mask = torch.zeros((1, 16, 16), dtype=torch.bool)
    mask[:, :8] = True
    assert psnr(pred, target, mask) == pytest.approx(psnr(pred[:, :8], target[:, :8]))
    pred[:, 8:] = 0
    assert psnr(pred, target, mask) == pytest.approx(psnr(pred[:, :8], target[:, :8]))
    assert math.isnan(psnr(pred, target, torch.zeros_like(mask)))
    assert math.isnan(ssim(pred, target, torch.zeros_like(mask)))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.uint8])
def test_sums_are_not_taken_in_the_images_own_type(kind: torch.dtype) -> None:
    target = torch.zeros((1, 300, 300), dtype=kind)
    assert psnr(target + 1, target) == 0.0


def test_metatensor_with_gradient() -> None:
    pred, target = _pair((1, 16, 16))
    figure = psnr(MetaTensor(pred.requires_grad_()), MetaTensor(target))
    assert figure == psnr(pred, target)


@pytest.mark.parametrize("figure", [psnr, ssim])
def test_refusals(figure: Callable[..., float]) -> None:
    pred, target = _pair((1, 8, 8))
    with pytest.raises(InputError, match=r"shape \(1, 8, 7\) but target has \(1, 8, 8\)"):
        figure(pred[..., :7], target)
    with pytest.raises(InputError, match=r"mask is torch\.float64"):
        figure(pred, target, target)
    with pytest.raises(InputError, match=r"mask is torch.bool of shape \(1, 8, 7\)"):
        figure(pred, target, target[..., :7] > 0)
    with pytest.raises(InputError, match="data_range is 0"):
        figure(pred, target, data_range=0)


def _engine(items: list[dict[str, torch.Tensor]], keys: list[str]) -> dict[str, float]:
    engine = Engine(lambda _, batch: batch)
    PSNR(output_transform=from_engine(keys)).attach(engine, "psnr")
    SSIM(output_transform=from_engine(keys)).attach(engine, "ssim")
    return engine.run([items[:2], items[2:]]).metrics


def _items() -> list[dict[str, torch.Tensor]]:
    items = []
    for seed in range(3):
        pred, label = _pair((1, 16, 16), seed)
        items.append({"pred": pred, "label": label, "tissue": (label * 4).floor()})
    return items


def test_metrics_are_means_over_images_not_batches() -> None:
    items = _items()
    found = _engine(items, ["pred", "label"])
    for name, figure in (("psnr", psnr), ("ssim", ssim)):
        expected = np.mean([figure(item["pred"], item["label"]) for item in items])
        assert found[name] == pytest.approx(expected)


def test_metrics_inside_a_label_map_leave_out_images_without_body() -> None:
    items = _items()
    items[1]["tissue"] = torch.zeros_like(items[1]["tissue"])
    found = _engine(items, ["pred", "label", "tissue"])
    inside = [psnr(i["pred"], i["label"], i["tissue"] > 0) for i in (items[0], items[2])]
    assert found["psnr"] == pytest.approx(np.mean(inside))


def test_a_network_that_gives_nan_is_not_left_out() -> None:
    items = _items()
    items[0]["pred"] = items[0]["pred"] * torch.nan
    assert math.isnan(_engine(items, ["pred", "label", "tissue"])["psnr"])


def test_metric_refusals() -> None:
    with pytest.raises(InputError, match="gave 1 parts"):
        PSNR().update([_pair((1, 8, 8))])
    with pytest.raises(NotComputableError, match="no image"):
        PSNR().compute()


def test_metrics_take_batched_tensors() -> None:
    pred, label = _pair((3, 1, 16, 16))
    metric = PSNR()
    metric.update((pred, label))
    expected = np.mean([psnr(*pair) for pair in zip(pred, label, strict=True)])
    assert metric.compute() == pytest.approx(expected)
