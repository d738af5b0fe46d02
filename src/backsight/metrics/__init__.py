"""Numbers about reconstructions: images, detections, similarity of layers, and how sure the numbers are.

Every published number of an image is on RGB in [0, 1], whatever space its inverse was trained in.
"""

from backsight.metrics.detection import average_precision, found, match_objects, share_found
from backsight.metrics.detection_errors import OUTCOMES, Finding, find_errors
from backsight.metrics.image import expect_measurable, lpips, mse, on_valid, psnr, saturation, ssim
from backsight.metrics.regions import brought_by, contrast_kept, presence, root_mean_square, standing_out, surroundings
from backsight.metrics.similarity import centred_gram, cka, cka_shares, correlations, hsic
from backsight.metrics.statistics import Interval, bootstrap, bootstrap_difference

__all__ = [
    "OUTCOMES",
    "Finding",
    "Interval",
    "average_precision",
    "bootstrap",
    "bootstrap_difference",
    "brought_by",
    "centred_gram",
    "cka",
    "cka_shares",
    "contrast_kept",
    "correlations",
    "expect_measurable",
    "find_errors",
    "found",
    "hsic",
    "lpips",
    "match_objects",
    "mse",
    "on_valid",
    "presence",
    "psnr",
    "root_mean_square",
    "saturation",
    "share_found",
    "ssim",
    "standing_out",
    "surroundings",
]
