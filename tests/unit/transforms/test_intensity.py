"""NormaliseIntensityd: equivariance under any change of unit, exact inverse, cheap percentiles."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd

from gradprom.errors import InputError
from gradprom.transforms import NormaliseIntensityd
from gradprom.transforms.intensity import affine_map, inverse_affine_map, robust_range


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def normalised(image: torch.Tensor) -> torch.Tensor:
    return NormaliseIntensityd("image")({"image": image})["image"]


def test_factors_are_the_percentiles_of_numpy() -> None:
    image = noise(1, 40, 50)
    low, high = np.percentile(image.double().numpy(), [2, 90])
    assert robust_range(image, 2, 90) == (low, high - low)


def test_range_of_a_known_image_and_no_clipping() -> None:
    image = torch.arange(1001.0).reshape(1, 7, 143)
    assert robust_range(image) == pytest.approx((5.0, 990.0))
    result = normalised(image)
    assert result.min() == pytest.approx(-5 / 990)
    assert result.max() == pytest.approx(995 / 990)


@given(
    scale=st.floats(1e-6, 1e6),
    offset=st.floats(-1e4, 1e4),
    dims=st.sampled_from([2, 3]),
    seed=st.integers(0, 99),
)
def test_a_change_of_unit_changes_nothing(
    scale: float, offset: float, dims: int, seed: int
) -> None:
    image = noise(1, *(9, 8, 5)[:dims], seed=seed).double()
    # float64 in, so that the unit is changed without rounding; the map itself rounds to float32.
    torch.testing.assert_close(
        normalised(image * scale + offset * scale), normalised(image), rtol=1e-5, atol=1e-6
    )


def test_large_offset_keeps_what_float32_holds() -> None:
    image = (noise(1, 64, 64) * 100).round() + 30000
    exact = (image.double() - robust_range(image)[0]) / robust_range(image)[1]
    error = (normalised(image).double() - exact).abs().max()
    assert error <= torch.finfo(torch.float32).eps


def test_zero_is_no_special_value() -> None:
    image = noise(1, 32, 32) - 5
    torch.testing.assert_close(normalised(image), normalised(image + 5), rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, -7.5, 3e4])
def test_constant_image_becomes_zero_and_comes_back(value: float) -> None:
    image = torch.full((1, 6, 6), value)
    assert robust_range(image) == (value, 1.0)
    assert not normalised(image).any()
    torch.testing.assert_close(inverse_affine_map(normalised(image), value, 1.0), image)


def test_small_object_on_a_flat_background_sets_the_range() -> None:
    image = torch.zeros(1, 100, 100)
    image[0, 50, 50] = 8.0
    assert robust_range(image) == (0.0, 8.0)


@pytest.mark.parametrize("as_metatensor", [False, True])
def test_inverse_restores_every_key(as_metatensor: bool) -> None:
    image, label = noise(1, 12, 9) * 500 + 30000, noise(1, 12, 9, seed=1) * 500 + 30000
    data = {"image": image, "label": label}
    if as_metatensor:
        data = {key: MetaTensor(value) for key, value in data.items()}
    transform = NormaliseIntensityd(["image", "label"])
    there = transform(data)
    back = transform.inverse(there)
    for key, value in (("image", image), ("label", label)):
        assert isinstance(there[key], MetaTensor) == as_metatensor
        torch.testing.assert_close(torch.as_tensor(back[key]), value, rtol=1e-7, atol=0)


def test_factors_of_the_reference_are_applied_to_all_keys() -> None:
    image, label = noise(1, 12, 9), noise(1, 12, 9, seed=1) * 3
    shift, scale = robust_range(label)
    done = NormaliseIntensityd(["image", "label"], reference="label")(
        {"image": image, "label": label}
    )
    torch.testing.assert_close(done["image"], affine_map(image, shift, scale))
    torch.testing.assert_close(done["label"], affine_map(label, shift, scale))


def test_invertd_undoes_it_on_a_prediction() -> None:
    preprocessing = Compose([NormaliseIntensityd("image")])
    image = MetaTensor(noise(1, 12, 9) * 100 - 20)
    data = dict(preprocessing({"image": image}))
    data["pred"] = data["image"] * 0.5
    shift, scale = robust_range(image)
    undone = Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False)(data)["pred"]
    expected = (image.as_tensor() - shift) * 0.5 + shift
    torch.testing.assert_close(undone.as_tensor(), expected, rtol=1e-5, atol=1e-4)
    assert scale > 0


def test_percentiles_of_a_large_volume_are_cheap_deterministic_and_close() -> None:
    volume = noise(1, 160, 192, 176)
    start = time.process_time()
    first = robust_range(volume)
    # 5.4 million voxels take 0.05 s when sampled, 0.5 s when sorted; the bound is for a slow
    # machine.
    assert time.process_time() - start < 2
    assert first == robust_range(volume.clone())
    assert first == pytest.approx((0.005, 0.99), abs=2e-3)


@pytest.mark.parametrize("bounds", [(5, 5), (-1, 99), (1, 101), (90, 10)])
def test_bad_percentiles_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="percentiles"):
        NormaliseIntensityd("image", lower=bounds[0], upper=bounds[1])


def test_input_is_left_as_it_was_and_missing_keys_are_allowed() -> None:
    image = noise(1, 5, 5).double()
    kept = image.clone()
    done = NormaliseIntensityd(["image", "label"], allow_missing_keys=True)({"image": image})
    assert torch.equal(image, kept)
    assert "label" not in done


def test_a_small_object_on_an_almost_flat_background_is_not_blown_up() -> None:
    image = torch.randn(1, 100, 100) * 1e-3
    image[:, :5, :5] = 1.0
    shift, scale = robust_range(image)
    assert shift < 0 and shift + scale == pytest.approx(1.0)
    assert affine_map(image, shift, scale).max() == pytest.approx(1.0)
