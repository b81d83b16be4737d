"""check_run: what is refused before a bundle runs, and how the command line says so."""

from __future__ import annotations

import io
import json
import logging
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow, run
from torch._utils import ExceptionWrapper

import gradprom
from gradprom import bundle
from gradprom.bundle import check_run, find_input_error
from gradprom.errors import InputError

CHECK = "$gradprom.bundle.check_run(@bundle_root"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A bundle that computes nothing: two configs, one an overlay."""
    configs = tmp_path / "bundle" / "configs"
    configs.mkdir(parents=True)
    config = {
        "imports": ["$import gradprom", "$import gradprom.bundle"],
        "bundle_root": ".",
        "epochs": 3,
        "optimizer": {"lr": 0.1},
        "run": [CHECK + ")"],
    }
    (configs / "train.json").write_text(json.dumps(config))
    overlay = {"optimizer#lr": 0.2, "+extra": [1], "spare": 1}
    (configs / "overlay.json").write_text(json.dumps(overlay))
    (configs / "metadata.json").write_text(json.dumps({"version": "0.1.0"}))
    (configs / "logging.conf").write_text("")
    return tmp_path / "bundle"


def start(root: Path, *overlays: Path, **override: object) -> None:
    """Runs the bundle in this process; an InputError comes out as itself."""
    files = [str(f) for f in (root / "configs" / "train.json", *overlays)]
    try:
        run(config_file=files, bundle_root=str(root), logging_file=False, **override)
    except RuntimeError as error:
        found = find_input_error(error)
        if found is None:
            raise
        raise found from None


class TestKeys:
    """Misspelt top-level overrides, which MONAI accepts in silence."""

    @pytest.mark.parametrize(
        "override",
        [
            {},
            {"epochs": 5},
            {"optimizer#lr": 1.0},
            {"optimizer": {"lr": 2}},
            {"spare": 2},
            {"extra": []},
        ],
    )
    def test_known(self, root: Path, override: dict[str, Any]) -> None:
        start(root, **override)

    @pytest.mark.parametrize(
        ("typed", "meant"), [("ephocs", "epochs"), ("optimiser", "optimizer"), ("xqz", "")]
    )
    def test_misspelt(self, root: Path, typed: str, meant: str) -> None:
        with pytest.raises(InputError, match=rf"'{typed}' is no key .*write '{meant}.*\.$"):
            start(root, **{typed: 5})

    def test_misspelt_through_the_workflow(self, root: Path) -> None:
        workflow = ConfigWorkflow(
            str(root / "configs" / "train.json"),
            logging_file=False,
            ephocs=1,
            bundle_root=str(root),
        )
        workflow.initialize()
        with pytest.raises(RuntimeError) as caught:
            workflow.run()
        assert "'ephocs'" in str(find_input_error(caught.value))

    def test_a_key_of_another_overlay_that_something_refers_to(
        self, root: Path, tmp_path: Path
    ) -> None:
        overlay = tmp_path / "mine.json"
        overlay.write_text(json.dumps({"rate": 0.5, "optimizer#lr": "@rate"}))
        start(root, overlay)
        overlay.write_text(json.dumps({"rate": 0.5, "optimizer#lr": "$2 * @rat"}))
        with pytest.raises(InputError, match="'rate'"):
            start(root, overlay)

    def test_a_key_that_refers_only_to_itself_is_no_better(self, root: Path) -> None:
        with pytest.raises(InputError, match="'ephocs'"):
            start(root, ephocs="$1 if False else @ephocs")

    def test_keys_that_monai_adds_for_tracking(self, root: Path) -> None:
        start(root, output_dir=str(root), tracking_uri="x", experiment_name="y", run_name=None)

    def test_other_names_of_the_run(self, root: Path) -> None:
        start(root, run_id="mine", mine=[CHECK + ")"])


class TestVersion:
    """A packed bundle names the version of the package it was packed with."""

    def metadata(self, root: Path, **content: str) -> None:
        (root / "configs" / "metadata.json").write_text(json.dumps(content))

    def test_same(self, root: Path) -> None:
        self.metadata(root, gradprom_version=gradprom.__version__)
        check_run(root)

    def test_other(self, root: Path) -> None:
        self.metadata(root, gradprom_version="9.9.9")
        with pytest.raises(
            InputError, match=rf"metadata\.json.*9\.9\.9 but {gradprom.__version__}.*new"
        ):
            check_run(root)

    def test_no_metadata(self, root: Path) -> None:
        (root / "configs" / "metadata.json").unlink()
        check_run(root)


class TestFiles:
    """Folders and weights that must exist."""

    def test_bundle_root(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=rf"bundle_root '{tmp_path}'.*configs"):
            check_run(tmp_path)

    def test_dataset(self, root: Path) -> None:
        check_run(root, dataset_dir=root)
        with pytest.raises(InputError, match=r"dataset_dir 'no/where'.*--dataset_dir"):
            check_run(root, dataset_dir="no/where")

    def test_weights_name_the_command_that_makes_them(self, root: Path) -> None:
        weights = root / "models" / "model.pt"
        with pytest.raises(InputError) as caught:
            check_run(root, weights=[root / "configs" / "train.json", weights])
        config = root / "configs" / "train.json"
        command = f"python -m monai.bundle run --config_file {config} --bundle_root {root}"
        assert str(weights) in str(caught.value)
        assert command in str(caught.value)
        weights.parent.mkdir()
        weights.touch()
        check_run(root, weights=[weights])

    def test_weights_made_by_an_overlay(self, root: Path) -> None:
        with pytest.raises(InputError, match=r"\"\['.*/train\.json', '.*/pretrain\.json'\]\""):
            check_run(root, weights=["r.pt"], made_by=["train.json", "pretrain.json"])

    def test_weights_that_are_fetched(self, root: Path) -> None:
        (root / "large_files.yml").write_text("large_files:\n  - path: models/model.pt\n")
        with pytest.raises(InputError, match=f"download_large_files --bundle_path {root}"):
            check_run(root, weights=[root / "models" / "model.pt"])
        with pytest.raises(InputError, match="run --config_file"):
            check_run(root, weights=[root / "models" / "other.pt"])


def raised(function: Callable[[], Any]) -> BaseException:
    with pytest.raises(Exception) as caught:
        function()
    return caught.value


def wrapped(error: Exception) -> BaseException:
    def function() -> None:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("applying transform") from cause

    return raised(function)


class TestSentence:
    """Finding the sentence in what MONAI and PyTorch wrap around it, and printing nothing else."""

    @pytest.fixture
    def log(self, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
        """Pretends to be ``python -m monai.bundle``; what its root logger prints."""
        main = types.ModuleType("__main__")
        main.__spec__ = types.SimpleNamespace(name="monai.bundle.__main__")  # type: ignore[assignment]
        monkeypatch.setitem(sys.modules, "__main__", main)
        monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
        stream = io.StringIO()
        monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(stream)])
        return stream

    def test_found_through_causes_only(self) -> None:
        assert str(find_input_error(InputError("a."))) == "a."
        assert str(find_input_error(wrapped(InputError("a.")))) == "a."
        assert find_input_error(wrapped(ValueError("a."))) is None
        assert find_input_error(None) is None

    def test_found_across_a_worker_process(self) -> None:
        try:
            raise wrapped(InputError("item 0 is bad: mend it."))
        except RuntimeError:
            # What a DataLoader's worker sends instead of the exception.
            sent = ExceptionWrapper(where="in DataLoader worker process 0")
        error = raised(sent.reraise)
        assert error.__cause__ is None
        assert str(find_input_error(error)) == "item 0 is bad: mend it."

    def test_a_library_user_keeps_the_hook(self, root: Path) -> None:
        before = sys.excepthook
        check_run(root)
        assert sys.excepthook is before

    @pytest.mark.usefixtures("log")
    def test_the_command_line_prints_one_sentence(
        self, root: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        check_run(root)
        check_run(root)
        error = wrapped(InputError("a is b: do c."))
        sys.excepthook(type(error), error, error.__traceback__)
        assert capsys.readouterr().err == "error: a is b: do c.\n"

    @pytest.mark.usefixtures("log")
    def test_every_other_error_keeps_its_traceback(
        self, root: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        check_run(root)
        error = wrapped(KeyError("a"))
        sys.excepthook(type(error), error, error.__traceback__)
        assert "Traceback" in capsys.readouterr().err

    def test_no_logger_prints_the_traceback_first(self, root: Path, log: io.StringIO) -> None:
        check_run(root)
        logger = logging.getLogger("engine")
        logger.error("on its way", exc_info=wrapped(InputError("a.")))
        logger.error("from a worker\ngradprom.errors.InputError: a.\n")
        logger.error("kept", exc_info=wrapped(KeyError("a")))
        logger.error("kept too")
        assert "way" not in log.getvalue()
        assert "worker" not in log.getvalue()
        assert log.getvalue().startswith("kept\nTraceback")
        assert log.getvalue().endswith("kept too\n")

    def test_outside_a_workflow_nothing_is_walked_into(self) -> None:
        assert bundle.running_workflow() is None
