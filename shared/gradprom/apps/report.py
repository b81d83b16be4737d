"""The demo's figures as a table, as sentences and as metrics.json."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from gradprom.apps.evaluation import CLEAN, FIGURES, GAUSSIAN, Comparison

HEADINGS = ("PSNR image", "PSNR brain", "SSIM image", "SSIM brain", "Tissue Dice")
PACKAGES = ("gradprom", "torch", "monai", "pytorch-ignite", "numpy", "scikit-image", "nilearn")


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard deviation over images; None where there is no finite one."""
    if not all(math.isfinite(value) for value in values):
        return {"mean": None, "sd": None}
    return {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else None}


def summary(found: Comparison) -> dict[str, dict[str, dict[str, float | None]]]:
    """Mean and deviation of every figure of every method."""
    return {
        method: {figure: spread(scores[figure]) for figure in FIGURES}
        for method, scores in found.scores.items()
    }


def rows(results: Sequence[Comparison]) -> list[list[str]]:
    """The table: noise, method and `HEADINGS`, each figure as "mean ± deviation"."""
    table = []
    for found in results:
        for method, figures in summary(found).items():
            cells = [_cell(figures[figure], 3 if "psnr" not in figure else 1) for figure in FIGURES]
            table.append([found.noise.name, method, *cells])
    return table


def _cell(value: Mapping[str, float | None], digits: int) -> str:
    mean, deviation = value["mean"], value["sd"]
    if mean is None:
        return "-"
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if deviation is not None else "")


def table_text(results: Sequence[Comparison]) -> str:
    """The table for a terminal."""
    lines = [["Noise", "Method", *HEADINGS], *rows(results)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    texts = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([texts[0], "-" * sum(widths), *texts[1:]])


def sentences(results: Sequence[Comparison], gated: str, other: str) -> list[str]:
    """For each noise, the gated arm against the Gaussian filter and against the other arm."""
    found = []
    for each in results:
        means = {
            method: [fmean(scores[figure]) for figure in ("psnr", "psnr_brain", "dice")]
            for method, scores in each.scores.items()
        }
        filtered = [a - b for a, b in zip(means[gated], means[GAUSSIAN], strict=True)]
        ungated = [a - b for a, b in zip(means[gated], means[other], strict=True)]
        found.append(
            f"{each.noise.name}: {gated} has {means[gated][0]:.1f} dB over the whole image and "
            f"{means[gated][1]:.1f} dB inside the brain. Against the best Gaussian filter that is "
            f"{filtered[0]:+.1f} and {filtered[1]:+.1f} dB; against the same training without the "
            f"gate {ungated[0]:+.2f} and {ungated[1]:+.2f} dB, and {ungated[2]:+.3f} Dice."
        )
    return found


def machine() -> dict[str, Any]:
    """What it ran on: processor, cores that may be used, GPU, system, peak memory so far."""
    count = getattr(os, "sched_getaffinity", None)
    cores = len(count(0)) if count else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "system": platform.system(),
        "peak_memory_gb": _peak_memory(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _peak_memory() -> float | None:
    """Largest resident size of this process in GB; None where the system does not tell."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e9 if platform.system() == "Darwin" else 1e6), 2)


def versions() -> dict[str, str]:
    """Versions of Python and of what the figures depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def result(found: Comparison) -> dict[str, Any]:
    """One noise's part of metrics.json."""
    return {
        "noise": {"kind": found.noise.kind, "sigma": found.noise.sigma},
        "images": len(found.images[CLEAN]),
        "methods": summary(found),
        "settings": found.settings,
    }
