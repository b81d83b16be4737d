"""The shipped weights fit the network that metadata.json describes, and leave as TorchScript."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, ckpt_export, verify_net_in_out

from tests.bundles.found import BUNDLES, config, name_of


def files(bundle: Path) -> dict[str, str]:
    configs = bundle / "configs"
    return {
        "config_file": str(configs / "inference.json"),
        "meta_file": str(configs / "metadata.json"),
    }


@pytest.mark.parametrize("bundle", BUNDLES, ids=name_of)
@pytest.mark.parametrize("n", [1, 3])
def test_network_takes_and_gives_what_the_metadata_say(bundle: Path, n: int) -> None:
    verify_net_in_out("network_def", device="cpu", p=1, n=n, any=1, **files(bundle))


@pytest.mark.parametrize("bundle", BUNDLES, ids=name_of)
def test_exported_network_equals_the_eager_one(bundle: Path, tmp_path: Path) -> None:
    weights, exported = bundle / "models" / "model.pt", tmp_path / "model.ts"
    ckpt_export("network_def", str(exported), str(weights), **files(bundle))
    network = ConfigParser(config(bundle, "inference.json")).get_parsed_content("network_def")
    network.load_state_dict(torch.load(weights, weights_only=True))
    shape = (17, 20, 9)[: config(bundle, "inference.json")["network_def"]["spatial_dims"]]
    image = torch.rand(2, 1, *shape)
    with torch.no_grad():
        answer = torch.jit.load(exported)(image)
        torch.testing.assert_close(answer, network.eval()(image))
    assert answer.shape == image.shape


@pytest.mark.parametrize("bundle", BUNDLES, ids=name_of)
def test_recogniser_weights_fit(bundle: Path) -> None:
    recogniser = ConfigParser(config(bundle, "train.json")).get_parsed_content("recogniser_def")
    weights = torch.load(bundle / "models" / "recogniser.pt", weights_only=True)
    recogniser.load_state_dict(weights)
    channels = config(bundle, "metadata.json")["recogniser_data_format"]["outputs"]["pred"]
    shape = (1, 1, *[16] * len(channels["spatial_shape"]))
    assert recogniser(torch.rand(shape)).shape[1] == channels["num_channels"]
