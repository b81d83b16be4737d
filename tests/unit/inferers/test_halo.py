"""HaloInferer: tiles with a halo give the whole image's result; tiles without one do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor
from torch import nn

from gradprom.errors import InputError
from gradprom.inferers import HaloInferer
from gradprom.inferers.halo import plan_axis
from gradprom.networks import BlendingUNet

CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}


def plain_network(dims: int, radius: int = 3, channels: int = 1) -> nn.Module:
    """Padded 3 x 3 convolutions in float64: a receptive field of ``radius`` voxels to each side."""
    layers: list[nn.Module] = []
    for _ in range(radius):
        layers += [CONV[dims](channels, channels, 3, padding=1), nn.Tanh()]
    return nn.Sequential(*layers).double().eval()


def image(*shape: int) -> torch.Tensor:
    return torch.rand(1, 1, *shape, dtype=torch.float64)


@given(
    size=st.integers(1, 200),
    tile=st.integers(1, 70),
    halo=st.integers(0, 40),
    align=st.sampled_from([1, 4, 8]),
)
def test_cores_cover_an_axis_once_and_are_seen_whole(
    size: int, tile: int, halo: int, align: int
) -> None:
    plan = plan_axis(size, tile, halo, align)
    assert [i for _, _, a, b in plan for i in range(a, b)] == list(range(size))
    for start, stop, a, b in plan:
        assert 0 <= start <= a < b <= stop <= size
        assert start % align == 0
        assert start == 0 or a - start >= halo
        assert stop == size or stop - b >= halo
        assert stop - start <= tile + 2 * halo + 3 * align


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("batch", [1, 5])
def test_a_halo_of_the_receptive_field_gives_the_whole_image(dims: int, batch: int) -> None:
    network = plain_network(dims)
    x = image(*(61, 40, 35)[:dims])
    with torch.no_grad():
        whole = network(x)
        tiled = HaloInferer(dims, tile=8, halo=3, batch=batch, align=1)(x, network)
        short = HaloInferer(dims, tile=8, halo=1, batch=batch, align=1)(x, network)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-13)
    assert (short - whole).abs().max() > 1e-6


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 9), (33, 8), (64, 65), (40, 100)])
def test_any_size(size: tuple[int, int]) -> None:
    network, x = plain_network(2), image(*size)
    with torch.no_grad():
        tiled = HaloInferer(2, tile=16, halo=4)(x, network)
        torch.testing.assert_close(tiled, network(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("dims", "size", "tile"), [(2, (203, 150), 32), (3, (104, 45, 30), 24)])
def test_strided_network_sees_the_same_grid_in_a_tile(
    dims: int, size: tuple[int, ...], tile: int
) -> None:
    channels = (4, 6) if dims == 3 else (4, 6, 8)
    network = BlendingUNet(dims, 1, channels).double().eval()
    x = image(*size)
    # Three levels see 51 pixels to each side, two levels 23.
    halo = 24 if dims == 3 else 56
    with torch.no_grad():
        whole = network(x)
        torch.testing.assert_close(
            HaloInferer(dims, tile=tile, halo=halo, batch=3)(x, network), whole, rtol=0, atol=1e-12
        )
        out_of_phase = HaloInferer(dims, tile=tile + 1, halo=halo + 1, align=1)(x, network)
    assert (out_of_phase - whole).abs().max() > 1e-6


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_2d_network_goes_through_a_volume_slice_by_slice(axis: int, batch: int) -> None:
    network = plain_network(2)
    x = torch.rand(2, 1, 10, 12, 7, dtype=torch.float64)
    inferer = HaloInferer(2, tile=8, halo=4, batch=batch, align=1, slice_axis=axis)
    with torch.no_grad():
        slices = [network(s) for s in x.unbind(axis % 3 + 2)]
        torch.testing.assert_close(
            inferer(x, network), torch.stack(slices, axis % 3 + 2), rtol=0, atol=1e-13
        )


def test_items_and_channels_stay_apart() -> None:
    network = plain_network(2, channels=3)
    x = torch.rand(2, 3, 30, 20, dtype=torch.float64)
    with torch.no_grad():
        tiled = HaloInferer(2, tile=(8, None), halo=3, batch=2, align=1)(x, network)
        torch.testing.assert_close(tiled, network(x), rtol=0, atol=1e-13)


def test_whole_image_by_default_and_arguments_are_passed_on() -> None:
    calls: list[tuple[int, ...]] = []

    def network(x: torch.Tensor, factor: float, plus: float = 0.0) -> torch.Tensor:
        calls.append(tuple(x.shape))
        return factor * x + plus

    x = image(100, 90)
    torch.testing.assert_close(HaloInferer(2)(x, network, 2.0, plus=1.0), 2 * x + 1)
    assert calls == [(1, 1, 100, 90)]


def test_no_call_is_larger_than_promised() -> None:
    sizes: list[torch.Size] = []

    def network(x: torch.Tensor) -> torch.Tensor:
        sizes.append(x.shape)
        return x[:, :1]

    x = torch.rand(1, 2, 100, 90, 6)
    out = HaloInferer(2, tile=16, halo=8, batch=4)(x, network)
    assert torch.equal(out, x[:, :1])
    assert max(s[0] for s in sizes) == 4
    assert max(max(s[2:]) for s in sizes) == 32


def test_metadata_and_dtype_survive() -> None:
    x = MetaTensor(torch.rand(1, 1, 9, 9), affine=3 * torch.eye(4))
    out = HaloInferer(2)(x, lambda t: t.to(torch.bfloat16))
    assert isinstance(out, MetaTensor)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out.affine, x.affine)
    assert not isinstance(HaloInferer(2)(x.as_tensor(), nn.Identity()), MetaTensor)


def test_network_never_sees_metadata() -> None:
    kinds: list[type] = []

    def network(x: torch.Tensor) -> torch.Tensor:
        kinds.append(type(x))
        return x

    HaloInferer(2, tile=4, halo=1)(MetaTensor(torch.rand(1, 1, 30, 9)), network)
    assert set(kinds) == {torch.Tensor}


def test_result_is_assembled_where_asked() -> None:
    assert HaloInferer(2, output_device="meta")(image(4, 4), nn.Identity()).device.type == "meta"
    seen: list[str] = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.device.type)
        return x

    HaloInferer(2, device="meta", output_device="meta")(image(4, 4), network)
    assert seen == ["meta"]


@pytest.mark.gpu
def test_input_and_output_stay_on_the_host_while_a_gpu_computes() -> None:
    network, x = plain_network(3).cuda(), image(40, 30, 20)
    with torch.no_grad():
        tiled = HaloInferer(3, tile=8, halo=4, device="cuda")(x, network)
        torch.testing.assert_close(tiled, network(x.cuda()).cpu(), rtol=0, atol=1e-12)
    assert tiled.device.type == "cpu"


@pytest.mark.parametrize(
    "arguments",
    [
        {"tile": 0},
        {"tile": (8, 8, 8)},
        {"halo": -1},
        {"batch": 0},
        {"align": 0},
    ],
)
def test_bad_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="HaloInferer got"):
        HaloInferer(2, **arguments)


@pytest.mark.parametrize(
    ("dims", "shape"), [(3, (1, 1, 4, 4)), (2, (1, 1, 4)), (2, (1, 1, 2, 2, 2, 2))]
)
def test_wrong_axes(dims: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="input of shape"):
        HaloInferer(dims)(torch.zeros(shape), nn.Identity())


@pytest.mark.parametrize("network", [nn.AvgPool2d(2), nn.Upsample(scale_factor=2)])
def test_network_that_changes_the_size(network: Callable[..., torch.Tensor]) -> None:
    with pytest.raises(InputError, match="keeps the spatial size"):
        HaloInferer(2)(torch.zeros(1, 1, 8, 8), network)


def test_every_voxel_comes_from_its_own_place() -> None:
    x = torch.arange(50.0 * 41).reshape(1, 1, 50, 41)
    assert torch.equal(HaloInferer(2, tile=8, halo=8, batch=7)(x, nn.Identity()), x)
