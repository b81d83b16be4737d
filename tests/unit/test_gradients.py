from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torchjd.aggregation import WeightedAggregator, Weighting

from gradprom.gradients import (
    GRANULARITIES,
    RULES,
    Gate,
    Statistics,
    _products,
    check_weight,
    cosine,
    flatten,
    inner_products,
    promote,
    promote_,
)
from tests.properties import NoHostAccess, assert_keeps_descent

Gradients = list[Tensor]
SHAPES = [(3, 2), (5,), (1,), (2, 1, 3)]
SAFE_RULES = ("gradprom", "weighted")


def random_case(
    seed: int, tilt: float, g_scales: Sequence[float], h_scales: Sequence[float]
) -> tuple[Gradients, Gradients]:
    """g is random, h = tilt * g + noise: tilt steers the cosine; one scale for each tensor."""
    generator = torch.Generator().manual_seed(seed)
    g = [torch.randn(shape, generator=generator) for shape in SHAPES]
    h = [tilt * x + torch.randn(x.shape, generator=generator) for x in g]
    return [x * s for x, s in zip(g, g_scales, strict=True)], [
        x * s for x, s in zip(h, h_scales, strict=False)
    ]


scales = st.lists(
    st.integers(-30, 30).map(lambda e: 10.0**e), min_size=len(SHAPES), max_size=len(SHAPES)
)
cases = st.builds(random_case, st.integers(0, 10**6), st.floats(-3, 3), scales, scales)


def adversarial() -> dict[str, tuple[Gradients, Gradients]]:
    """Pairs at the edges of the gate; every number in them is finite."""
    g, h = random_case(0, 0.0, [1.0] * 4, [1.0] * 4)
    one = torch.tensor([1.0, 0.0])
    return {
        "equal": (g, g),
        "exactly opposed": (g, [-x for x in g]),
        "opposed, ten times larger": (g, [-10 * x for x in g]),
        "nearly opposed": ([one], [torch.tensor([-1.0, 0.05])]),
        "orthogonal": ([one], [torch.tensor([0.0, 1.0])]),
        "orthogonal in pairs": ([torch.tensor([1.0, 1.0])], [torch.tensor([1.0, -1.0])]),
        "barely agreeing": ([one], [torch.tensor([1e-30, 1e8])]),
        "barely opposed": ([one], [torch.tensor([-1e-30, 1e8])]),
        "g zero": ([torch.zeros_like(x) for x in g], h),
        "h zero": (g, [torch.zeros_like(x) for x in g]),
        "both zero": ([torch.zeros(3)], [torch.zeros(3)]),
        "tiny g, huge h": ([x * 1e-30 for x in g], [x * 1e30 for x in h]),
        "huge g, tiny h": ([x * 1e30 for x in g], [x * 1e-30 for x in h]),
        "one tensor outweighs, others oppose": (g, [1e3 * g[0], -g[1], -g[2], -g[3]]),
    }


def gate_for(rule: str, granularity: str = "model", threshold: float = 0.0) -> Gate:
    return Gate(rule, granularity, threshold, on_rate=1.0 if rule == "random" else None)


def always(gradients: Gradients, granularity: str = "model") -> Tensor:
    """Uniform numbers with which rule random opens every time."""
    return torch.zeros(len(gradients) if granularity == "tensor" else 1)


# The property that names the method.


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("rule", SAFE_RULES)
@given(
    case=cases,
    weight=st.sampled_from([0.0, 1e-3, 0.3, 1.0, 1e3]),
    threshold=st.sampled_from([0.0, 0.1, 0.9]),
)
def test_descent_on_the_primary_loss_is_never_lost(
    rule: str,
    granularity: str,
    case: tuple[Gradients, Gradients],
    weight: float,
    threshold: float,
) -> None:
    g, h = case
    d, _ = promote(g, h, Gate(rule, granularity, threshold), weight)
    assert_keeps_descent(g, h, d, weight)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("rule", SAFE_RULES)
@pytest.mark.parametrize("name", adversarial())
def test_descent_at_the_edges(rule: str, granularity: str, name: str) -> None:
    g, h = adversarial()[name]
    for weight in (0.0, 0.5, 1.0, 100.0):
        d, _ = promote(g, h, Gate(rule, granularity), weight)
        assert all(x.isfinite().all() for x in d)
        assert_keeps_descent(g, h, d, weight)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("rule", ["joint", "random", "inverse"])
def test_the_controls_lose_descent(rule: str, granularity: str) -> None:
    g, h = adversarial()["opposed, ten times larger"]
    d, _ = promote(g, h, gate_for(rule, granularity), 1.0, always(g, granularity))
    with pytest.raises(AssertionError, match="<g, d>"):
        assert_keeps_descent(g, h, d, 1.0)


