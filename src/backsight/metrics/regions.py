"""Parts of an image: what is kept of its contrast, and whether a reconstruction has an object that stands out there.

A region that is empty, or too plain to tell, has no answer (NaN).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from backsight.devices import exact

LEAST_CONTRAST = 0.03
"""What has less contrast than this (a root mean square, RGB in [0, 1]) cannot be told from its surroundings: whether it
is present has no answer."""

PRESENCE_LIMITS = (-1.0, 2.0)
"""Presence is cut off here: it is a quotient, and a few extreme ones would outweigh all others in a mean."""

_RING = 0.25
"""The width of an object's surroundings, as a share of the square root of its area."""

_LEAST_RING = 2
"""The least width of an object's surroundings, in pixels."""


def contrast_kept(images: Tensor, others: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """What ``others``, reconstructions ``B 3 H W``, keep of the contrast that ``images`` (``B 3 H W``, RGB in [0, 1])
    have within a region each, ``mask`` (``B H W``, bool).

    Returns:
        Two numbers for each image, ``B`` float64: the standard deviation within the region over that of the
        original (any contrast, even of stains), and the covariance with the original over the original's variance (the
        contrast that is where it was: 1 for the original itself, 0 for stains). Both sum over the colours; NaN
        where the original's standard deviation is below :data:`LEAST_CONTRAST`.
    """
    inside = exact(mask[:, None])
    size = inside.sum((2, 3), keepdim=True)
    one, other = exact(images), exact(others)
    one = (one - (one * inside).sum((2, 3), keepdim=True) / size) * inside
    other = (other - (other * inside).sum((2, 3), keepdim=True) / size) * inside
    before, after, shared = ((a * b).sum((1, 2, 3)) for a, b in ((one, one), (other, other), (one, other)))
    unit = torch.where(before > 3 * size.flatten() * LEAST_CONTRAST**2, before, torch.nan)
    return (after / unit).sqrt(), shared / unit


def surroundings(masks: Tensor, others: Tensor | None = None) -> Tensor:
    """The ring around each region (``n H W``, bool): a quarter as wide as the square root of its area, at least two
    pixels; empty around a region that is empty or fills the image.

    ``others`` (``H W``, bool) shall not be in a ring, such as other objects. A ring that has nothing left without them
    keeps them.
    """
    rings = torch.zeros_like(masks)
    for index, mask in enumerate(masks):
        width = max(_LEAST_RING, round(_RING * float(mask.sum()) ** 0.5))
        ring = _grown(mask, width) & ~mask
        free = ring if others is None else ring & ~others
        rings[index] = free if free.any() else ring
    return rings


def _grown(mask: Tensor, width: int) -> Tensor:
    """All pixels at most ``width`` rows and columns away from the region: two passes, down and across."""
    down = functional.max_pool2d(mask[None].float(), (2 * width + 1, 1), 1, (width, 0))
    return functional.max_pool2d(down, (1, 2 * width + 1), 1, (0, width))[0] > 0


def presence(image: Tensor, reconstructions: Tensor, masks: Tensor, rings: Tensor) -> Tensor:
    """Whether the objects of an image are there in its reconstructions: 1 as in the image, 0 not at all.

    Both pictures are compared with themselves without the object, which is its region filled with the mean
    colour of the ring around it. With ``x`` and ``R`` the image and the reconstruction in the region, less this colour
    of their own, presence is ``<R, x> / <x, x>``: the part of the object's contrast with its surroundings that
    the reconstruction has. So a tint of the whole picture makes no difference, nor do stains that have nothing to do
    with the object. Its mean colour and its shape are a part of the presence, its texture is the rest.

    Args:
        image: ``3 H W``, RGB in [0, 1].
        reconstructions: ``S 3 H W``.
        masks: ``n H W``, bool: the region of each object.
        rings: ``n H W``, bool: of :func:`surroundings`.

    Returns:
        ``S n`` float64 within :data:`PRESENCE_LIMITS`; NaN where region or ring is empty, or where the contrast of the
        image is below :data:`LEAST_CONTRAST`.
    """
    own, found = exact(image).flatten(1), exact(reconstructions).flatten(2)
    region, ring = _weights(masks), _weights(rings)
    around, around_found = ring @ own.T, ring @ found.mT  # n 3, S n 3
    mean, mean_found = region @ own.T, region @ found.mT
    shared = (own * found).sum(1) @ region.T  # S n
    shared = shared - (around * mean_found + around_found * mean - around_found * around).sum(2)
    contrast = own.square().sum(0) @ region.T - (2 * around * mean - around.square()).sum(1)
    return _quotient(shared, contrast)


def standing_out(images: Tensor, mask: Tensor, ring: Tensor) -> Tensor:
    """How far the mean colour of a region (``mask``, ``H W`` bool) is from that of the ``ring`` around it, of
    :func:`surroundings`, in ``images`` ``S 3 H W``, RGB in [0, 1].

    Returns:
        ``S`` float64 in [0, 1], a root mean square over the colours; NaN where region or ring is empty.
    """
    inside, around = _weights(torch.stack([mask, ring]))
    return (exact(images).flatten(2) @ (inside - around)).square().mean(1).sqrt()


def brought_by(image: Tensor, reconstructions: Tensor, without: Tensor, mask: Tensor) -> Tensor:
    """How far something brings a reconstruction towards the image in a region: 1 all the way, 0 not at all, < 0 away.

    With ``R0`` what is reconstructed ``without`` it, ``R`` with it (``S 3 H W`` both) and ``x`` the image (``3 H W``,
    RGB in [0, 1]) in the region, ``mask`` (``H W``, bool): ``<R - R0, x - R0> / <x - R0, x - R0>``.

    Returns:
        ``S`` float64 within :data:`PRESENCE_LIMITS`; NaN where the region is empty, or ``R0`` is already as near to the
        image as :data:`LEAST_CONTRAST`.
    """
    region = _weights(mask[None])[0]
    missing = exact(image - without).flatten(2)
    shared = (exact(reconstructions - without).flatten(2) * missing).sum(1) @ region
    return _quotient(shared, missing.square().sum(1) @ region)


def root_mean_square(differences: Tensor, mask: Tensor) -> Tensor:
    """Of ``S 3 H W`` over the colours and pixels within ``mask`` ``H W``: ``S`` float64, NaN where it is empty."""
    return (exact(differences).square().mean(1).flatten(1) @ _weights(mask[None])[0]).sqrt()


def _weights(masks: Tensor) -> Tensor:
    """``n H W`` bool -> ``n HW`` float64, so that a product is a mean over the region; NaN where it is empty."""
    flat = exact(masks.flatten(1))
    return flat / flat.sum(1, keepdim=True)


def _quotient(shared: Tensor, contrast: Tensor) -> Tensor:
    unit = torch.where(contrast > 3 * LEAST_CONTRAST**2, contrast, torch.nan)
    return (shared / unit).clamp(*PRESENCE_LIMITS)
