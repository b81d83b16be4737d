"""The denoiser accepts any size and starts as a blend of Gaussian filters."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import UNet

from gradprom.errors import InputError
from gradprom.handlers import save_atomically
from gradprom.networks import BlendingUNet, load_weights
from gradprom.networks.blending import WIDTHS, fold, gaussians, unfold


@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (37, 64), (5, 9, 17), (16, 16, 16)])
@pytest.mark.parametrize("channels", [1, 3])
def test_output_has_the_shape_of_the_input(shape: tuple[int, ...], channels: int) -> None:
    network = BlendingUNet(len(shape), channels, (4, 6, 8))
    image = torch.rand(2, channels, *shape)
    assert network(image).shape == image.shape


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (2, 3, 4, 6, 8)])
def test_unfold_undoes_fold(shape: tuple[int, ...]) -> None:
    image = torch.rand(shape)
    folded = fold(image)
    assert folded.shape[1] == 3 * 2 ** (len(shape) - 2)
    assert torch.equal(unfold(folded), image)


@pytest.mark.parametrize("dims", [2, 3])
def test_filters_have_sum_one_and_the_stated_widths(dims: int) -> None:
    kernels = gaussians(dims)
    assert kernels.shape == (len(WIDTHS), 1, *[5] * dims)
    torch.testing.assert_close(kernels.flatten(1).sum(1), torch.ones(len(WIDTHS)))
    centre = kernels.flatten(1).amax(1)
    assert torch.equal(centre, centre.sort(descending=True).values)


@pytest.mark.parametrize("dims", [2, 3])
def test_without_correction_the_output_lies_within_the_input(dims: int) -> None:
    network = BlendingUNet(dims, 1, (4, 6, 8))
    kept = network.filters * 2**dims
    with torch.no_grad():
        network.tail.weight[kept:] = 0
        network.tail.bias[kept:] = 0
        image = torch.rand(1, 1, *[20] * dims)
        answer = network(image)
    assert image.min() <= answer.min() < answer.max() <= image.max()
    assert answer.std() < image.std()
    flat = torch.full_like(image, 0.7)
    torch.testing.assert_close(network(flat), flat)


def test_torchscript_gives_the_same() -> None:
    network = BlendingUNet(2, 1, (4, 6, 8))
    image = torch.rand(1, 1, 21, 34)
    torch.testing.assert_close(torch.jit.script(network)(image), network(image))


def test_other_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="must be 2 or 3, got 4"):
        BlendingUNet(4)


def test_weights_are_loaded_strictly(tmp_path) -> None:  # noqa: ANN001
    network = BlendingUNet(2, 1, (4, 6, 8))
    path = tmp_path / "model.pt"
    with pytest.raises(InputError, match=r"model\.pt do not exist; train them"):
        load_weights(network, path)
    path.write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"model\.pt do not fit BlendingUNet"):
        load_weights(network, path)
    save_atomically(UNet(2, 1, 1, (4, 8), (2,)).state_dict(), path)
    with pytest.raises(InputError, match="do not fit"):
        load_weights(network, path)
    save_atomically(network.state_dict(), path)
    other = load_weights(BlendingUNet(2, 1, (4, 6, 8)), path)
    image = torch.rand(1, 1, 8, 8)
    assert torch.equal(other(image), network(image))
