"""Regions, boxes and detections drawn on pictures: tensors in, tensors out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from einops import rearrange, repeat
from torch import Tensor

from backsight.core import Detections
from backsight.figures.fonts import font_file
from backsight.figures.house_style import PALETTE
from backsight.figures.pictures import to_array

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont


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


def crop_around(boxes: Tensor, size: tuple[int, int], least: int = 32) -> tuple[slice, slice]:
    """Where to cut an image to show ``boxes`` ``n 4`` (x0, y0, x1, y1 in pixels) with their surroundings: a square,
    twice as long as they are, that is moved into the image of ``size`` (H, W), or cut by it where it is larger.

    Args:
        boxes: at least one.
        size: of the image.
        least: the shortest side, in pixels.

    Returns:
        (rows, columns).
    """
    low, high = boxes[:, :2].amin(0), boxes[:, 2:].amax(0)
    side = max(least, round(2 * float((high - low).max())))
    slices = []
    for centre, length in zip(((low + high) / 2).flip(0).tolist(), size, strict=True):
        start = max(0, min(round(centre - side / 2), length - side))
        slices.append(slice(start, min(length, start + side)))
    return slices[0], slices[1]


def cut_out(image: Tensor, boxes: Tensor, frames: Sequence[tuple[Tensor, str]] = (), least: int = 192) -> Tensor:
    """What :func:`crop_around` leaves of an image, small parts enlarged, with boxes drawn on it.

    Args:
        image: ``3 H W`` in [0, 1].
        boxes: what is to be seen with its surroundings, ``n 4``.
        frames: boxes (x0, y0, x1, y1 in pixels of the whole image) and their colours, ``#rrggbb``, drawn inside their
            bounds; all but the first are dashed, so that it shows where others lie on it.
        least: the shorter side to reach by enlarging, in pixels; 0 to leave the picture as it is.

    Returns:
        ``3 kh kw`` in [0, 1], for a whole number k.
    """
    rows, columns = crop_around(boxes, (image.shape[-2], image.shape[-1]))
    corner = torch.tensor([columns.start, rows.start] * 2)
    inside = [(box.cpu() - corner, colour) for box, colour in frames]
    return draw_frames(image[:, rows, columns], inside, least, dashed=True)


def draw_frames(
    image: Tensor, frames: Sequence[tuple[Tensor, str]], least: int = 192, *, dashed: bool = False
) -> Tensor:
    """Boxes drawn on an image, which is enlarged by a whole number k first where it is small.

    Args:
        image: ``3 H W`` in [0, 1].
        frames: boxes (x0, y0, x1, y1 in pixels) and their colours, ``#rrggbb``, drawn inside their bounds.
        least: the shorter side to reach by enlarging, in pixels; 0 to leave the picture as it is.
        dashed: all boxes but the first are dashed.

    Returns:
        ``3 kH kW`` in [0, 1].
    """
    factor = max(1, -(-least // min(image.shape[-2:])))
    picture = repeat(image, "c h w -> c (h y) (w x)", y=factor, x=factor)
    height, width = picture.shape[-2:]
    line = max(1, round(min(height, width) / 80))
    y, x = torch.arange(height)[:, None], torch.arange(width)
    dashes = (x + y) // (5 * line) % 2 == 0
    for index, (box, colour) in enumerate(frames):
        corners = box.cpu() * factor
        border = _inside(y, x, corners) & ~_inside(y, x, corners + line * torch.tensor([1, 1, -1, -1]))
        picture = _paint(picture, border & dashes if dashed and index else border, colour)
    return picture


def _inside(y: Tensor, x: Tensor, corners: Tensor) -> Tensor:
    """Which of the pixels (y, x) lie in the box (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = corners.round().int().tolist()
    return (y >= y0) & (y < y1) & (x >= x0) & (x < x1)


def _paint(image: Tensor, mask: Tensor, colour: str) -> Tensor:
    levels = torch.tensor([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    return torch.where(mask.to(image.device), levels.to(image)[:, None, None], image)


# ---- detections with their names

_DRAWN_SIDE = 384
"""A smaller picture is enlarged before names are written on it, in pixels."""

Strip = tuple[float, float, float, float]


def draw_detections(image: Tensor, detections: Detections, threshold: float = 0.5) -> Tensor:
    """The image with a box, a name and a score on it for every detection of at least ``threshold``, for a screen; in
    print names stand below (:func:`draw_frames`).

    Args:
        image: ``3 H W`` in [0, 1].
        detections: Boxes in pixels of ``image``.
        threshold: The least score that is drawn, in [0, 1].

    Returns:
        ``3 kH kW`` in [0, 1]: a small image is enlarged by a whole number k first, so that letters can be read on it.
    """
    import numpy
    from PIL import Image, ImageDraw, ImageFont

    factor = math.ceil(_DRAWN_SIDE / min(image.shape[-2:]))
    canvas = Image.fromarray(to_array(repeat(image, "c h w -> c (h y) (w x)", y=factor, x=factor)))
    height = max(8, round(0.05 * canvas.width))
    pen = ImageDraw.Draw(canvas)
    chosen = detections.above(threshold)
    names = "".join(_name_of(chosen, index) for index in range(len(chosen.scores)))
    font = ImageFont.truetype(font_file(names), height)
    order = chosen.scores.argsort(descending=True).tolist()
    frames = {
        index: _clipped([factor * corner for corner in chosen.boxes[index].tolist()], canvas.size) for index in order
    }
    for index in reversed(order):
        pen.rectangle(frames[index], outline=_colour_of(chosen, index), width=max(2, round(height / 5)))
    taken: list[Strip] = []
    for index in order:
        taken.append(_write_name(pen, frames[index], _name_of(chosen, index), _colour_of(chosen, index), font, taken))
    return rearrange(torch.from_numpy(numpy.array(canvas)).float() / 255, "h w c -> c h w")


def _name_of(detections: Detections, index: int) -> str:
    label = int(detections.classes[index])
    return f"{detections.labels.get(label, f'class {label}')} {round(100 * detections.scores[index].item())} %"


def _colour_of(detections: Detections, index: int) -> str:
    return PALETTE[int(detections.classes[index]) % len(PALETTE)]


def _clipped(box: Sequence[float], size: tuple[int, int]) -> Strip:
    """The part of a box (x0, y0, x1, y1) that lies on a canvas of ``size`` (width, height)."""
    x0, x1 = (min(max(0.0, x), size[0] - 1.0) for x in sorted(box[::2]))
    y0, y1 = (min(max(0.0, y), size[1] - 1.0) for y in sorted(box[1::2]))
    return x0, y0, x1, y1


def _write_name(
    pen: ImageDraw, frame: Strip, text: str, colour: str, font: FreeTypeFont, taken: Sequence[Strip]
) -> Strip:
    """Write ``text`` on a coloured strip at a frame, clear of the strips that are ``taken``; give its own."""
    margin = font.size / 5
    size = (pen.textlength(text, font=font) + 2 * margin, font.size + 2 * margin)
    strip = _free_place(frame, size, pen.im.size, taken)
    pen.rectangle(strip, fill=colour)
    middle = (strip[1] + strip[3]) / 2
    pen.text((strip[0] + margin, middle), text, fill=_readable_on(colour), font=font, anchor="lm")
    return strip


def _free_place(box: Strip, size: tuple[float, float], canvas: tuple[int, int], taken: Sequence[Strip]) -> Strip:
    """Where a box's text goes: above it, else inside, else below it, wherever no other text is yet."""
    x0, y0, _, y1 = box
    across, tall = size
    left = max(0.0, min(x0, canvas[0] - across))
    tops = [top for top in (y0 - tall, y0, y1 - tall, y1) if 0 <= top <= canvas[1] - tall] or [0.0]
    strips = [(left, top, left + across, top + tall) for top in tops]
    return next((strip for strip in strips if not any(_overlap(strip, other) for other in taken)), strips[0])


def _overlap(one: Strip, other: Strip) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _readable_on(colour: str) -> str:
    """Black or white, whichever has the higher contrast (WCAG 2) on ``colour``, "#rrggbb"."""
    levels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"
