"""What every bundle checks before it runs, and how the command line says what is wrong."""

from __future__ import annotations

import difflib
import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

import gradprom
from gradprom.errors import InputError

__all__ = ["check_run", "find_input_error", "one_sentence_errors"]

TRACKING_KEYS: dict[str, Any] = DEFAULT_MLFLOW_SETTINGS["configs"]  # type: ignore[assignment]
REFERENCE = re.compile(r"[@%]([A-Za-z_]\w*)")
# How a DataLoader's worker process hands an exception on: as the text of a RuntimeError.
FROM_WORKER = re.compile(r"^gradprom\.errors\.InputError: (.+)$", re.MULTILINE)


def check_run(
    bundle_root: str | Path,
    dataset_dir: str | Path | None = None,
    weights: Sequence[str | Path] = (),
    made_by: Sequence[str] = ("train.json",),
) -> None:
    """Refuses a run that cannot be meant or cannot succeed, before anything is computed or written.

    The first entry of every bundle's ``run``. Under ``python -m monai.bundle`` it also makes an
    :class:`InputError` of this or any later entry end the process with that one sentence and exit
    code 1.

    Args:
        bundle_root: the bundle's folder, which has ``configs/``.
        dataset_dir: folder that must exist.
        weights: files that must exist.
        made_by: configs, in order, of the run that writes the weights; named to a user who lacks
            them.

    Raises:
        InputError: no such bundle; an override of a top-level key that no config knows (as typed
            ``--ephocs 2``, which MONAI accepts in silence); another version of the package than the
            bundle was packed with; a missing dataset folder or weights file.
    """
    one_sentence_errors()
    root = Path(bundle_root)
    if not (root / "configs").is_dir():
        raise InputError(f"bundle_root '{root}' has no folder configs: give the bundle's folder.")
    workflow = running_workflow()
    if workflow is not None:
        check_keys(workflow, root)
    check_version(root)
    if dataset_dir is not None and not Path(dataset_dir).is_dir():
        raise InputError(
            f"dataset_dir '{dataset_dir}' does not exist: give a folder with --dataset_dir."
        )
    for file in weights:
        check_weights(root, Path(file), made_by)


def running_workflow() -> ConfigWorkflow | None:
    """The workflow whose ``run`` is being evaluated, or None outside one."""
    # A config expression can name what is in the config but not the config itself, and the workflow
    # leaves no trace of itself in it: the call stack is the only place where an expression finds
    # the workflow that evaluates it.
    frame = sys._getframe(1)
    while frame is not None:
        workflow = frame.f_locals.get("self")
        if isinstance(workflow, ConfigWorkflow):
            return workflow
        frame = frame.f_back  # type: ignore[assignment]
    return None


def check_keys(workflow: ConfigWorkflow, root: Path) -> None:
    """Refuses a top-level key that no config of the bundle has and that nothing refers to."""
    given: dict[str, Any] = dict(workflow.parser.get() or {})
    files = [read_config(f) for f in sorted((root / "configs").iterdir())]
    known = {re.split("#|::", key.lstrip("+"))[0] for file in files for key in file}
    known |= {workflow.init_id, workflow.run_id, workflow.final_id, "_meta_", "imports"}
    # What `--tracking mlflow` adds by itself.
    known |= set(TRACKING_KEYS)
    used = set(references(files))
    for key in given:
        others = {k: v for k, v in given.items() if k != key}
        if key in known or key in used or key in references(others):
            continue
        near = difflib.get_close_matches(key, sorted(known - {"_meta_"}), n=1, cutoff=0)
        raise InputError(
            f"'{key}' is no key of the configs in '{root}': write '{near[0]}' or leave it out."
        )


def read_config(path: Path) -> dict[str, Any]:
    """The keys and values of a JSON or YAML config; none for the metadata and other files."""
    if path.stem == "metadata" or path.suffix not in {".json", ".yaml", ".yml"}:
        return {}
    return dict(ConfigParser.load_config_file(str(path)))


def references(value: object) -> Iterator[str]:
    """Yields the top-level ids that strings anywhere in a config refer to by ``@id`` or ``%id``."""
    if isinstance(value, str):
        yield from REFERENCE.findall(value)
    elif isinstance(value, dict):
        yield from (found for item in value.values() for found in references(item))
    elif isinstance(value, (list, tuple)):
        yield from (found for item in value for found in references(item))


def check_version(root: Path) -> None:
    """Refuses to run a packed bundle with another version of the package than its own."""
    path = root / "configs" / "metadata.json"
    packed = (
        json.loads(path.read_text(encoding="utf-8")).get("gradprom_version")
        if path.is_file()
        else None
    )
    if packed not in (None, gradprom.__version__):
        raise InputError(
            f"'{path}' asks for gradprom {packed} but {gradprom.__version__} was imported from "
            f"'{Path(gradprom.__file__).parent}': "
            f"use a new Python process in which only gradprom {packed} is found."
        )


def check_weights(root: Path, file: Path, made_by: Sequence[str]) -> None:
    """Refuses missing weights and names the command that fetches or else trains them."""
    if file.is_file():
        return
    listed = next((f for f in root.glob("large_files.*")), None)
    if listed is not None and file.name in listed.read_text(encoding="utf-8"):
        command = f"python -m monai.bundle download_large_files --bundle_path {root}"
        raise InputError(f"weights '{file}' are missing: fetch them by `{command}`.")
    configs = [str(root / "configs" / name) for name in made_by]
    argument = configs[0] if len(configs) == 1 else f'"{configs}"'
    command = f"python -m monai.bundle run --config_file {argument} --bundle_root {root}"
    raise InputError(
        f"weights '{file}' are missing: make them by `{command}` (see docs/README.md)."
    )


def find_input_error(error: BaseException | None) -> InputError | None:
    """The InputError that ``error`` is or was raised from, be it in a DataLoader's worker."""
    for link in causes(error):
        if isinstance(link, InputError):
            return link
        told = FROM_WORKER.search(str(link))
        if told:
            return InputError(told.group(1))
    return None


def causes(error: BaseException | None) -> Iterable[BaseException]:
    """``error``, what it was explicitly raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def one_sentence_errors() -> None:
    """Makes this process end with the sentence of an InputError, if it is ``python -m
    monai.bundle``.

    Every other error keeps its traceback, and in any other program the exception is the program's
    to handle.
    """
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    if (
        main is None
        or main.name != "monai.bundle.__main__"
        or isinstance(sys.excepthook, OneSentenceHook)
    ):
        return
    sys.excepthook = OneSentenceHook(sys.excepthook)
    # MONAI's and ignite's loggers print the traceback before the interpreter does.
    for handler in logging.getLogger().handlers:
        handler.addFilter(is_no_input_error)


def is_no_input_error(record: logging.LogRecord) -> bool:
    """Whether a log record is about anything else than an InputError on its way to the user."""
    error = record.exc_info[1] if record.exc_info else None
    return find_input_error(error) is None and not FROM_WORKER.search(record.getMessage())


class OneSentenceHook:
    """Prints an InputError as ``error: <sentence>`` and leaves every other to ``previous``."""

    def __init__(
        self,
        previous: Callable[[type[BaseException], BaseException, TracebackType | None], object],
    ) -> None:
        self.previous = previous

    def __call__(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        found = find_input_error(error)
        if found is None:
            self.previous(kind, error, trace)
        else:
            print(f"error: {found}", file=sys.stderr)
