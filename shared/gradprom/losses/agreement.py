"""Label-free recognition loss of ESTR."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["AgreementLoss"]


class AgreementLoss(nn.Module):
    """Mean squared error between the class probabilities of two answers.

        l(p, q) = mean (softmax(p) - softmax(q))^2

    Source: Liu et al., "Exploring Simple and Transferable Recognition-Aware Image Processing"
    (arXiv 1910.09185), unsupervised form, where p is the answer on the enhanced image and q that
    on the clean one. It needs no recognition label.
    """

    def forward(self, answer: Tensor, reference: Tensor) -> Tensor:
        """Return the loss, without dimension, in [0, 1].

        Args:
            answer: logits on the enhanced image, [B, C] or [B, C, H, W(, D)], C >= 2.
            reference: logits on the clean image, same shape; no gradient flows into it.

        Raises:
            ValueError: the shapes differ, or there are fewer than two classes.
        """
        if answer.shape != reference.shape:
            raise ValueError(
                f"AgreementLoss compares answers of one shape, got {tuple(answer.shape)} and "
                f"{tuple(reference.shape)}."
            )
        if answer.ndim < 2 or answer.shape[1] < 2:
            # The softmax of one channel is 1 everywhere, and the loss would be 0 in silence.
            raise ValueError(
                f"AgreementLoss needs at least two class channels, got shape {tuple(answer.shape)}."
            )
        p = torch.softmax(answer.float(), dim=1)
        q = torch.softmax(reference.detach().float(), dim=1)
        return torch.mean((p - q) ** 2)
