from __future__ import annotations

import pytest
import torch

from gradprom.losses import AgreementLoss


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5, 4), (2, 3, 5, 4, 3)])
def test_equals_the_formula(shape: tuple[int, ...]) -> None:
    answer, reference = torch.randn(shape).double(), torch.randn(shape).double()
    p = answer.exp() / answer.exp().sum(1, keepdim=True)
    q = reference.exp() / reference.exp().sum(1, keepdim=True)
    expected = ((p - q) ** 2).sum() / p.numel()
    assert float(AgreementLoss()(answer, reference)) == pytest.approx(float(expected), rel=1e-5)


def test_zero_for_equal_answers_and_for_a_shift_of_all_logits() -> None:
    answer = torch.randn(2, 3, 4, 4)
    assert AgreementLoss()(answer, answer) == 0
    assert AgreementLoss()(answer + 1, answer) < 1e-14


def test_certain_and_opposite_answers_give_one() -> None:
    answer = torch.tensor([[1e4, -1e4]])
    assert AgreementLoss()(answer, -answer) == 1


def test_no_gradient_flows_into_the_reference() -> None:
    answer = torch.randn(2, 3, requires_grad=True)
    reference = torch.randn(2, 3, requires_grad=True)
    AgreementLoss()(answer, reference).backward()
    assert reference.grad is None and answer.grad is not None and answer.grad.abs().sum() > 0


def test_half_precision_is_computed_in_single() -> None:
    answer, reference = torch.randn(2, 3).half(), torch.randn(2, 3).half()
    loss = AgreementLoss()(answer, reference)
    assert loss.dtype == torch.float32
    assert loss == AgreementLoss()(answer.float(), reference.float())


@pytest.mark.parametrize(
    ("answer", "reference", "message"),
    [
        ((2, 3, 4), (2, 3, 5), r"one shape, got \(2, 3, 4\) and \(2, 3, 5\)"),
        ((2, 1, 4), (2, 1, 4), r"two class channels, got shape \(2, 1, 4\)"),
        ((2,), (2,), r"two class channels, got shape \(2,\)"),
    ],
)
def test_refusals(answer: tuple[int, ...], reference: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AgreementLoss()(torch.zeros(answer), torch.zeros(reference))
