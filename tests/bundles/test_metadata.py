"""metadata.json is valid, and says what the rest of the repository says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from monai.bundle import verify_metadata

import gradprom
from gradprom.data.mni152 import BLOCKS
from tests.bundles.found import BUNDLES, ROOT, config, name_of

SCHEMA = ROOT / "tests" / "data" / "meta_schema_20240725.json"
HASH = "cd64aa8a5904426f6fc6855dabe46af8c742d5bad644b4e9cfb78ebad09ad678"
PINS = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
BASE = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}


@pytest.mark.parametrize("bundle", BUNDLES, ids=name_of)
def test_fits_the_schema(bundle: Path) -> None:
    meta = config(bundle, "metadata.json")
    assert meta["schema"].endswith(SCHEMA.name)
    file = str(bundle / "configs" / "metadata.json")
    # With the file at hand and its hash right, nothing is downloaded.
    verify_metadata(meta_file=file, filepath=str(SCHEMA), hash_val=HASH, hash_type="sha256")


@pytest.mark.parametrize("bundle", BUNDLES, ids=name_of)
def test_versions(bundle: Path) -> None:
    meta = config(bundle, "metadata.json")
    assert meta["version"] in meta["changelog"]
    assert re.fullmatch(r"\d\.\d\.\d", meta["version"]), "the model zoo sorts versions as text"
    assert {key: meta[key] for key in BASE} == {key: PINS[name] for key, name in BASE.items()}
    required = meta["required_packages_version"]
    assert "gradprom" not in required, "the model zoo's checks would install it from an index"
    assert required == {name: PINS[name] for name in required}


@pytest.mark.parametrize("bundle", BUNDLES, ids=name_of)
def test_says_what_it_is_not_for_and_what_it_reached(bundle: Path) -> None:
    meta = config(bundle, "metadata.json")
    assert "Not for diagnostic use" in meta["intended_use"]
    assert meta["eval_metrics"], "the figures of the shipped weights are missing"


def test_table_in_the_readme() -> None:
    rows = re.findall(r"^\| \[(\w+)\]\((\S+)\) \|(.*)\|$", (ROOT / "README.md").read_text(), re.M)
    found = {
        name: (link, *(cell.strip() for cell in cells.split("|"))) for name, link, cells in rows
    }
    want = {}
    for bundle in BUNDLES:
        meta = config(bundle, "metadata.json")
        link = name_of(bundle / "docs" / "README.md")
        want[bundle.name] = (link, meta["name"], meta["task"], meta["version"])
    assert found == want


def test_changelog_names_the_version() -> None:
    assert f"[{gradprom.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_manifest_states_the_split_that_the_code_makes() -> None:
    split = json.loads((ROOT / "data_manifests" / "mni152.json").read_text())["split"]
    blocks = {part: [list(block) for block in BLOCKS[part]] for part in BLOCKS}
    assert {part: split[part] for part in BLOCKS} == blocks
