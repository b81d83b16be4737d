"""Trains a bundle with and without the gate and shows what it did, in numbers and pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import Tensor, nn

from gradprom.apps import baselines, evaluation, figures, page, report, training
from gradprom.apps.evaluation import NOISES, Comparison
from gradprom.apps.training import GRADPROM, OFF, Run
from gradprom.data import mni152
from gradprom.errors import InputError

MARKER = ".gradprom-demo"
SHIPPED = "Shipped weights"
SLICES = 24  # at most; the held-out block has 23
TUNING_SLICES = 4


def run(out: str, dims: int, seed: int, bundle: str | None = None, **overrides: Any) -> Path:  # noqa: ANN401
    """The whole demo; returns the path of the page.

    Args:
        out: folder that gets metrics.json, pictures and index.html.
        dims: 2 or 3.
        seed: of training and noise, >= 0.
        bundle: its folder; default see `training.find_bundle`.
        overrides: top-level keys of the bundle's train.json, e.g. `epochs=2`.

    Raises:
        InputError: an argument, the bundle or the folder is not as it should be.
    """
    start = perf_counter()
    if dims not in (2, 3):
        raise InputError(f"--dims is {dims!r}; give 2 or 3.")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
        raise InputError(f"--seed is {seed!r}; give a whole number from 0 to 2147483647.")
    source = training.find_bundle(dims, bundle)
    folder = claim(Path(out))
    print(f"Preparing the MNI152 atlas as {'slices' if dims == 2 else 'volumes'} ...")
    datalist = mni152.prepare(folder / "runs" / "data", dims).absolute()
    runs = _train(source, folder / "runs", datalist, seed, overrides)
    print("Comparing on the held-out block ...")
    results = _compare(source, runs, datalist, seed)
    facts = _facts(runs, dims, seed, overrides)
    facts["minutes"]["in all"] = round((perf_counter() - start) / 60, 2)
    _write(folder, runs, results, facts)
    print(f"\n{report.table_text(results)}\n")
    print("\n".join(report.sentences(results, GRADPROM.name, OFF.name)))
    print(f"\n{facts['minutes']['in all']:.1f} minutes. Look at {folder / 'index.html'}")
    return folder / "index.html"


def claim(folder: Path) -> Path:
    """Make `folder` ready: empty but for a marker, or cleared if an earlier demo has marked it.

    Raises:
        InputError: it holds something else; nothing is touched then.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder} is a file; give a new folder.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise InputError(
            f"--out {folder} holds files that the demo did not make; give a new or an empty folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text("made by `python -m gradprom demo`\n", encoding="utf-8")
    shutil.rmtree(folder / "runs", ignore_errors=True)
    return folder


def _train(
    bundle: Path, folder: Path, datalist: Path, seed: int, overrides: dict[str, Any]
) -> list[Run]:
    """Both arms, one after the other."""
    keys = {"dataset_dir": str(datalist.parent), "datalist": str(datalist), "seed": seed}
    runs = []
    for number, arm in enumerate((GRADPROM, OFF), 1):
        label = f"Training {number} of 2, {arm.name}"
        output = (folder / arm.rule).absolute()
        runs.append(training.train(bundle, arm, output, label, **keys, **overrides))
    return runs


def _compare(bundle: Path, runs: Sequence[Run], datalist: Path, seed: int) -> list[Comparison]:
    """Every method under every noise."""
    cases = evaluation.read_cases(datalist, "test", SLICES)
    tuning = evaluation.read_cases(datalist, "validation", TUNING_SLICES)
    enhancers = _enhancers(bundle, runs)
    weights = bundle / "models" / "recogniser.pt"
    recogniser = training.network(bundle, "recogniser_def", weights)
    results = []
    for noise in NOISES:
        strength = evaluation.tuned_strength(tuning, noise, seed)
        results.append(evaluation.compare(cases, noise, enhancers, recogniser, seed, strength))
    return results


def _enhancers(bundle: Path, runs: Sequence[Run]) -> dict[str, Callable[[Tensor], Tensor]]:
    """The networks by the names of their arms, `off` first, and the shipped one if there is one."""
    networks: dict[str, nn.Module] = {
        run.arm.name: training.network(bundle, "network_def", run.weights, ("demo.json",))
        for run in reversed(runs)
    }
    shipped = bundle / "models" / "model.pt"
    if shipped.is_file():
        networks[SHIPPED] = training.network(bundle, "network_def", shipped)
    return {name: training.normalised(network) for name, network in networks.items()}


def _facts(runs: Sequence[Run], dims: int, seed: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """What metrics.json says beside the figures."""
    minutes = {run.arm.name: round(run.minutes, 2) for run in runs}
    return {
        "made_by": "python -m gradprom demo",
        "dims": dims,
        "seed": seed,
        "overrides": overrides,
        "minutes": minutes,
        "machine": report.machine(),
        "versions": report.versions(),
        "split": {part: list(blocks) for part, blocks in mni152.BLOCKS.items()},
        "settings": {
            "range": "0..255 divided by 255; noise in these units, not clipped before denoising",
            "clipping": "[0, 1] on both sides before PSNR and SSIM",
            "ssim": "Gaussian window, sigma 1.5, 11 wide",
            "gaussian": {"widths": baselines.WIDTHS, "chosen": "per image, by the truth"},
            "non_local_means": {
                "patch_size": baselines.PATCH_SIZE,
                "patch_distance": baselines.PATCH_DISTANCE[dims],
                "h": "strength times estimated sigma, which is also given as sigma",
                "strengths": baselines.STRENGTHS,
                "chosen": "per noise, best mean of image and brain PSNR on the validation block",
                "sigma": "median |Haar detail| / 0.6745, per image",
            },
        },
    }


def _write(
    folder: Path, runs: Sequence[Run], results: Sequence[Comparison], facts: dict[str, Any]
) -> None:
    """metrics.json, pictures, page."""
    facts["results"] = [report.result(found) for found in results]
    facts["history"] = {run.arm.rule: run.history for run in runs}
    text = json.dumps(facts, indent=1, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
    pictures = [*figures.draw_results(results, folder), "training.png"]
    figures.draw_training(runs[0], runs[1], folder / "training.png")
    html = page.page(results, pictures, _listing(results, facts), GRADPROM.name, OFF.name)
    (folder / "index.html").write_text(html, encoding="utf-8")


def _listing(results: Sequence[Comparison], facts: dict[str, Any]) -> dict[str, str]:
    """The facts that the page shows, in words."""
    machine, minutes = facts["machine"], facts["minutes"]
    strengths = [f"{r.settings['non_local_means_strength']} ({r.noise.name})" for r in results]
    parts = "; ".join(
        f"{part} " + " and ".join(f"{first} to {last - 1}" for first, last in blocks)
        for part, blocks in facts["split"].items()
    )
    epochs = max(line["epoch"] for line in facts["history"]["gradprom"])
    return {
        "Data": "MNI152 T1 template in the nilearn package, 1 mm, brain only; contiguous blocks of "
        f"axial slices with gaps of 7 mm between the parts: {parts}",
        "Training": f"{epochs} epochs for each arm, seed {facts['seed']}",
        "Noise": "deviations are shares of the range 0 to 1; noisy images are not clipped",
        "Non-local means": f"patches of 5, search radius "
        f"{facts['settings']['non_local_means']['patch_distance']}, noise estimated from the "
        f"image, h in estimated deviations, best on the validation block: {', '.join(strengths)}",
        "Gaussian filter": f"widths {baselines.WIDTHS[0]} to {baselines.WIDTHS[-1]} pixels",
        "Machine": f"{machine['processor']}, {machine['cores']} cores, GPU: {machine['gpu']}, "
        f"peak memory {machine['peak_memory_gb']} GB",
        "Minutes": ", ".join(f"{name} {value:.1f}" for name, value in minutes.items()),
        "Versions": ", ".join(f"{name} {value}" for name, value in facts["versions"].items()),
    }
