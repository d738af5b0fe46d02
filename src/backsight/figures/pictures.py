"""Images as files and images with detections drawn on them: tensors in, tensors or bytes out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange, repeat
from torch import Tensor

from backsight.core import Detections
from backsight.figures.fonts import font_file
from backsight.figures.house_style import PALETTE

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

_DRAWN_SIDE = 384
"""A smaller picture is enlarged before boxes are drawn on it, in pixels."""

Strip = tuple[float, float, float, float]


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


def draw_detections(image: Tensor, detections: Detections, threshold: float = 0.5, letters: float = 0.05) -> Tensor:
    """The image with a box, a name and a score for every detection of at least ``threshold``.

    Args:
        image: ``3 H W`` in [0, 1].
        detections: Boxes in pixels of ``image``.
        threshold: The least score that is drawn, in [0, 1].
        letters: Height of the letters as a share of the image's width.

    Returns:
        ``3 kH kW`` in [0, 1]: a small image is enlarged by a whole number k first, so that letters can be read on it.
    """
    import numpy
    from PIL import Image, ImageDraw, ImageFont

    factor = math.ceil(_DRAWN_SIDE / min(image.shape[-2:]))
    canvas = Image.fromarray(to_array(repeat(image, "c h w -> c (h y) (w x)", y=factor, x=factor)))
    height = max(8, round(letters * canvas.width))
    pen = ImageDraw.Draw(canvas)
    chosen = detections.above(threshold)
    names = "".join(_name_of(chosen, index) for index in range(len(chosen.scores)))
    font = ImageFont.truetype(font_file(names), height)
    order = chosen.scores.argsort(descending=True).tolist()
    frames = {
        index: _inside([factor * corner for corner in chosen.boxes[index].tolist()], canvas.size) for index in order
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


def _inside(box: Sequence[float], size: tuple[int, int]) -> Strip:
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