def test_one_decision_for_the_model_differs_from_one_for_each_tensor() -> None:
    g, h = adversarial()["one tensor outweighs, others oppose"]
    whole, _ = promote(g, h, Gate(granularity="model"))
    each, statistics = promote(g, h, Gate(granularity="tensor"))
    assert all(torch.equal(d, x + y) for d, x, y in zip(whole, g, h, strict=True))
    assert torch.equal(each[0], g[0] + h[0])
    assert all(torch.equal(d, x) for d, x in zip(each[1:], g[1:], strict=True))
    assert statistics.gate == 0.25


# Independent implementation.


class GateWeighting(Weighting):
    """GradProm and Du's weighted form on a Jacobian [2, parameters], row 0 primary."""

    def __init__(self, weight: float, weighted: bool) -> None:
        super().__init__()
        self.weight, self.weighted = weight, weighted

    def forward(self, stat: Tensor, /) -> Tensor:
        c = torch.nn.functional.cosine_similarity(stat[0], stat[1], dim=0, eps=0.0).nan_to_num()
        w = c.clamp(min=0) if self.weighted else (c > 0).to(c.dtype)
        return torch.stack([torch.ones_like(c), self.weight * w])


@given(seed=st.integers(0, 10**6), tilt=st.floats(-2, 2), weight=st.sampled_from([0.01, 1.0, 5.0]))
@pytest.mark.parametrize("rule", SAFE_RULES)
def test_equals_a_torchjd_aggregator(rule: str, seed: int, tilt: float, weight: float) -> None:
    g, h = random_case(seed, tilt, [1.0] * 4, [2.0] * 4)
    jacobian = torch.stack([flatten(g, g), flatten(h, h)]).double()
    expected = WeightedAggregator(GateWeighting(weight, rule == "weighted"))(jacobian)
    d, _ = promote(g, h, Gate(rule), weight)
    torch.testing.assert_close(flatten(d, g), expected.float(), rtol=1e-6, atol=1e-6)


# Exact values.


@pytest.mark.parametrize(
    ("rule", "h", "expected"),
    [
        ("gradprom", [0.5, 2.0], [1.25, 1.0]),
        ("gradprom", [-0.5, 2.0], [1.0, 0.0]),
        ("gradprom", [0.0, 2.0], [1.0, 0.0]),  # the tie c = 0 is shut
        ("weighted", [3.0, 4.0], [1.9, 1.2]),  # c = 0.6
        ("weighted", [-3.0, 4.0], [1.0, 0.0]),
        ("joint", [-0.5, 2.0], [0.75, 1.0]),
        ("off", [0.5, 2.0], [1.0, 0.0]),
        ("inverse", [0.5, 2.0], [1.0, 0.0]),
        ("inverse", [-0.5, 2.0], [0.75, 1.0]),
        ("inverse", [0.0, 2.0], [1.0, 1.0]),
    ],
)
def test_values_for_half_weight(rule: str, h: list[float], expected: list[float]) -> None:
    (d,), _ = promote([torch.tensor([1.0, 0.0])], [torch.tensor(h)], Gate(rule), 0.5)
    assert d is not None
    torch.testing.assert_close(d, torch.tensor(expected), rtol=1e-7, atol=0)


def test_statistics_of_a_known_pair() -> None:
    g, h = [torch.tensor([1.0, 0.0])], [torch.tensor([3.0, 4.0])]
    _, statistics = promote(g, h, weight=0.1)
    assert float(statistics.cosine) == pytest.approx(0.6, abs=1e-15)
    assert float(statistics.ratio) == 5.0  # lambda is not included
    assert statistics.gate == 1
    assert statistics.finite and statistics.auxiliary_finite and statistics.decided


@pytest.mark.parametrize(("rule", "value"), [("gradprom", 1.0), ("weighted", 0.6)])
def test_threshold_is_strict_and_applies_to_both_rules(rule: str, value: float) -> None:
    c = torch.tensor([0.6], dtype=torch.float64)
    assert Gate(rule, threshold=0.6).weights(c) == 0
    assert Gate(rule, threshold=0.59).weights(c) == value


def test_random_follows_its_draw() -> None:
    gate = Gate("random", on_rate=0.3)
    cosines = torch.zeros(4)
    assert gate.weights(cosines, torch.tensor([0.0, 0.29, 0.3, 0.99])).tolist() == [1, 1, 0, 0]
    rate = gate.weights(torch.zeros(10**5), torch.rand(10**5)).mean()
    assert abs(rate - 0.3) < 0.01  # seven standard deviations


# The decision depends on directions only.


