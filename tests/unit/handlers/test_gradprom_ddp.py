"""Two processes with half of each batch equal one process with all of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.properties import largest_difference
from tests.unit.handlers.ddp_cases import CASES, EPOCHS, MARKS, WORLD, work
from tests.unit.handlers.rig import Reference, make_batches, make_network, make_recogniser

Results = list[dict[str, Any]]
TOLERANCE = 2e-6  # the sums over items are in another order
REFUSED = ("learning, not wrapped", "disagreeing")
UNLIKE = ("overflow on one rank", "bf16", "random", "compiled")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Each rank's results; one start for all cases, since importing takes most of the time."""
    folder = tmp_path_factory.mktemp("ddp")
    torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(WORLD)]


def masked(
    batch: dict[str, Tensor], recogniser: nn.Module, marks: list[Any], pred: Tensor
) -> Tensor:
    """The mean over the whole batch, of losses that are zero where there is no target."""
    each = nn.functional.cross_entropy(
        recogniser(pred), batch["recognition"][:, 0], reduction="none"
    ).mean((1, 2))
    present = torch.zeros(len(each), dtype=torch.bool)
    for rank, mark in enumerate(marks):
        present[rank::WORLD] = torch.tensor(mark or [False, False])
    return torch.where(present, each, 0 * each).mean()


def reference_for(name: str) -> Reference:
    dims, window = (3 if name == "3d" else 2), (4 if "accumulation" in name else 1)
    batches, recogniser = make_batches(dims, per_batch=4), make_recogniser(dims)
    reference = Reference(
        make_network(dims), recogniser, window=window, learns=name.endswith("learning")
    )
    reference.learns = "learning" in name
    if name.startswith("targets"):
        marks = {id(b["image"]): m for b, m in zip(batches, MARKS, strict=True)}
        reference.auxiliary = lambda pred, b: masked(b, recogniser, marks[id(b["image"])], pred)
    return reference.run(batches, EPOCHS)


@pytest.mark.parametrize("name", [n for n in CASES if n not in (*REFUSED, *UNLIKE)])
def test_equals_one_process(results: Results, name: str) -> None:
    reference = reference_for(name)
    assert 0 < sum(reference.gates) < len(reference.gates)
    for result in results:
        assert isinstance(result[name], dict), result[name]
        expected = reference.network.state_dict()
        assert largest_difference(result[name]["network"], expected) < TOLERANCE
        expected = reference.recogniser.state_dict()
        assert largest_difference(result[name]["recogniser"], expected) < TOLERANCE
        ends = [3, 5, 9, 11] if "accumulation" in name else range(12)
        assert [result[name]["gates"][i] for i in ends] == reference.gates


@pytest.mark.parametrize("name", [n for n in CASES if n not in REFUSED])
def test_ranks_stay_together(results: Results, name: str) -> None:
    first, second = (result[name] for result in results)
    assert isinstance(first, dict), first
    assert first["gates"] == second["gates"] and first["cosines"] == second["cosines"]
    assert largest_difference(first["network"], second["network"]) == 0.0
    assert largest_difference(first["recogniser"], second["recogniser"]) == 0.0
    assert first["scale"] == second["scale"]


def test_compiled_with_late_start(results: Results) -> None:
    batches = make_batches(per_batch=4)
    reference = Reference(make_network(), make_recogniser(), rule="off").run(batches)
    reference.rule = "gradprom"
    reference.run(batches)
    expected = reference.network.state_dict()
    assert largest_difference(results[0]["compiled"]["network"], expected) < TOLERANCE


def test_overflow_on_one_rank_shuts_the_gate_on_all(results: Results) -> None:
    for result in results:
        assert result["overflow on one rank"]["gates"] == [1, 1, 0, *[1] * 9]
        assert result["overflow on one rank"]["scale"] == 32768


def test_random_opens_and_shuts(results: Results) -> None:
    assert 0 < sum(results[0]["random"]["gates"]) < 12


def test_saved_names_are_those_of_the_bare_recogniser(results: Results) -> None:
    assert results[0]["learning"]["state_keys"] == list(make_recogniser().state_dict())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("learning, not wrapped", "InputError: A learning recogniser must be wrapped in DDP"),
        ("disagreeing", "InputError: GradPromHandler differs between processes: gate is"),
    ],
)
def test_refusals_on_every_rank(results: Results, name: str, message: str) -> None:
    assert all(result[name].startswith(message) for result in results)
