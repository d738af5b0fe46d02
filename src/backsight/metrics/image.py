"""How far a reconstruction is from its image: MSE, PSNR, SSIM at one scale and at several, LPIPS and DISTS.

All take ``images`` and ``others``, both ``B 3 H W`` RGB in [0, 1], and return ``B`` in float64 (LPIPS, DISTS: float32).
Per image, because an average over images can be taken later and an interval cannot do without them. They are
measures, not losses: no gradient flows back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from backsight.core import UserError, valid_sizes
from backsight.devices import exact

Metric = Callable[[Tensor, Tensor], Tensor]
"""(``images``, ``others``) -> ``B``, as below."""

HIGHEST_PSNR = 120.0
"""PSNR is cut off here, in dB: of identical images it is infinite, and then so would be every average."""

SSIM_SIGMA = 1.5
"""Standard deviation of SSIM's Gaussian window, in pixels."""

SSIM_RADIUS = 5
"""Half of SSIM's 11 x 11 window: 3.5 standard deviations, rounded."""

SSIM_STABILISERS = (0.01**2, 0.03**2)
"""What keeps SSIM's two quotients defined in flat regions: K1 and K2 squared, for a data range of 1."""

SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""The exponents of the scales of :func:`multiscale_ssim`, the finest first."""


def mse(images: Tensor, others: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error over channels and pixels, in [0, 1]. Of a ``mask`` (``B H W``, bool) only the pixels inside
    count; an image with an empty one has the error NaN.
    """
    one, other = _checked(images, others)
    errors = (one - other).square().mean(1)
    if mask is None:
        return errors.mean((1, 2))
    if mask.shape != errors.shape:
        raise ValueError(f"the mask is {tuple(mask.shape)}, {tuple(errors.shape)} (B H W) was expected")
    inside = exact(mask)
    return (errors * inside).sum((1, 2)) / inside.sum((1, 2))


def saturation(images: Tensor, others: Tensor) -> Tensor:
    """How colourful ``images`` are: the largest channel less the smallest, meant over all pixels, in [0, 1]; 0 is grey.

    Colour weighed by brightness (chroma), since that of a dark pixel is noise. It measures no distance: ``others`` are
    not used, they are there so that it can be taken wherever the others are.
    """
    one, _ = _checked(images, others)
    return (one.amax(1) - one.amin(1)).mean((1, 2))


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, ``-10 log10(MSE)``, in dB; higher is closer, at most :data:`HIGHEST_PSNR`."""
    return -10 * mse(images, others).log10().clamp(min=-HIGHEST_PSNR / 10)


def expect_measurable(size: tuple[int, int]) -> None:
    """Refuse images of a ``size`` (H, W) that SSIM's window is larger than (``UserError``)."""
    window = 2 * SSIM_RADIUS + 1
    if min(size) < window:
        raise UserError(
            f"SSIM needs images of at least {window} x {window} pixels, these are {size[0]} x {size[1]}: take a larger "
            "--size"
        )


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity, in [-1, 1]; higher is closer, 1 only for identical images.

    The convention of Wang et al. (2004): a Gaussian window of 1.5 pixels cut at 11 x 11, K1 = 0.01, K2 = 0.03,
    data range 1, population (not sample) covariance, each colour channel by itself, averaged over
    channels and over the places where the whole window lies inside the image. It is what scikit-image computes
    with ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis``.

    Raises:
        UserError: the images are smaller than the window, 11 pixels wide and high.
    """
    one, other = _checked(images, others)
    expect_measurable((one.shape[-2], one.shape[-1]))
    luminance, structure = _similarities(one, other)
    return (luminance * structure).mean((1, 2, 3))


def _similarities(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM's luminance, and its contrast and structure, at every place of its window: ``B 3 H-10 W-10`` each."""
    moments = _gaussian_mean(torch.stack([one, other, one * one, other * other, one * other]))
    mean_one, mean_other, square_one, square_other, product = moments
    product_of_means, sum_of_means = mean_one * mean_other, mean_one**2 + mean_other**2
    covariance = product - product_of_means
    variances = square_one + square_other - sum_of_means
    luminance = (2 * product_of_means + SSIM_STABILISERS[0]) / (sum_of_means + SSIM_STABILISERS[0])
    return luminance, (2 * covariance + SSIM_STABILISERS[1]) / (variances + SSIM_STABILISERS[1])


def multiscale_ssim(images: Tensor, others: Tensor) -> Tensor:
    """SSIM over several scales, in [0, 1]; higher looks closer, 1 only for identical images (Wang et al., 2003).

    Each scale halves the image by averaging 2 x 2 pixels. The contrast and structure of all scales, and the
    luminance of the coarsest, are multiplied, with the paper's exponents :data:`SCALES`; negative ones count as 0. An
    image too small for five scales has those that its shorter side fits (11 pixels at the coarsest), their exponents
    scaled to the same sum. Unlike learned measures it needs no weights.

    Raises:
        UserError: the images are smaller than the window, 11 pixels wide and high.
    """
    one, other = _checked(images, others)
    expect_measurable((one.shape[-2], one.shape[-1]))
    window = 2 * SSIM_RADIUS + 1
    count = min(len(SCALES), 1 + int(math.log2(min(one.shape[-2:]) / window)))
    exponents = [scale / sum(SCALES[:count]) for scale in SCALES[:count]]
    product = torch.ones((), dtype=one.dtype, device=one.device)
    for number, exponent in enumerate(exponents):
        luminance, structure = _similarities(one, other)
        similarity = luminance * structure if number == count - 1 else structure
        product = product * similarity.mean((2, 3)).clamp(min=0) ** exponent
        one, other = (nn.functional.avg_pool2d(each, 2) for each in (one, other))
    return product.mean(1)