@pytest.mark.parametrize("granularity", GRANULARITIES)
@given(case=cases, power=st.integers(-20, 20), other=st.integers(-20, 20))
def test_decision_is_scale_invariant(
    granularity: str, case: tuple[Gradients, Gradients], power: int, other: int
) -> None:
    # Scales in the middle of the range, so that scaling again stays inside it: exact in binary.
    g = [x / x.abs().max() for x in case[0]]
    h = [x / x.abs().max() for x in case[1]]
    _, before = promote(g, h, Gate(granularity=granularity))
    scaled = [x * 2.0**power for x in g], [x * 2.0**other for x in h]
    _, after = promote(*scaled, Gate(granularity=granularity))
    assert before.gate == after.gate
    assert before.cosine == after.cosine


@pytest.mark.parametrize("g_scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("h_scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_products_in_either_precision_give_the_true_cosine(
    g_scale: float, h_scale: float, dtype: torch.dtype
) -> None:
    g, h = (flatten(x, x) for x in random_case(1, 0.5, [1.0] * 4, [1.0] * 4))
    true = torch.nn.functional.cosine_similarity(g.double(), h.double(), dim=0)
    products = _products(g * g_scale, h * h_scale, [len(g)], dtype)
    assert abs(cosine(products) - true) < 1e-5
    norms = torch.cat(products.norms())
    expected = torch.stack([g.double().norm() * g_scale, h.double().norm() * h_scale])
    torch.testing.assert_close(norms.double(), expected, rtol=1e-5, atol=0)


def test_single_precision_sums_take_zeros() -> None:
    products = _products(torch.zeros(3), torch.ones(3), [3], torch.float32)
    assert cosine(products) == 0


# Zero, missing and non-finite gradients.


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_shuts_the_gate(
    rule: str, granularity: str, bad: float
) -> None:
    g, _ = random_case(2, 0.0, [1.0] * 4, [1.0] * 4)
    h = [x.clone() for x in g]
    h[1][3] = bad
    gate, draw = gate_for(rule, granularity), always(g, granularity)
    d, statistics = promote(g, h, gate, 1.0, draw)
    assert all(torch.equal(x, y) for x, y in zip(d, g, strict=True))  # not 0 * nan
    assert not statistics.auxiliary_finite and not statistics.finite and statistics.gate == 0
    assert statistics.cosine == 0 and statistics.ratio == 0  # keeps sums over an epoch clean

    d, statistics = promote(h, g, gate, 1.0, draw)  # now g is broken: it is left as it is
    assert all(torch.equal(x, y) or not y.isfinite().all() for x, y in zip(d, h, strict=True))
    assert torch.equal(d[1].isfinite(), h[1].isfinite())
    assert statistics.auxiliary_finite and not statistics.finite and statistics.gate == 0


@pytest.mark.parametrize("rule", ["gradprom", "weighted", "joint"])
def test_a_sum_beyond_float32_shuts_the_gate(rule: str) -> None:
    g, h = [torch.full((2,), 1e30)], [torch.full((2,), 1e30)]
    (d,), statistics = promote(g, h, Gate(rule), 1e20)
    assert d is not None and torch.equal(d, g[0]) and not statistics.finite


@pytest.mark.parametrize("rule", RULES)
def test_missing_gradients_count_as_zeros(rule: str) -> None:
    g, h = random_case(3, 1.0, [1.0] * 4, [1.0] * 4)
    zeros = [torch.zeros_like(x) for x in g]
    gate, draw = gate_for(rule), always(g)
    with_none, _ = promote([None, *g[1:]], [h[0], None, *h[2:]], gate, 0.7, draw)
    with_zeros, _ = promote([zeros[0], *g[1:]], [h[0], zeros[1], *h[2:]], gate, 0.7, draw)
    assert all(torch.equal(x, y) for x, y in zip(with_none, with_zeros, strict=True))


def test_missing_in_both_stays_missing() -> None:
    g, h = random_case(3, 1.0, [1.0] * 4, [1.0] * 4)
    d, _ = promote([None, *g], [None, *h])
    assert d[0] is None
    expected, _ = promote(g, h)
    assert all(torch.equal(x, y) for x, y in zip(d[1:], expected, strict=True))


@pytest.mark.parametrize("rule", RULES)
def test_no_auxiliary_gradient_shuts_every_gate(rule: str) -> None:
    g, _ = random_case(4, 0.0, [1.0] * 4, [1.0] * 4)
    d, statistics = promote(g, [None] * 4, gate_for(rule), 1.0, always(g))
    assert statistics.gate == 0 and not statistics.decided
    assert all(torch.equal(x, y) for x, y in zip(d, g, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_type_and_shape_of_the_primary_gradient_are_kept(dtype: torch.dtype) -> None:
    g, h = random_case(5, 1.0, [1.0] * 4, [1.0] * 4)
    low = [x.to(dtype) for x in g]
    d, _ = promote(low, [x.to(dtype) for x in h], weight=0.5)
    assert [(x.dtype, x.shape) for x in d] == [(dtype, x.shape) for x in g]
    expected, _ = promote([x.float() for x in low], [x.to(dtype).float() for x in h], weight=0.5)
    for x, y in zip(d, expected, strict=True):
        # Twice the unit roundoff of the narrower of the two types.
        rtol = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
        torch.testing.assert_close(x.double(), y.double(), rtol=rtol, atol=rtol)


def test_inputs_are_not_touched_and_the_in_place_form_gives_the_same() -> None:
    g, h = random_case(6, 1.0, [1.0] * 4, [1.0] * 4)
    copies = [x.clone() for x in (*g, *h)]
    d, _ = promote(g, h, weight=0.3)
    assert all(torch.equal(x, y) for x, y in zip((*g, *h), copies, strict=True))
    views = torch.cat([x.reshape(-1) for x in g])
    parts = [v.view_as(x) for v, x in zip(views.split([x.numel() for x in g]), g, strict=True)]
    promote_(parts, flatten(h, g), Gate(), 0.3)
    assert torch.equal(views, flatten(d, g))  # written through the views


def test_unit_multiplies_the_auxiliary_gradient() -> None:
    g, h = random_case(7, 1.0, [1.0] * 4, [1.0] * 4)
    plain, expected = promote(g, h, weight=0.3)
    scaled = [x.clone() for x in g]
    statistics = promote_(scaled, flatten(h, g) * 65536, Gate(), 0.3, torch.tensor(2.0**-16))
    assert all(torch.equal(x, y) for x, y in zip(scaled, plain, strict=True))
    assert statistics.ratio == expected.ratio and statistics.cosine == expected.cosine


def test_long_buffers_are_summed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    g, h = torch.randn(1000), torch.randn(1000)
    whole = inner_products(g, h, [600, 400])
    monkeypatch.setattr("gradprom.gradients._CHUNK", 7)
    pieces = inner_products(g, h, [600, 400])
    for a, b in zip(whole[:3], pieces[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


# Refusals name the argument and the value.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "gradprop"}, "rule must be one of .*'gradprop'"),
        ({"granularity": "layer"}, "granularity .*'layer'"),
        ({"threshold": -0.1}, "threshold .*-0.1"),
        ({"threshold": math.nan}, "threshold .*nan"),
        ({"threshold": "0"}, "threshold .*'0'"),
        ({"rule": "random"}, "on_rate .*None"),
        ({"rule": "random", "on_rate": 1.5}, "on_rate .*1.5"),
        ({"on_rate": 0.5}, "on_rate .*0.5"),
    ],
)
def test_gate_refuses(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gate(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf, "1"])
def test_weight_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=f"weight .*{weight}"):
        check_weight(weight)
    with pytest.raises(ValueError, match="weight"):
        promote([torch.ones(2)], [torch.ones(2)], weight=weight)


def test_random_without_a_draw_and_empty_lists_are_refused() -> None:
    with pytest.raises(ValueError, match="draw"):
        promote([torch.ones(2)], [torch.ones(2)], Gate("random", on_rate=0.5))
    with pytest.raises(ValueError, match="at least one gradient"):
        promote([None], [None])


# Nothing waits for the device.


def _run(rule: str, granularity: str, device: str) -> tuple[list[Tensor | None], Statistics]:
    g = [torch.ones(shape, device=device) for shape in SHAPES]
    h = [torch.ones(shape, device=device) for shape in SHAPES]
    draw = torch.full((4 if granularity == "tensor" else 1,), 0.5, device=device)
    return promote(g, [None, *h[1:]], gate_for(rule, granularity), 0.3, draw)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("rule", RULES)
def test_everything_stays_on_the_device(rule: str, granularity: str) -> None:
    """Fake CUDA tensors raise on .item() and bool(), and on mixing devices."""
    with FakeTensorMode():
        d, statistics = _run(rule, granularity, "cuda")
    assert all(x is not None and x.device.type == "cuda" for x in d)
    assert all(x.device.type == "cuda" and x.ndim == 0 for x in statistics)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_no_value_is_read_or_copied(rule: str, granularity: str, device: str) -> None:
    with NoHostAccess():
        _run(rule, granularity, device)


@pytest.mark.parametrize(
    "offence",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: float(x.sum()),
        lambda x: x.to("meta"),
        lambda x: torch.tensor(1.0).to("meta") * x.to("meta"),
        lambda x: x[x > 0],
        lambda _: torch.tensor(1.0, device="meta"),
    ],
)
def test_the_watch_sees_each_offence(offence: object) -> None:
    with pytest.raises(AssertionError), NoHostAccess():
        offence(torch.ones(3))  # type: ignore[operator]
