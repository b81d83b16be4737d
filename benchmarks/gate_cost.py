"""What a GradProm step costs beside a joint step: `python -m benchmarks.gate_cost`.

Every arm runs on MONAI's stock trainer with the networks, patch and batch size of a bundle. Arms
take turns, so that a disturbance of the machine meets all of them; each GradProm step is divided by
the joint step of the same round, and the median of those ratios is held against the limit.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.engines import SupervisedTrainer

from benchmarks.steps import ARMS, finish, make_trainer, run_step

LIMITS = {"gradprom": 1.5, "gradprom, frozen": 1.7}
"""Largest median ratio to the joint step of the same recogniser that passes."""

Times = Mapping[str, Sequence[float]]
Row = dict[str, Any]


def arms(amp: str) -> list[str]:
    """The arms that can run here: PCGrad needs TorchJD, and its step has no loss scaling."""
    pcgrad = amp == "off" and find_spec("torchjd") is not None
    return [arm for arm in ARMS if arm != "pcgrad" or pcgrad]


def time_steps(dims: int, device: torch.device, steps: int, amp: str) -> dict[str, list[float]]:
    """Seconds of each of `steps` steps of each arm, in turns, after three to warm up."""
    warm_up = 3
    trainers = {arm: make_trainer(arm, dims, device, steps + warm_up, amp) for arm in arms(amp)}
    times: dict[str, list[float]] = {arm: [] for arm in trainers}
    for turn in range(steps + warm_up):
        names = list(trainers)
        for arm in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds = _time(trainers[arm], device)
            if turn >= warm_up:
                times[arm].append(seconds)
    for trainer in trainers.values():
        finish(trainer)
    return times


def _time(trainer: SupervisedTrainer, device: torch.device) -> float:
    """Seconds of one step; on a CPU of its one thread, so that other programs count less."""
    if device.type == "cpu":
        start = time.process_time()
        run_step(trainer)
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run_step(trainer)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_memory(arm: str, dims: int, device: torch.device, amp: str) -> float:
    """MB that networks, optimizers and two steps of one arm need at most.

    On CUDA what PyTorch allocates. On a CPU the growth of the resident set of a process of its own.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        _two_steps(arm, dims, device, amp)
        return (torch.cuda.max_memory_allocated() - start) / 1e6
    # Forked: it inherits the imported libraries, and its peak starts from them.
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_growth, args=(sender, arm, dims, device, amp))
    child.start()
    sender.close()
    megabytes = receiver.recv()
    child.join()
    return megabytes


def _send_growth(sender: Any, *arguments: Any) -> None:  # noqa: ANN401 - passed on
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _two_steps(*arguments)
    sender.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) * 1024 / 1e6)


def _two_steps(arm: str, dims: int, device: torch.device, amp: str) -> None:
    trainer = make_trainer(arm, dims, device, 2, amp)
    run_step(trainer)
    run_step(trainer)
    finish(trainer)


def compare(times: Times, memory: Mapping[str, float]) -> list[Row]:
    """One row per arm: median step, median and spread of the paired ratio to its joint step.

    Args:
        times: seconds of each step; step i of all arms belongs to one round.
        memory: peak of each arm, MB.
    """
    rows = []
    for arm, seconds in times.items():
        joint = times["joint, frozen" if "frozen" in arm else "joint"]
        ratios = np.divide(seconds, joint)
        low, middle, high = (float(q) for q in np.quantile(ratios, (0.1, 0.5, 0.9)))
        rows.append(
            {
                "arm": arm,
                "milliseconds": 1e3 * float(np.median(seconds)),
                "ratio": middle,
                "ratio_p10": low,
                "ratio_p90": high,
                "limit": LIMITS.get(arm),
                "peak_mb": memory[arm],
            }
        )
    return rows


def too_slow(rows: Sequence[Row]) -> list[Row]:
    """The rows whose median ratio is above their limit, or not a number."""
    return [row for row in rows if row["limit"] and not row["ratio"] <= row["limit"]]


