"""Inferers for images of any size."""

from gradprom.inferers.halo import HaloInferer

__all__ = ["HaloInferer"]
