"""The recogniser's label maps as item entries, with the recogniser left as it was."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.handlers import MeanDice, from_engine
from torch import nn

from gradprom.errors import InputError
from gradprom.transforms import Recognised


class Threshold(nn.Module):
    """Logits whose argmax is 1 where the first channel is above `level`, also a parameter."""

    def __init__(self, level: float = 0.5) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))
        self.norm = nn.BatchNorm2d(1)
        self.other = nn.Dropout()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        assert not self.training and not torch.is_grad_enabled()
        self.norm(image)
        return torch.cat([self.level.expand_as(image[:, :1]), image[:, :1]], 1)


def _item() -> dict[str, torch.Tensor]:
    image = torch.rand(1, 6, 5, generator=torch.Generator().manual_seed(0))
    affine = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))
    return {"image": MetaTensor(image, affine=affine), "label": 1 - image}


def test_label_maps_are_added() -> None:
    item = _item()
    found = Recognised(["image", "label"], Threshold(), ["seen", "truth"])(item)
    assert set(item) == {"image", "label"}
    assert torch.equal(found["seen"], (item["image"] > 0.5).long())
    assert torch.equal(found["truth"], (item["label"] > 0.5).long())
    assert found["seen"].affine[0, 0] == 2 and not isinstance(found["truth"], MetaTensor)


def test_logits_on_request() -> None:
    found = Recognised("image", Threshold(), "seen", argmax=False)(_item())
    assert found["seen"].shape == (2, 6, 5) and not found["seen"].requires_grad


def test_modes_are_restored_one_by_one() -> None:
    model = Threshold().train()
    model.norm.eval()
    before = model.norm.running_mean.clone()
    Recognised("image", model, "seen")(_item())
    assert model.training and model.other.training and not model.norm.training
    assert torch.equal(model.norm.running_mean, before)


def test_modes_are_restored_after_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1))
    with pytest.raises(RuntimeError):
        Recognised("image", model, "seen")(_item())
    assert model.training


def test_images_of_another_type() -> None:
    item = {"image": (torch.rand(1, 4, 4) * 9).to(torch.uint8)}
    assert Recognised("image", Threshold(4.0), "seen")(item)["seen"].shape == (1, 4, 4)


def test_missing_keys() -> None:
    item = {"image": _item()["image"]}
    with pytest.raises(KeyError):
        Recognised(["image", "pred"], Threshold(), ["a", "b"])(item)
    found = Recognised(["pred", "image"], Threshold(), ["a", "b"], allow_missing_keys=True)(item)
    assert set(found) == {"image", "b"}


def test_number_of_keys() -> None:
    with pytest.raises(InputError, match="has 1 keys but 2 output_keys"):
        Recognised("image", Threshold(), ["a", "b"])


def test_stock_dice_reads_them() -> None:
    item = Recognised(["image"], Threshold(), ["seen"])(_item())
    item["recognition"] = (item["image"] > 0.5).float()
    dice = MeanDice(num_classes=2, output_transform=from_engine(["seen", "recognition"]))
    dice.update([each[None] for each in (item["seen"], item["recognition"])])
    assert dice.metric_fn.aggregate().item() == 1
