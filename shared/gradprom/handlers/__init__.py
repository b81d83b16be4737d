"""Handlers for MONAI's trainers and evaluators."""

from gradprom.handlers.checkpoint import AtomicCheckpoint, BestModel, save_atomically
from gradprom.handlers.clip import GradientClipping
from gradprom.handlers.gradprom import GradPromHandler
from gradprom.handlers.history import HistoryHandler
from gradprom.handlers.seed import EpochSeed

__all__ = [
    "AtomicCheckpoint",
    "BestModel",
    "EpochSeed",
    "GradPromHandler",
    "GradientClipping",
    "HistoryHandler",
    "save_atomically",
]