def _gaussian_mean(maps: Tensor) -> Tensor:
    """Averages ``... H W`` over SSIM's window, where it fits: ``... H-10 W-10``. First down, then across: as sums of
    shifted copies this is 25 times as fast on a CPU as one convolution with the window."""
    places = torch.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, dtype=torch.float64)
    weights = torch.softmax(-places.square() / (2 * SSIM_SIGMA**2), 0).tolist()
    for axis in (-2, -1):
        size = maps.shape[axis] - 2 * SSIM_RADIUS
        total = maps.narrow(axis, 0, size) * weights[0]
        for start, weight in enumerate(weights[1:], start=1):
            total.add_(maps.narrow(axis, start, size), alpha=weight)
        maps = total
    return maps


def lpips(images: Tensor, others: Tensor) -> Tensor:
    """Learned perceptual distance of Zhang et al. (2018) on AlexNet, version 0.1; lower is closer. Images are at least
    64 pixels wide and high. Nothing is downloaded: AlexNet's weights must be in torch's local cache.

    Raises:
        UserError: the weights are not there; the message says how to get them.
    """
    from torchvision.models import AlexNet_Weights

    _check_learned("LPIPS", AlexNet_Weights.IMAGENET1K_V1.url, "alexnet", images, others)
    return _distances(_perceptual_network(), images, others, normalize=True)


def dists(images: Tensor, others: Tensor) -> Tensor:
    """Deep image structure and texture similarity of Ding et al. (2020) on VGG16; lower looks closer. Images are
    at least 64 pixels wide and high. Nothing is downloaded: VGG16's weights must be in torch's local cache.

    Raises:
        UserError: the weights are not there; the message says how to get them.
    """
    from torchvision.models import VGG16_Weights

    _check_learned("DISTS", VGG16_Weights.IMAGENET1K_V1.url, "vgg16", images, others)
    return _distances(_structure_network(), images, others)


LEAST_SIDE: dict[Metric, int] = {ssim: 11, multiscale_ssim: 11, lpips: 64, dists: 64}
"""The least height and width of an image, in pixels, of metrics that ask for more than 1."""


def on_valid(metric: Metric, valid: Tensor | None) -> Metric:
    """``metric`` of padded images: of the valid part of each alone, which is cut out; NaN where it is too small.

    ``valid`` (``B H W``, bool) is True on the pictures, at the upper left; None: everywhere, and the metric is returned
    as it is.
    """
    if valid is None:
        return metric
    least, sizes = LEAST_SIDE.get(metric, 1), valid_sizes(valid)

    def measure(images: Tensor, others: Tensor) -> Tensor:
        return torch.cat(
            [
                exact(
                    metric(one[None, :, :rows, :columns], other[None, :, :rows, :columns])
                    if min(rows, columns) >= least
                    else torch.full((1,), torch.nan, device=images.device)
                )
                for one, other, (rows, columns) in zip(images, others, sizes, strict=True)
            ]
        )

    return measure


@torch.no_grad()
def _distances(network: nn.Module, images: Tensor, others: Tensor, **options: bool) -> Tensor:
    """What a learned measure says of each pair, ``B``."""
    return network.to(images.device)(images.float(), others.float(), **options).flatten()


def _check_learned(metric: str, url: str, network: str, images: Tensor, others: Tensor) -> None:
    """Refuse images that are no pairs, and a learned measure whose weights are not in torch's cache."""
    _checked(images, others)
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.is_file():
        command = f"python -c \"import torchvision; torchvision.models.{network}(weights='IMAGENET1K_V1')\""
        raise UserError(f"{metric} needs {path}, which is not there: with a network, {command} puts it there")


@lru_cache(maxsize=1)
def _perceptual_network() -> nn.Module:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return cast(nn.Module, LearnedPerceptualImagePatchSimilarity(net_type="alex").net)


@lru_cache(maxsize=1)
def _structure_network() -> nn.Module:
    from torchmetrics.functional.image.dists import DISTSNetwork

    return cast(nn.Module, DISTSNetwork()).eval()


def _checked(images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64."""
    if images.ndim != 4 or images.shape[1] != 3 or images.shape != others.shape:
        shapes = f"{tuple(images.shape)} and {tuple(others.shape)}"
        raise ValueError(f"two batches of RGB images of one shape (B 3 H W) were expected, not {shapes}")
    return exact(images), exact(others)
