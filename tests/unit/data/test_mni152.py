"""The embedded atlas is split into blocks apart, and lists say what is wrong with them."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from gradprom.data import load_datalist
from gradprom.data.mni152 import BLOCKS, prepare
from gradprom.errors import InputError


def test_blocks_are_at_least_seven_millimetres_apart() -> None:
    blocks = sorted(block for part in BLOCKS.values() for block in part)
    assert min(later[0] - before[1] for before, later in pairwise(blocks)) >= 7


@pytest.mark.parametrize("dims", [2, 3])
def test_prepared_files_are_the_atlas_on_its_own_grid(dims: int, tmp_path: Path) -> None:
    listing = json.loads(prepare(tmp_path, dims).read_text())
    slices = sum(stop - start for block in BLOCKS.values() for start, stop in block)
    items = [item for part in BLOCKS for item in load_datalist(tmp_path / "datalist.json", part)]
    assert len(items) == (slices if dims == 2 else 4)
    assert listing["numTest"] == len(listing["test"])
    item = load_datalist(tmp_path / "datalist.json", "test")[-1]
    image, label = (nib.load(item[key]) for key in ("image", "label"))
    values, tissue = (np.asarray(each.dataobj) for each in (image, label))
    assert values.shape[:2] == (192, 224) and values.ndim == dims
    assert values.dtype == tissue.dtype == np.uint8
    assert np.array_equal(values > 0, tissue > 0)
    means = [values[tissue == k].mean() for k in (1, 2, 3)]
    assert means == sorted(means)  # T1: fluid is dark, white matter bright
    assert np.allclose(image.affine, label.affine)
    # The atlas is symmetric about x = 0 mm, so the brain's middle lies there.
    middle = np.argwhere(values > 0)[:, 0].mean()
    assert abs((image.affine @ [middle, 0, 0, 1])[0]) < 1


def test_other_dimensions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be 2 or 3, got 4"):
        prepare(tmp_path, 4)


def test_lists_that_cannot_be_right_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "datalist.json"
    with pytest.raises(InputError, match=r"datalist\.json does not exist; make the data set"):
        load_datalist(path, "training")
    path.write_text("{")
    with pytest.raises(InputError, match=r"datalist\.json is not valid JSON"):
        load_datalist(path, "training")
    path.write_text('{"training": [{"image": "missing.nii.gz"}], "test": []}')
    with pytest.raises(InputError, match="no items under 'test'"):
        load_datalist(path, "test")
    with pytest.raises(InputError, match=r"missing\.nii\.gz, listed as image in .* does not exist"):
        load_datalist(path, "training")
