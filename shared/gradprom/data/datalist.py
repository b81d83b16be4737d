"""Reads Decathlon-style data lists."""

from __future__ import annotations

import json
from pathlib import Path

from monai.data import load_decathlon_datalist

from gradprom.errors import InputError

__all__ = ["load_datalist"]


def load_datalist(path: str | Path, part: str) -> list[dict[str, str]]:
    """The items ``{"image": ..., "label": ...}`` of one part of a Decathlon-style JSON file, with
    absolute paths.

    Args:
        path: the JSON file; the paths in it are relative to its folder.
        part: ``training``, ``validation`` or ``test``.

    Raises:
        InputError: if the file is missing or no JSON, the part is missing or empty, or a listed
            file does not exist.
    """
    path = Path(path).absolute()
    if not path.is_file():
        raise InputError(
            f"data list {path} does not exist; make the data set with `python -m gradprom data "
            "fetch` or set --datalist."
        )
    try:
        parts = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"data list {path} is not valid JSON ({error}); make it again.") from error
    if not isinstance(parts, dict) or not parts.get(part):
        raise InputError(
            f"data list {path} has no items under {part!r}; add them or choose another list."
        )
    items = load_decathlon_datalist(str(path), True, part, str(path.parent))
    for item in items:
        for key, file in item.items():
            if key in ("image", "label") and not Path(file).exists():
                raise InputError(
                    f"{file}, listed as {key} in {path}, does not exist; restore it or take it "
                    "off the list."
                )
    return items
