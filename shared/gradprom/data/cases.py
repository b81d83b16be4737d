"""The cases of an inference run: finding them, and going on when one of them is bad."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from gradprom.bundle import find_input_error
from gradprom.errors import InputError
from gradprom.transforms.save import case_name

__all__ = ["CaseDataset", "list_images", "report_failures"]

logger = logging.getLogger(__name__)


def list_images(
    folder: str | Path, suffixes: Sequence[str] = (".nii", ".nii.gz")
) -> list[dict[str, str]]:
    """Lists the image files that lie directly in a folder, sorted by name, as ``[{"image": path},
    ...]``.

    Args:
        folder: the folder; hidden files and subfolders are left out.
        suffixes: what counts as an image, in either case of letters.

    Raises:
        InputError: no such folder, no image in it, or two files whose results would have one name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"dataset_dir '{folder}' is no folder: give one that holds images.")
    endings = tuple(s.lower() for s in suffixes)
    files = sorted(
        file
        for file in folder.iterdir()
        if file.name.lower().endswith(endings) and file.name[0] != "." and file.is_file()
    )
    if not files:
        raise InputError(
            f"dataset_dir '{folder}' has no file ending in {' or '.join(suffixes)}: "
            "give a folder of images."
        )
    names: dict[str, Path] = {}
    for file in files:
        other = names.setdefault(case_name(file), file)
        if other is not file:
            raise InputError(
                f"'{other}' and '{file.name}' would be written to the same output: "
                "rename one of them."
            )
    return [{"image": str(file)} for file in files]


class CaseDataset(IterableDataset):
    """Yields the cases that can be read, and remembers why the others cannot.

    It is an iterable, not a map, because the number of usable cases is known only at the end; a
    stock ``SupervisedEvaluator`` with MONAI's ``DataLoader`` then runs until the cases end. To load
    ahead use ``monai.data.ThreadDataLoader``.

    Args:
        data: cases, ``[{"image": path, ...}, ...]``.
        transform: the preprocessing; its :class:`InputError` makes a case a failure, anything else
            stops the run.

    Attributes:
        failures: one sentence for each case left out in the latest pass.

    Raises:
        InputError: when read by a DataLoader with worker processes, whose memory is not this one.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        super().__init__()
        self.data = data
        self.transform = transform
        self.failures: list[str] = []

    def __iter__(self) -> Iterator[Any]:
        if get_worker_info() is not None:
            raise InputError(
                "CaseDataset was given worker processes, which cannot report bad cases: "
                "set num_workers to 0."
            )
        self.failures.clear()
        for case in self.data:
            try:
                item = dict(case) if self.transform is None else self.transform(dict(case))
            # MONAI wraps what a transform raises in a RuntimeError.
            except Exception as error:
                reason = find_input_error(error)
                if reason is None:
                    raise
                logger.error("left out: %s", reason)
                self.failures.append(str(reason))
                continue
            yield item


def report_failures(dataset: CaseDataset) -> None:
    """Raises one InputError that names every case the latest pass left out; for after the run."""
    failures, total = dataset.failures, len(dataset.data)
    if not failures:
        return
    if total == 1:
        raise InputError(failures[0])
    listed = "; ".join(reason.rstrip(".") for reason in failures)
    raise InputError(f"{len(failures)} of {total} cases were left out: {listed}.")
