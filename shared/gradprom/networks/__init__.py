"""Networks: enhancers that MONAI does not have, and what loads them."""

from gradprom.networks.residual import ResidualUNet
from gradprom.networks.weights import load_weights

__all__ = ["ResidualUNet", "load_weights"]
