"""What should be alike in all bundles is alike; a deviation stands here with its reason."""

from __future__ import annotations

import json
import re
from itertools import permutations
from pathlib import Path
from pydoc import locate
from typing import Any

import pytest
from monai.bundle import ComponentLocator
from monai.bundle.properties import InferProperties, TrainProperties

from tests.bundles.found import BUNDLES, COUNT, ROOT, config, name_of, resolve, walk

CONFIGS = "train inference evaluate multi_gpu_train pretrain_recogniser estr joint enhancement_only"
FILES = [f"configs/{name}.json" for name in CONFIGS.split()]
FILES += ["LICENSE", "configs/metadata.json", "configs/logging.conf", "docs/README.md"]
FILES += ["docs/data_license.txt", "models/model.pt", "models/recogniser.pt"]
IDENTICAL = ("LICENSE", "configs/logging.conf", "configs/multi_gpu_train.json")
COMPLETE = ("train.json", "inference.json", "metadata.json")  # the others are overlays

# Top-level keys in their order. A key of one word must stand in every file, one in () may.
ORDER = {
    "train.json": (
        "imports bundle_root dataset_dir datalist output_dir recogniser_weights device amp seed"
        " resume keep epochs val_interval batch_size num_workers cache_rate (repeats)"
        " (crop_size) patch_size learning_rate (max_norm) (sigma)"
        " (validation_sigma) (validation_noise)"
        " (texture) rule granularity auxiliary_weight is_not_rank0 network_def network"
        " recogniser_def recogniser recogniser_optimizer train validate initialize run"
    ),
    "inference.json": (
        "imports bundle_root device dataset_dir output_dir weights network_def network"
        " preprocessing dataset dataloader inferer postprocessing handlers evaluator initialize run"
    ),
    "metadata.json": (
        "schema version changelog monai_version pytorch_version numpy_version"
        " required_packages_version name task description authors copyright data_source data_type"
        " image_classes label_classes pred_classes eval_metrics intended_use references"
        " supported_apps network_data_format (recogniser_data_format)"
    ),
}
# Keys that an overlay adds instead of replacing: nothing else catches a misspelt one.
ADDED = {
    "train#sampler": "only several processes share the data",
    "train#dataloader#sampler": "only several processes share the data",
    "validate#sampler": "only several processes share the data",
    "validate#dataloader#sampler": "only several processes share the data",
    "finalize": "only several processes have a group to leave",
    "weights": "training has none to load; the key is that of inference.json",
}

JSON_FILES = sorted(path for bundle in BUNDLES for path in bundle.glob("configs/*.json"))
OVERLAYS = [path for path in JSON_FILES if path.name not in COMPLETE]


def test_every_bundle_is_seen() -> None:
    assert len(BUNDLES) == COUNT
    assert {b.parent for b in BUNDLES} == {ROOT / "bundles"}, "bundles lie beside each other"
    assert {b for b in (ROOT / "bundles").iterdir() if b.is_dir()} == set(BUNDLES)


@pytest.mark.parametrize("bundle", BUNDLES, ids=name_of)
def test_files(bundle: Path) -> None:
    missing = [name for name in FILES if not (bundle / name).is_file()]
    assert not missing, f"{bundle.name} lacks {missing}"
    assert not list(bundle.rglob("*.py")), "Python belongs into shared/gradprom"
    large = [path for path in bundle.rglob("*") if path.stat().st_size > 25_000_000]
    assert not large, f"{large}: above 25 MB; list it in large_files.yml instead"


@pytest.mark.parametrize("name", IDENTICAL)
def test_files_with_one_source_are_identical(name: str) -> None:
    source = ROOT / "LICENSE" if name == "LICENSE" else BUNDLES[0] / name
    for bundle in BUNDLES:
        same = (bundle / name).read_bytes() == source.read_bytes()
        assert same, f"repair with: cp {name_of(source)} {name_of(bundle / name)}"


def test_names() -> None:
    names = [bundle.name for bundle in BUNDLES]
    for name in names:
        assert re.fullmatch("[a-z0-9]+(_[a-z0-9]+)+", name)
        assert "_v" not in name, "MONAI reads _v as the start of a version"
    nested = [(a, b) for a, b in permutations(names, 2) if a in b]
    assert not nested, "the model zoo's tools find a bundle by a part of its name"


