"""How alike two representations of the same images are: CKA in minibatches, and correlation image by image.

Both take features of any shape with the images first, ``B ...``; what follows is flattened. CKA compares
which images lie near which, so the two may differ in tokens and width; correlation compares value with
value, so they may not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from backsight.core import UserError

FEWEST_IMAGES = 4
"""The unbiased estimator of HSIC divides by ``B - 3``."""

_NOTHING = 1e-20  # of the squared values: less is rounding, of features that are the same for every image


def centred_gram(features: Tensor) -> Tensor:
    """The products of every two images' features, without their own and U-centred (Szekely and Rizzo, 2014).

    Adding the same to all images changes nothing. Of features that do not differ between images it is exactly zero.

    Args:
        features: ``B ...``, at least four images.

    Returns:
        ``B B``, float64 on the CPU, with a diagonal of zeros.

    Raises:
        UserError: fewer than four images.
    """
    flat = features.detach().cpu().double().flatten(1)
    count = len(flat)
    if count < FEWEST_IMAGES:
        raise UserError(f"CKA needs at least {FEWEST_IMAGES} images in a batch, there are {count}: take more images")
    differences = flat - flat.mean(0)  # changes nothing but rounding
    if differences.square().mean() <= _NOTHING * flat.square().mean():
        return flat.new_zeros(count, count)
    gram = (differences @ differences.T).fill_diagonal_(0)
    rows = gram.sum(1)
    centred = gram - (rows[:, None] + rows) / (count - 2) + rows.sum() / ((count - 1) * (count - 2))
    return centred.fill_diagonal_(0)


def hsic(grams: Tensor) -> Tensor:
    """The unbiased estimate of the Hilbert-Schmidt independence criterion of every two representations.

    The estimator HSIC_1 of Song et al. (2012) with linear kernels, written with U-centred matrices: their inner
    product over ``B (B - 3)``. Of independent representations it is 0 on average, in batches of any size.

    Args:
        grams: ``L B B``, the :func:`centred_gram` of ``L`` representations of the same images.

    Returns:
        ``L L``.
    """
    flat, count = grams.flatten(1), grams.shape[-1]
    return flat @ flat.T / (count * (count - 3))


def cka_shares(tables: Tensor, counts: Sequence[int]) -> Tensor:
    """What every batch contributes to the CKA of every two representations; the mean over batches is the CKA.

    Minibatch CKA (Nguyen, Raghu and Kornblith, 2021, eq. 2 and 3): the mean HSIC over batches of the two, over the
    root of the product of the mean HSIC of each with itself. 1 for representations that are equal up to a rotation
    and one scale, 0 (sometimes a little less) for independent ones, NaN where one is the same for all images.

    They have batches of one size. Here one of ``n`` images weighs ``n (n - 3)``, the divisor of its estimate: that of a
    small last batch is far less sure (its variance goes with ``1 / (n (n - 3))`` where little is shared), and as
    right on average, so any fixed weights leave the mean HSIC without bias.

    Args:
        tables: ``batches L L``, the :func:`hsic` of every batch.
        counts: how many images each of them has, four at least.

    Returns:
        ``batches L L``: the mean and the batch's weighted deviation from it, so that they differ by no more than the
        batches do, however unequal their weights; of batches of one size, each one's HSIC over the root.
    """
    if min(counts) < FEWEST_IMAGES:
        raise ValueError(f"batches of at least {FEWEST_IMAGES} images were expected, not of {min(counts)}")
    weights = torch.tensor([count * (count - 3) for count in counts], dtype=tables.dtype)[:, None, None]
    weights = weights / weights.mean()
    mean = (weights * tables).mean(0)
    own = mean.diagonal()
    own = torch.where(own > 0, own, math.nan)
    return (mean + weights * (tables - mean)) / (own[:, None] * own).sqrt()


def cka(one: Tensor, other: Tensor) -> float:
    """The CKA of two representations of one batch, ``B ...`` each, by the unbiased estimator.

    Raises:
        UserError: fewer than four images.
        ValueError: not the same number of images.
    """
    if len(one) != len(other):
        raise ValueError(f"two representations of the same images were expected, not of {len(one)} and {len(other)}")
    table = hsic(torch.stack([centred_gram(one), centred_gram(other)]))
    return float(cka_shares(table[None], [len(one)])[0, 0, 1])


def correlations(representations: Sequence[Tensor]) -> Tensor:
    """The correlation of every two representations of one shape, for each image by itself.

    What is compared is how an image's values differ from the mean of the batch, each value from its own: what all
    images share (position embeddings, biases) would otherwise correlate however little is said of the image.

    Args:
        representations: ``L`` tensors ``B ...`` of one shape.

    Returns:
        ``B L L`` in [-1, 1], float64 on the CPU; NaN for an image that does not differ from the mean.
    """
    shapes = {tuple(each.shape) for each in representations}
    if len(shapes) != 1:
        raise ValueError(f"representations of one shape were expected, not of {sorted(shapes)}")
    local = [each.detach().cpu() for each in representations]
    means = [each.double().mean(0) for each in local]
    return torch.stack([_correlation_matrix(local, means, image) for image in range(len(local[0]))])


def _correlation_matrix(representations: Sequence[Tensor], means: Sequence[Tensor], image: int) -> Tensor:
    """``L L``, of one image: one at a time, since all images of all layers at once are many gigabytes."""
    each = [(one[image].double() - mean).flatten() for one, mean in zip(representations, means, strict=True)]
    scales = torch.stack([mean.square().sum() for mean in means])
    differences = torch.stack(each)
    differences = differences - differences.mean(1, keepdim=True)
    lengths = differences.square().sum(1)
    lengths = torch.where(lengths > _NOTHING * scales, lengths, math.nan).sqrt()
    directions = differences / lengths[:, None]
    return directions @ directions.T
