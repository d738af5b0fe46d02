"""Numbers about reconstructions: images, detections, similarity of layers, and how sure the numbers are.

Every published number of an image is on RGB in [0, 1], whatever space its inverse was trained in.
"""

from backsight.metrics.image import lpips, mse, psnr, ssim
from backsight.metrics.statistics import Interval, bootstrap

__all__ = ["Interval", "bootstrap", "lpips", "mse", "psnr", "ssim"]
