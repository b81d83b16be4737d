"""Both bundles train, with every overlay, on a few slices; a resumed run ends where an
uninterrupted one ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import run

from gradprom.data.mni152 import prepare

BUNDLES = Path(__file__).parents[2] / "bundles"
DIMS = (2, 3)
SMALL = {
    "epochs": 2,
    "val_interval": 2,
    "batch_size": 2,
    "repeats": 1,
    "texture": 0.5,
    "network_def#channels": [8, 8, 8],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The real data sets, each part cut down to a few items; each of two processes needs one."""
    roots = {}
    for dims in DIMS:
        root = tmp_path_factory.mktemp(f"mni152_{dims}d")
        path = prepare(root, dims)
        listing = json.loads(path.read_text())
        # The items in the middle of a block hold much brain.
        listing["training"] = listing["training"][20:24] if dims == 2 else listing["training"]
        listing |= {part: listing[part][:2] for part in ("validation", "test")}
        path.write_text(json.dumps(listing))
        roots[dims] = root
    return roots


def train(
    dims: int,
    data: Path,
    out: Path,
    *overlays: str,
    **override: Any,  # noqa: ANN401
) -> list[dict[str, Any]]:
    """Train in this process; returns the history's lines."""
    bundle = BUNDLES / f"gradprom_mni152_{dims}d"
    files = [str(bundle / "configs" / name) for name in ("train.json", *overlays)]
    settings = {"bundle_root": str(bundle), "dataset_dir": str(data), "output_dir": str(out)}
    sizes = {"crop_size": [48] * dims, "patch_size": [32] * dims}
    run(config_file=files, **{**settings, **sizes, **SMALL, **override})
    path = out / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("dims", DIMS)
def test_resumed_run_ends_where_an_uninterrupted_one_ends(
    dims: int, data: dict[int, Path], tmp_path: Path
) -> None:
    fixed = {"train#lr_scheduler#t_total": 100}
    train(dims, data[dims], tmp_path / "whole", epochs=4, **fixed)
    train(dims, data[dims], tmp_path / "parts", **fixed)
    lines = train(dims, data[dims], tmp_path / "parts", epochs=4, resume=True, **fixed)
    whole, parts = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
        for name in ("whole", "parts")
    )
    assert whole["trainer"]["iteration"] == parts["trainer"]["iteration"] > 0
    for name in ("network", "recogniser"):
        for key, value in whole[name].items():
            assert torch.equal(value, parts[name][key]), (name, key)
    assert [line["epoch"] for line in lines if line["phase"] == "train"] == [1, 2, 3, 4]
    # Best weights and their record belong together, and survive the interruption.
    assert json.loads((tmp_path / "parts" / "model.json").read_text()) == json.loads(
        (tmp_path / "whole" / "model.json").read_text()
    )


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize(
    ("overlay", "on_rate"),
    [("joint.json", 1.0), ("estr.json", 1.0), ("enhancement_only.json", 0.0)],
)
def test_control_overlays_hold_the_gate(
    overlay: str, on_rate: float, dims: int, data: dict[int, Path], tmp_path: Path
) -> None:
    recogniser = BUNDLES / f"gradprom_mni152_{dims}d" / "models" / "recogniser.pt"
    lines = train(dims, data[dims], tmp_path, overlay)
    assert [line["gradprom_on_rate"] for line in lines if line["phase"] == "train"] == [on_rate] * 2
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["recogniser"]
    before = torch.load(recogniser, weights_only=True)
    learnt = any(not torch.equal(kept[key], before[key]) for key in before)
    assert learnt == (overlay == "joint.json")


@pytest.mark.parametrize("dims", DIMS)
def test_recogniser_is_warmed_up_then_helps_and_is_evaluated(
    dims: int, data: dict[int, Path], tmp_path: Path
) -> None:
    train(dims, data[dims], tmp_path / "recogniser", "pretrain_recogniser.json")
    weights = tmp_path / "recogniser" / "model.pt"
    lines = train(dims, data[dims], tmp_path / "run", recogniser_weights=str(weights))
    gate = [line["gradprom_mean_ratio"] for line in lines if line["phase"] == "train"]
    assert len(gate) == 2 and min(gate) > 0
    train(
        dims,
        data[dims],
        tmp_path / "eval",
        "evaluate.json",
        weights=str(tmp_path / "run" / "model.pt"),
        recogniser_weights=str(weights),
    )
    (line,) = [
        json.loads(text) for text in (tmp_path / "eval" / "metrics.jsonl").read_text().splitlines()
    ]
    metrics = line["metrics"]
    assert {"psnr_noisy_body", "psnr_enhanced_body", "ssim_enhanced", "dice_clean"} <= set(metrics)
    assert 20 < metrics["psnr_noisy"] < 24  # sigma 0.1 of the range is 20 dB before clipping
    assert metrics["dice_noisy"] != metrics["dice_enhanced"] != metrics["dice_clean"]


def test_two_processes_train_one_network(data: dict[int, Path], tmp_path: Path) -> None:
    bundle = BUNDLES / "gradprom_mni152_2d"
    files = [str(bundle / "configs" / name) for name in ("train.json", "multi_gpu_train.json")]
    settings = {"bundle_root": bundle, "dataset_dir": data[2], "output_dir": tmp_path, **SMALL}
    settings |= {"crop_size": [48, 48], "patch_size": [32, 32]}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run", "--config_file", str(files)]
    for key, value in settings.items():
        command += [f"--{key}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert not any(key.startswith("module.") for key in content["network"])
    assert content["trainer"]["iteration"] == 2  # 4 slices, 2 in a batch, 2 processes, 2 epochs
