"""Loss functions."""

from gradprom.losses.agreement import AgreementLoss

__all__ = ["AgreementLoss"]
