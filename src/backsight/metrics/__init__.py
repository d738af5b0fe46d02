"""Numbers about reconstructions: images, detections, similarity of layers, and how sure the numbers are.

Every published number of an image is on RGB in [0, 1], whatever space its inverse was trained in.
"""

from backsight.metrics.detection import average_precision, average_precision_interval, found, match_objects, share_found
from backsight.metrics.detection_errors import OUTCOMES, Finding, find_errors
from backsight.metrics.image import (
    dists,
    expect_measurable,
    lpips,
    mse,
    multiscale_ssim,
    on_valid,
    psnr,
    saturation,
    ssim,
)
from backsight.metrics.regions import brought_by, contrast_kept, presence, root_mean_square, standing_out, surroundings
from backsight.metrics.similarity import centred_gram, cka, cka_shares, correlations, hsic
from backsight.metrics.statistics import Interval, interval, ratio

__all__ = [
    "OUTCOMES",
    "Finding",
    "Interval",
    "average_precision",
    "average_precision_interval",
    "brought_by",
    "centred_gram",
    "cka",
    "cka_shares",
    "contrast_kept",
    "correlations",
    "dists",
    "expect_measurable",
    "find_errors",
    "found",
    "hsic",
    "interval",
    "lpips",
    "match_objects",
    "mse",
    "multiscale_ssim",
    "on_valid",
    "presence",
    "psnr",
    "ratio",
    "root_mean_square",
    "saturation",
    "share_found",
    "ssim",
    "standing_out",
    "surroundings",
]
