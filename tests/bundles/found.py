"""The bundles of this repository, found by their metadata wherever they lie."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BUNDLES = sorted(path.parents[1] for path in (ROOT / "bundles").rglob("configs/metadata.json"))
COUNT = 2
"""How many there are: whoever adds one says so here, so that none is overlooked by the tests."""


def name_of(path: Path) -> str:
    """The path from the repository, as the identity of a parametrised test."""
    return path.relative_to(ROOT).as_posix()


def config(bundle: Path, name: str) -> dict[str, Any]:
    """One JSON file of a bundle's `configs`."""
    return json.loads((bundle / "configs" / name).read_text())


def resolve(content: Any, path: str) -> bool:  # noqa: ANN401 - JSON
    """Whether `a#b#0` (or `a::b::0`) exists in a config."""
    for part in path.replace("::", "#").split("#"):
        if isinstance(content, list) and part.isdigit() and int(part) < len(content):
            content = content[int(part)]
        elif isinstance(content, dict) and part in content:
            content = content[part]
        else:
            return False
    return True


def walk(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - JSON
    """Every value that is no container, with its path."""
    if isinstance(content, dict | list):
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in pairs:
            yield from walk(value, f"{path}#{key}" if path else str(key))
    else:
        yield path, content
