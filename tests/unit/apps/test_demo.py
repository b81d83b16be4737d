"""The command line, the refusals, and (slow) the whole demo with very short training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

import gradprom.__main__ as cli
from gradprom.apps import demo, training
from gradprom.errors import InputError

ROOT = Path(__file__).parents[3]
BUNDLE = ROOT / "bundles" / "gradprom_mni152_2d"


def test_help_without_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "python -m gradprom demo [--out report]" in capsys.readouterr().out


def test_a_group_without_a_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data"]) == 0
    assert "data fetch mni152_2d --root DIR" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["demo", "--sed", "1"], ["demo", "a", "2", "0", "b", "c"], ["dmeo"], ["data", "get"]],
)
def test_what_is_not_understood_stops_before_any_work(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "run", lambda *_: pytest.fail("the demo has started"))
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "ERROR" in capsys.readouterr().err


def test_flags_reach_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(demo, "run", lambda *arguments: seen.extend(arguments))
    assert cli.main(["demo", "--out", "2026", "--dims=3", "--seed", "7", "--bundle", "b"]) == 0
    assert seen == ["2026", 3, 7, "b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--dims", "4"], "--dims is 4; give 2 or 3."),
        (["demo", "--seed", "x"], "--seed is 'x'; give a whole number"),
        (["demo", "--seed", "-1"], "--seed is -1; give a whole number"),
        (["demo", "--seed", "True"], "--seed is True; give a whole number"),
        (["demo", "--bundle", "nowhere"], "nowhere is not a bundle with configs/train.json"),
        (["data", "fetch", "mni", "--root", "r"], "no data set is called 'mni'"),
    ],
)
def test_one_sentence_and_exit_code_1(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_fetch_writes_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr("gradprom.data.mni152.prepare", lambda *found: seen.extend(found))
    assert cli.main(["data", "fetch", "mni152_3d", "--root", str(tmp_path)]) == 0
    assert seen == [str(tmp_path), 3]


def test_a_folder_of_others_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds files that the demo did not make"):
        demo.claim(tmp_path)
    assert (tmp_path / "runs" / "thesis.txt").read_text() == "mine"
    assert not (tmp_path / demo.MARKER).exists()
    with pytest.raises(InputError, match="is a file"):
        demo.claim(tmp_path / "runs" / "thesis.txt")


def test_an_own_folder_is_used_again_without_old_runs(tmp_path: Path) -> None:
    folder = demo.claim(tmp_path / "new" / "report")
    (folder / "runs").mkdir()
    (folder / "runs" / "history.jsonl").write_text("old")
    demo.claim(folder)
    assert not (folder / "runs").exists()


def test_the_bundle_is_found_here_or_in_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert training.find_bundle(2, None) == BUNDLE
    assert training.find_bundle(2, "bundles/gradprom_mni152_2d") == BUNDLE
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training.gradprom, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    with pytest.raises(InputError, match="run the demo in the repository's folder"):
        training.find_bundle(2, None)


@pytest.mark.parametrize("dims", [2, 3])
def test_both_arms_differ_in_the_rule_alone(dims: int) -> None:
    """Steps, data, network and augmentation are the same, so that the gate is what is compared."""
    bundle = ROOT / "bundles" / f"gradprom_mni152_{dims}d"
    configs = []
    for arm in (training.GRADPROM, training.OFF):
        names = ("train.json", *arm.overlays)
        files = [str(bundle / "configs" / name) for name in names]
        configs.append(ConfigParser.load_config_files(files))
    different = {
        key for key in {*configs[0], *configs[1]} if configs[0].get(key) != configs[1].get(key)
    }
    assert different <= {"rule", "recogniser", "recogniser_optimizer", "output_dir"}
    assert (configs[0]["rule"], configs[1]["rule"]) == ("gradprom", "off")


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 3])
def test_the_whole_demo(dims: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(ROOT / "bundles" / f"gradprom_mni152_{dims}d")
    out = tmp_path / "report"
    demo.run(str(out), dims, 1, bundle, epochs=2, val_interval=1)
    found = json.loads((out / "metrics.json").read_text())
    assert found["seed"] == 1 and found["minutes"]["in all"] > 0
    assert [each["noise"]["sigma"] for each in found["results"]] == [0.05, 0.10, 0.10]
    methods = found["results"][1]["methods"]
    assert {"Noisy", "Best Gaussian", "GradProm", "No gate (off)"} < set(methods)
    assert methods["Clean"]["dice"]["mean"] > methods["Noisy"]["dice"]["mean"]
    rates = [x["gradprom_on_rate"] for x in found["history"]["gradprom"] if x["phase"] == "train"]
    assert len(rates) == 2 and all(0 <= rate <= 1 for rate in rates)
    assert any(line["phase"] == "validation" for line in found["history"]["off"])
    html = (out / "index.html").read_text()
    for name in ("contact_sheet", "detail", "error_maps", "segmentation", "training"):
        assert f"{name}.png" in html and (out / f"{name}.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "PSNR brain" in printed and f"Look at {out / 'index.html'}" in printed