def machine(device: torch.device) -> str:
    """The kind of machine, e.g. `Intel Xeon, one thread`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")  # Linux; elsewhere the name is that of the architecture
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.machine()])[0]}, one thread"


def table(rows: Sequence[Row], dims: int) -> str:
    """The rows as text, one line each under a heading."""
    lines = [f"{f'{dims}D':18}{'ms':>8}{'x joint':>9}{'p10-p90':>13}{'limit':>7}{'peak MB':>9}"]
    for row in rows:
        spread = f"{row['ratio_p10']:.2f}-{row['ratio_p90']:.2f}"
        limit = f"{row['limit']:.2f}" if row["limit"] else ""
        lines.append(
            f"{row['arm']:18}{row['milliseconds']:8.1f}{row['ratio']:9.2f}{spread:>13}"
            f"{limit:>7}{row['peak_mb']:9.0f}"
        )
    return "\n".join(lines)


def draw(results: Mapping[int, Sequence[Row]], title: str, path: Path) -> None:
    """Bars of the ratios with their spread, and the limits."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(4.5 * len(results), 3.2), squeeze=False)
    for axis, (dims, rows) in zip(axes[0], results.items(), strict=True):
        ratio = np.array([row["ratio"] for row in rows])
        low, high = (np.array([row[f"ratio_{p}"] for row in rows]) for p in ("p10", "p90"))
        names = [row["arm"] for row in rows]
        axis.barh(names, ratio, xerr=[ratio - low, high - ratio], color="#4c78a8", capsize=3)
        for place, row in enumerate(rows):
            if row["limit"]:
                axis.plot([row["limit"]] * 2, [place - 0.4, place + 0.4], color="#d62728")
        axis.invert_yaxis()
        axis.set(title=f"{dims}D", xlabel="time of a step / joint step")
    figure.suptitle(f"Cost of a step, median and 10th to 90th percentile\n{title}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate_cost", description=__doc__)
    parser.add_argument("--steps", type=int, default=40, help="timed steps of each arm, >= 30")
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 3], choices=(2, 3))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", default="off", choices=("off", "fp16", "bf16"), help="CUDA only")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    if options.steps < 30:
        parser.error(f"--steps must be at least 30, got {options.steps}")
    if options.amp != "off" and not options.device.startswith("cuda"):
        parser.error(f"--amp {options.amp} needs --device cuda, got {options.device}")
    return options


def main(
    arguments: Sequence[str] | None = None,
    time_steps: Callable[[int, torch.device, int, str], Times] = time_steps,
    peak_memory: Callable[[str, int, torch.device, str], float] = peak_memory,
) -> int:
    """Measure, print, write JSON and PNG; 1 if a GradProm step is above its limit, else 0."""
    options = parse(arguments)
    device, amp = torch.device(options.device), options.amp
    torch.set_num_threads(1)
    # Memory first: the processes that measure it are forked before this one starts its threads.
    memory = {d: {arm: peak_memory(arm, d, device, amp) for arm in arms(amp)} for d in options.dims}
    times = {d: time_steps(d, device, options.steps, amp) for d in options.dims}
    results = {d: compare(times[d], memory[d]) for d in options.dims}
    title = f"{machine(device)}, torch {torch.__version__}" + (f", {amp}" if amp != "off" else "")
    print(title, *(table(rows, d) for d, rows in results.items()), sep="\n")
    name = device.type if amp == "off" else f"{device.type}_{amp}"
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"gate_cost_{name}"
    report = {"machine": title, "steps": options.steps, "rows": results}
    path.with_suffix(".json").write_text(json.dumps(report, indent=4) + "\n")
    draw(results, title, path.with_suffix(".png"))
    slow = [f"{d}D {row['arm']}" for d, rows in results.items() for row in too_slow(rows)]
    print(f"above the limit: {', '.join(slow)}" if slow else f"within the limits; see {path}.png")
    return bool(slow)


if __name__ == "__main__":
    sys.exit(main())