@pytest.mark.parametrize("path", JSON_FILES, ids=name_of)
def test_json_has_one_form(path: Path) -> None:
    text = path.read_text()
    want = json.dumps(json.loads(text), indent=4) + "\n"
    assert text == want, f"repair with: python -m json.tool --indent 4 {name_of(path)} OUT"


@pytest.mark.parametrize("bundle", BUNDLES, ids=name_of)
@pytest.mark.parametrize("name", COMPLETE)
def test_keys_and_their_order(bundle: Path, name: str) -> None:
    order = ORDER[name].split()
    names = [key.strip("()") for key in order]
    keys = list(config(bundle, name))
    assert set(keys) <= set(names), "a key outside the vocabulary"
    assert {key for key in order if not key.startswith("(")} <= set(keys), "a key is missing"
    assert keys == sorted(keys, key=names.index), "another order than in the other bundles"


@pytest.mark.parametrize("path", JSON_FILES, ids=name_of)
def test_targets_exist_and_are_of_known_packages(path: Path) -> None:
    bare = ComponentLocator()
    for where, target in walk(json.loads(path.read_text())):
        if not where.endswith("_target_"):
            continue
        if "." not in target:
            assert bare.get_component_module_name(target), f"{where}: MONAI has no {target}"
        else:
            assert target.split(".")[0] in {"gradprom", "monai", "torch", "ignite"}, where
            assert locate(target) is not None, f"{where}: {target} does not exist"


@pytest.mark.parametrize("path", JSON_FILES, ids=name_of)
def test_paths_are_relative(path: Path) -> None:
    personal = re.compile(r"^/|^[A-Z]:|/(home|root|tmp|mnt|Users)/")
    for where, value in walk(json.loads(path.read_text())):
        assert not personal.search(str(value)), f"{where}: {value}"


@pytest.mark.parametrize("path", OVERLAYS, ids=name_of)
def test_overlay_keys_exist_in_the_training_config(path: Path) -> None:
    base = config(path.parents[1], "train.json")
    for key in json.loads(path.read_text()):
        known = resolve(base, key.lstrip("+")) or key in ADDED
        assert known, f"{key} is not in train.json: MONAI would accept it in silence"


@pytest.mark.parametrize("bundle", BUNDLES, ids=name_of)
def test_handlers_are_inline(bundle: Path) -> None:
    for path in bundle.glob("configs/*.json"):
        content = json.loads(path.read_text())
        lists = [content.get("handlers", [])]
        lists += [content.get(part, {}).get("handlers", []) for part in ("train", "validate")]
        lists += [value for key, value in content.items() if key.endswith("#handlers")]
        for handler in (handler for handlers in lists for handler in handlers):
            assert isinstance(handler, dict), f"{path.name}: {handler} crashes MONAI FL and Label"
            assert "_target_" in handler
        assert "handlers[" not in path.read_text(), "a slice by position can drop the gate"


@pytest.mark.parametrize("path", JSON_FILES, ids=name_of)
def test_run_opens_with_the_check(path: Path) -> None:
    content = json.loads(path.read_text())
    first = content["run"][0] if "run" in content else content.get("run#0")
    if first is None:
        assert path.name not in COMPLETE or path.name == "metadata.json"
    else:
        assert first.startswith("$gradprom.bundle.check_run(@bundle_root,")


@pytest.mark.parametrize("path", JSON_FILES, ids=name_of)
def test_initialize_needs_nothing_from_the_package(path: Path) -> None:
    # A packed bundle is not on sys.path yet when MONAI evaluates it.
    for expression in json.loads(path.read_text()).get("initialize", []):
        assert "gradprom" not in expression
        assert not re.search("@(train|validate|evaluator)", expression)


@pytest.mark.parametrize("bundle", BUNDLES, ids=name_of)
def test_inference_builds_the_network_that_was_trained(bundle: Path) -> None:
    trained, used = (config(bundle, name)["network_def"] for name in COMPLETE[:2])
    assert trained == used


@pytest.mark.parametrize("bundle", BUNDLES, ids=name_of)
@pytest.mark.parametrize(
    ("name", "properties"),
    [("train.json", TrainProperties), ("inference.json", InferProperties)],
)
def test_has_the_ids_that_monai_relies_on(
    bundle: Path, name: str, properties: dict[str, dict[str, Any]]
) -> None:
    content = {**config(bundle, name), "_meta_": config(bundle, "metadata.json")}
    required = [entry["id"] for entry in properties.values() if entry["required"]]
    assert len(required) > 5
    assert [path for path in required if not resolve(content, path)] == []
