"""Every command in the documentation names files and overrides that exist; every link resolves."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
from monai.bundle import ConfigParser

from tests.bundles.found import BUNDLES, ROOT, name_of, resolve

PAGES = [
    *ROOT.glob("*.md"),
    *(path for part in ("docs", "shared", "benchmarks") for path in ROOT.glob(f"{part}/*.md")),
    *(ROOT / "data_manifests").glob("*.md"),
    *(bundle / "docs" / "README.md" for bundle in BUNDLES),
]


def commands(page: Path) -> list[list[str]]:
    """Words of each command in the page's bash blocks; `&&` and line ends part commands."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").replace("&&", "\n").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def home(page: Path) -> Path:
    """Where the page's commands are run: the bundle's folder for a bundle, else the repository."""
    return page.parents[1] if page.parents[1] in BUNDLES else ROOT


def flags(words: list[str]) -> dict[str, str]:
    """`--key value` pairs."""
    return {w[2:]: words[i + 1] for i, w in enumerate(words[:-1]) if w.startswith("--")}


def check_bundle_command(words: list[str], folder: Path) -> None:
    """A `monai.bundle` command: its files exist, and each override is a key of its configs."""
    verb, given = words[0], flags(words)
    parameters = inspect.signature(getattr(monai.bundle, verb)).parameters
    files = given["config_file"]
    names = ast.literal_eval(files) if files.startswith("[") else [files]
    content: dict[str, Any] = dict(ConfigParser.load_config_files([folder / n for n in names]))
    for key in given:
        known = key in parameters or resolve(content, key)
        assert known, f"--{key} is no argument of {verb} and no key of {files}"
    for key in ("meta_file", "ckpt_file"):
        assert key not in given or (folder / given[key]).is_file(), f"no {given.get(key)}"


def check(words: list[str], folder: Path) -> None:
    """One command, as far as it can be known without running it."""
    if words[:3] == ["python", "-m", "monai.bundle"]:
        check_bundle_command(words[3:], folder)
    elif "monai.bundle" in words:  # behind a launcher
        check_bundle_command(words[words.index("monai.bundle") + 1 :], folder)
    elif words[:2] == ["python", "-m"]:
        assert find_spec(words[2]), f"no module {words[2]}"
    elif "/" in words[0]:
        assert (folder / words[0]).is_file(), f"no {words[0]}"
    for previous, word in pairwise(words):
        if previous == "-r":
            assert (folder / word).is_file(), f"no {word}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands(page: Path) -> None:
    for words in commands(page):
        check([w for w in words if not re.fullmatch(r"\w+=\S*", w)], home(page))


def test_the_readme_shows_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert "python -m pip install -r requirements.txt && python -m gradprom demo\n" in text
    assert "python -m pip install -r requirements-dev.txt && python -m pytest\n" in text


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), f"{link} leads nowhere"


def test_a_misspelt_override_is_found() -> None:
    command = ["run", "--config_file", "configs/train.json", "--ephocs", "2"]
    with pytest.raises(AssertionError, match="ephocs"):
        check_bundle_command(command, BUNDLES[0])


@pytest.mark.parametrize("bundle", BUNDLES, ids=name_of)
def test_every_config_has_its_command(bundle: Path) -> None:
    text = (bundle / "docs" / "README.md").read_text()
    configs = [p.name for p in bundle.glob("configs/*.json") if p.name != "metadata.json"]
    missing = [name for name in configs if name not in text]
    assert not missing, f"the README does not show how to use {missing}"
