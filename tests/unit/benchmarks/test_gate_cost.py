"""Ratios, limits and exit code of the benchmark, on given timings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gate_cost


def run(tmp_path: Path, trained: float, frozen: float) -> int:
    """Run the command where a joint step takes 1 s and GradProm what is given."""
    seconds = {"joint": 1.0, "gradprom": trained, "joint, frozen": 0.8, "gradprom, frozen": frozen}

    def time_steps(_dims: int, _device: torch.device, steps: int, _amp: str) -> gate_cost.Times:
        return {arm: [seconds.get(arm, 2.0)] * steps for arm in gate_cost.ARMS}

    def peak_memory(_arm: str, _dims: int, _device: torch.device, _amp: str) -> float:
        return 100.0

    return gate_cost.main(["--out", str(tmp_path)], time_steps, peak_memory)


@pytest.mark.parametrize(
    ("trained", "frozen", "code"),
    [(1.5, 0.8 * 1.7, 0), (1.51, 0.8, 1), (1.0, 0.8 * 1.71, 1), (float("nan"), 0.8, 1)],
)
def test_exit_code_follows_both_limits(
    tmp_path: Path, trained: float, frozen: float, code: int
) -> None:
    assert run(tmp_path, trained, frozen) == code


def test_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, 1.25, 1.0)
    report = json.loads((tmp_path / "gate_cost_cpu.json").read_text())
    row = next(row for row in report["rows"]["3"] if row["arm"] == "gradprom, frozen")
    assert row["ratio"] == pytest.approx(1.25)
    assert row["peak_mb"] == 100
    assert (tmp_path / "gate_cost_cpu.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "within the limits" in printed
    assert printed.count("gradprom, frozen") == 2


def test_ratio_is_the_median_of_pairs_and_not_of_medians() -> None:
    # A machine that slows down tenfold halfway changes no pair.
    joint = [1.0, 1.0, 10.0, 10.0, 10.0]
    gated = [1.2, 1.2, 12.0, 12.0, 24.0]
    rows = gate_cost.compare({"joint": joint, "gradprom": gated}, {"joint": 1, "gradprom": 1})
    assert rows[1]["ratio"] == pytest.approx(1.2)
    assert rows[1]["ratio_p10"] == pytest.approx(1.2)
    assert rows[1]["ratio_p90"] > 1.2
    assert rows[0]["ratio"] == 1


@pytest.mark.parametrize("arguments", [["--steps", "29"], ["--amp", "fp16"]])
def test_refuses_what_it_cannot_measure(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        gate_cost.main(arguments)
    assert arguments[-1] in capsys.readouterr().err
