"""Networks: enhancers that MONAI does not have, and what loads them."""

from gradprom.networks.blending import BlendingUNet
from gradprom.networks.weights import load_weights

__all__ = ["BlendingUNet", "load_weights"]
