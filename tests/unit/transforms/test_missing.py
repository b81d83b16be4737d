from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor

from gradprom.errors import InputError
from gradprom.transforms.missing import MarkMissingd


def make_item(labelled: bool) -> dict[str, object]:
    affine = torch.diag(torch.tensor([2.0, 2.0, 1.0, 1.0]))
    item = {"image": MetaTensor(torch.rand(3, 4, 5), affine=affine)}
    return {**item, "seg": MetaTensor(torch.ones(1, 4, 5), affine=affine)} if labelled else item


def test_item_with_the_key_is_marked_and_otherwise_unchanged() -> None:
    item = make_item(labelled=True)
    out = MarkMissingd("seg")(item)
    assert out == {**item, "seg_present": True}
    assert "seg_present" not in item


@pytest.mark.parametrize("none", [False, True])
def test_filler_has_the_images_size_type_and_geometry(none: bool) -> None:
    item = {**make_item(labelled=False), **({"seg": None} if none else {})}
    out = MarkMissingd("seg", fill=-1)(item)
    assert out["seg_present"] is False
    assert isinstance(out["seg"], MetaTensor) and out["seg"].shape == (1, 4, 5)
    assert torch.equal(out["seg"].as_tensor(), torch.full((1, 4, 5), -1.0))
    assert torch.equal(out["seg"].affine, item["image"].affine)


def test_arrays_and_plain_tensors() -> None:
    for image in (np.zeros((1, 2, 2), np.float32), torch.zeros(1, 2, 2, dtype=torch.float64)):
        filler = MarkMissingd("seg")({"image": image})["seg"]
        assert type(filler) is torch.Tensor and str(filler.dtype)[6:] == str(image.dtype)[-7:]


def test_mixed_items_form_a_batch() -> None:
    data = Dataset([make_item(True), make_item(False), make_item(True)], MarkMissingd("seg"))
    batch = next(iter(DataLoader(data, batch_size=3)))
    assert batch["seg"].shape == (3, 1, 4, 5)
    assert batch["seg_present"].tolist() == [True, False, True]
    assert batch["seg"].amax((1, 2, 3)).tolist() == [1, 0, 1]


def test_item_without_image_is_refused() -> None:
    with pytest.raises(InputError, match="finds no 'image' in the item"):
        MarkMissingd("seg")({})
