"""Image quality figures, as pure functions and as Ignite metrics for JSON configs."""

from gradprom.metrics.image import PSNR, SSIM, psnr, ssim

__all__ = ["PSNR", "SSIM", "psnr", "ssim"]
