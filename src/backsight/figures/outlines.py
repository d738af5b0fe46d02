"""Regions and boxes drawn on pictures: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import repeat
from torch import Tensor

from backsight.figures.house_style import PALETTE


def outline(image: Tensor, mask: Tensor, colour: str = PALETTE[1], width: int = 1) -> Tensor:
    """The image with the border of a region drawn on it, on the region's side.

    Args:
        image: ``3 H W`` in [0, 1].
        mask: ``H W``, bool.
        colour: ``#rrggbb``.
        width: of the line, in pixels.

    Returns:
        ``3 H W``.
    """
    padded = torch.nn.functional.pad(mask.float()[None, None], [width] * 4)  # beyond the image nothing is inside
    inner = -torch.nn.functional.max_pool2d(-padded, 2 * width + 1, 1)[0, 0] > 0
    return _paint(image, mask.to(inner.device) & ~inner, colour)


def crop_around(boxes: Tensor, size: tuple[int, int], margin: float = 0.5, least: int = 32) -> tuple[slice, slice]:
    """Where to cut an image to show ``boxes`` ``n 4`` (x0, y0, x1, y1 in pixels) with their surroundings: a square that
    is moved into the image of ``size`` (H, W), or cut by it where it is larger.

    Args:
        boxes: at least one.
        size: of the image.
        margin: added on each side, as a share of the longer side of what is shown.
        least: the shortest side, in pixels.

    Returns:
        (rows, columns).
    """
    low, high = boxes[:, :2].amin(0), boxes[:, 2:].amax(0)
    side = max(least, round(float((high - low).max()) * (1 + 2 * margin)))
    slices = []
    for centre, length in zip(((low + high) / 2).flip(0).tolist(), size, strict=True):
        start = max(0, min(round(centre - side / 2), length - side))
        slices.append(slice(start, min(length, start + side)))
    return slices[0], slices[1]


def cut_out(
    image: Tensor, window: tuple[slice, slice], frames: Sequence[tuple[Tensor, str]] = (), least: int = 192
) -> Tensor:
    """A part of an image, small ones enlarged, with boxes drawn on it.

    Args:
        image: ``3 H W`` in [0, 1].
        window: (rows, columns), as :func:`crop_around` gives them.
        frames: boxes (x0, y0, x1, y1 in pixels of the whole image) and their colours, ``#rrggbb``, drawn inside their
            bounds; all but the first are dashed, so that it shows where others lie on it.
        least: the shorter side to reach by enlarging, in pixels; 0 to leave the picture as it is.

    Returns:
        ``3 kh kw`` in [0, 1], for a whole number k.
    """
    rows, columns = window
    part = image[:, rows, columns]
    factor = max(1, -(-least // min(part.shape[-2:])))
    picture = repeat(part, "c h w -> c (h y) (w x)", y=factor, x=factor)
    height, width = picture.shape[-2:]
    line = max(1, round(min(height, width) / 80))
    y, x = torch.arange(height)[:, None], torch.arange(width)
    dashes = (x + y) // (5 * line) % 2 == 0
    for index, (box, colour) in enumerate(frames):
        corners = (box.cpu() - torch.tensor([columns.start, rows.start] * 2)) * factor
        border = _inside(y, x, corners) & ~_inside(y, x, corners + line * torch.tensor([1, 1, -1, -1]))
        picture = _paint(picture, border & dashes if index else border, colour)
    return picture


def _inside(y: Tensor, x: Tensor, corners: Tensor) -> Tensor:
    """Which of the pixels (y, x) lie in the box (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = corners.round().int().tolist()
    return (y >= y0) & (y < y1) & (x >= x0) & (x < x1)


def _paint(image: Tensor, mask: Tensor, colour: str) -> Tensor:
    levels = torch.tensor([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    return torch.where(mask.to(image.device), levels.to(image)[:, None, None], image)
