"""A plain MONAI config becomes a GradProm run by an overlay with one handler entry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor

from tests.properties import largest_difference
from tests.unit.handlers.rig import Record

EPOCHS = 4
SCHEDULERS = {
    "LambdaLR": {"lr_lambda": "$lambda step: 0.9**step"},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": "$@train#trainer#max_epochs * 6"},
}


def plain_config(scheduler: str) -> dict[str, Any]:
    """Image-to-image training as in the model zoo; it knows nothing of this project."""
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "device": "$torch.device('cpu')",
        "dataset_dir": ".",
        "generator": "$torch.Generator().manual_seed(0)",
        "items": [],
        "network_def": {
            "_target_": "UNet",
            "spatial_dims": 2,
            "in_channels": 1,
            "out_channels": 1,
            "channels": [4, 8],
            "strides": [2],
            "norm": "INSTANCE",
        },
        "network": "$@network_def.to(@device)",
        "optimizer": {
            "_target_": "torch.optim.SGD",
            "params": "$@network.parameters()",
            "lr": 0.05,
            "momentum": 0.9,
        },
        "lr_scheduler": {
            "_target_": f"torch.optim.lr_scheduler.{scheduler}",
            "optimizer": "@optimizer",
            **SCHEDULERS[scheduler],
        },
        "ckpt": "",
        "train": {
            "dataset": {"_target_": "Dataset", "data": "@items"},
            "dataloader": {"_target_": "DataLoader", "dataset": "@train#dataset", "batch_size": 2},
            "inferer": {"_target_": "SimpleInferer"},
            "handlers": [
                {
                    "_target_": "CheckpointLoader",
                    "_disabled_": "$not @ckpt",
                    "load_path": "@ckpt",
                    "load_dict": {
                        "network": "@network",
                        "optimizer": "@optimizer",
                        "lr_scheduler": "@lr_scheduler",
                    },
                },
                {
                    "_target_": "LrScheduleHandler",
                    "lr_scheduler": "@lr_scheduler",
                    "print_lr": False,
                    "epoch_level": False,
                },
                {
                    "_target_": "CheckpointSaver",
                    "save_dir": "@bundle_root",
                    "save_dict": {
                        "network": "@network",
                        "optimizer": "@optimizer",
                        "lr_scheduler": "@lr_scheduler",
                    },
                    "save_interval": 1,
                },
            ],
            "trainer": {
                "_target_": "SupervisedTrainer",
                "max_epochs": EPOCHS,
                "device": "@device",
                "train_data_loader": "@train#dataloader",
                "network": "@network",
                "loss_function": "$torch.nn.MSELoss()",
                "optimizer": "@optimizer",
                "inferer": "@train#inferer",
                "train_handlers": "@train#handlers",
            },
        },
        "run": ["$@train#trainer.run()"],
    }


def overlay(learns: bool) -> dict[str, Any]:
    """The one entry; a recogniser that learns also needs a name, for its optimizer."""
    recogniser: dict[str, Any] = {
        "_target_": "UNet",
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 3,
        "channels": [4, 8],
        "strides": [2],
    }
    entry: dict[str, Any] = {
        "_target_": "gradprom.handlers.GradPromHandler",
        "recogniser": recogniser,
        "auxiliary_loss": {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True},
        "auxiliary_target": "segmentation",
        "weight": 0.05,
    }
    if not learns:
        return {"+train#handlers": [entry]}
    entry["recogniser"] = "@recogniser"
    entry["recogniser_optimizer"] = {
        "_target_": "torch.optim.Adam",
        "params": "$@recogniser.parameters()",
    }
    return {"recogniser": recogniser, "+train#handlers": [entry]}


def make_items() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    items = []
    for _ in range(12):
        clean = torch.rand((1, 16, 16), generator=generator)
        noisy = clean + 0.5 * torch.randn(clean.shape, generator=generator)
        item = {"image": noisy, "label": clean, "segmentation": (clean * 2.999).floor()}
        items.append({k: MetaTensor(v) for k, v in item.items()})
    return items


def train(
    folder: Path, scheduler: str, gated: bool, learns: bool = False, **override: object
) -> tuple[dict[str, torch.Tensor], Record]:
    """Run the config in this process and return the weights and what the gate did."""
    folder.mkdir(exist_ok=True)
    (folder / "train.json").write_text(json.dumps(plain_config(scheduler)))
    (folder / "gradprom.json").write_text(json.dumps(overlay(learns)))
    files = ["train.json", "gradprom.json"] if gated else ["train.json"]
    torch.manual_seed(0)
    workflow = ConfigWorkflow(
        config_file=[str(folder / name) for name in files],
        meta_file=None,
        logging_file=False,
        workflow_type="train",
        bundle_root=str(folder),
        items=make_items(),
        **override,
    )
    workflow.initialize()
    trainer, record = workflow.parser.get_parsed_content("train#trainer"), Record()
    if gated:
        trainer.add_event_handler(Events.ITERATION_COMPLETED, record)
    workflow.run()
    return workflow.parser.get_parsed_content("network").state_dict(), record


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_one_entry_makes_a_plain_config_a_gated_run(scheduler: str, tmp_path: Path) -> None:
    plain, _ = train(tmp_path / "plain", scheduler, gated=False)
    gated, record = train(tmp_path / "gated", scheduler, gated=True)
    assert largest_difference(plain, gated) > 1e-4
    assert len(record.gates) == EPOCHS * 6
    assert 0 < sum(record.gates) < len(record.gates)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_plain_configs_own_checkpoints_resume_exactly(scheduler: str, tmp_path: Path) -> None:
    straight, record = train(tmp_path / "straight", scheduler, gated=True)
    half = {"train#trainer#max_epochs": EPOCHS // 2}
    saved = str(tmp_path / "straight" / f"checkpoint_epoch={EPOCHS // 2}.pt")
    resumed, rest = train(tmp_path / "resumed", scheduler, gated=True, ckpt=saved, **half)
    assert largest_difference(straight, resumed) == 0.0
    assert rest.gates == record.gates[len(record.gates) // 2 :]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_learning_recogniser_joins_any_scheduler(scheduler: str, tmp_path: Path) -> None:
    frozen, _ = train(tmp_path / "frozen", scheduler, gated=True)
    learning, record = train(tmp_path / "learning", scheduler, gated=True, learns=True)
    assert 0 < sum(record.gates) < len(record.gates)
    assert largest_difference(frozen, learning) > 1e-6
