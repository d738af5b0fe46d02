"""Pictures from tensors: an image as a file, a number at every pixel as colours."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

COLOURS = "viridis"
"""Of maps: their lightness rises evenly, so that a map reads in grey and to colour-blind people too."""


def image_png(image: Tensor) -> bytes:
    """``3 H W`` in [0, 1] -> a PNG file, rounded to 8 bits; values outside are cut off."""
    from PIL import Image

    stream = BytesIO()
    Image.fromarray(to_array(image)).save(stream, format="PNG")
    return stream.getvalue()


def to_array(image: Tensor) -> Any:
    """``3 H W`` in [0, 1] -> a numpy array ``H W 3`` of uint8; values outside are cut off."""
    levels = (image.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return rearrange(levels, "c h w -> h w c").numpy()


def spread(seeds: Tensor) -> Tensor:
    """How much seeds disagree: the standard deviation between them, averaged over the colours.

    Args:
        seeds: ``S 3 H W`` in [0, 1], at least two.

    Returns:
        ``H W`` in [0, 1].
    """
    return seeds.var(0, correction=1).mean(0).sqrt()


def difference(image: Tensor, other: Tensor) -> Tensor:
    """The root mean square of the difference over the colours, ``3 H W`` and ``3 H W`` -> ``H W``."""
    return (image - other).square().mean(0).sqrt()


def colour_map(values: Tensor, largest: float) -> Tensor:
    """``H W`` from 0 to ``largest``, which has the brightest colour, -> ``3 H W`` in [0, 1]."""
    import matplotlib

    levels = (values / max(largest, 1e-6)).clamp(0, 1).cpu().numpy()
    return rearrange(torch.from_numpy(matplotlib.colormaps[COLOURS](levels)[..., :3]).float(), "h w c -> c h w")
