"""Parameters -> pixels: a background, then every piece in painter's order.

A piece is one affine map from pixels to the plane of its shape and one lookup in the shape's table, which gives its
soft edge, its bevel under the scene's light and the shadow round it. What is one number per piece is worked out for all
scenes at once; only what is one number per pixel is done piece by piece, within the piece's own window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from backsight.data.world.scenes import NUM_TEXTURES, Backdrop, Pieces, Scenes
from backsight.data.world.shapes import EXTENT, areas, atlas, reach

TEXTURE_SIDE = 160
"""Pixels along each side of a background texture."""

_CHUNK = 16  # backgrounds painted together: they stay in the processor's cache until the pieces are on them
_SHADOW, _REACH = 0.45, 0.16  # how dark a shadow is at the edge, and how far it reaches, in a shape's units
_AMBIENT, _RELIEF = 0.82, 0.32  # the brightness of a flat surface, and what facing the light adds to it


@dataclass(frozen=True)
class Rendering:
    """B pictures of K object slots.

    ``images`` ``B 3 H W`` uint8 RGB; ``masks`` ``B K H W`` bool, the part of each object that is seen; ``visible``
    ``B K`` float in [0, 1], that part's share of the whole object, in the picture or not.
    """

    images: Tensor
    masks: Tensor
    visible: Tensor


@dataclass(frozen=True)
class _Stroke:
    """One piece, ready to paint on ``scene`` as object number ``item`` (-1: clutter), in a window of pixels."""

    scene: int
    item: int
    shape: int
    rows: slice
    columns: slice
    affine: Tensor  # 3 2, from (x, y, 1) in the image to (x, y) in the table
    colour: Tensor  # 3 1 1
    radius: float  # pixels per unit of the shape
    light: tuple[float, float]  # in the shape's own frame, where the table's slopes are


def render(scenes: Scenes, size: tuple[int, int] = (96, 96)) -> Rendering:
    """Draw ``scenes`` at ``size`` (H, W) pixels. A scene looks the same in whatever batch, but for rounding."""
    num = scenes.classes.shape[1]
    images = torch.empty(len(scenes), 3, *size, dtype=torch.uint8)
    masks = torch.zeros(len(scenes), num, *size, dtype=torch.bool)
    strokes = _strokes(scenes, size)
    plane = _plane(size)
    for start in range(0, len(scenes), _CHUNK):
        part = slice(start, start + _CHUNK)
        canvas = _paint_backdrop(scenes.backdrop, part, plane)
        for scene, picture in enumerate(canvas, start):
            for stroke in strokes[scene]:
                _paint(picture, masks[scene], stroke, plane)
        images[part] = canvas.mul_(255).round_().clamp_(0, 255)
    whole = areas()[scenes.objects.shape] * (scenes.objects.size * min(size)) ** 2
    # NumPy counts true values eight times faster than torch sums them.
    seen = torch.tensor([np.count_nonzero(mask) for mask in masks.flatten(0, 1).numpy()])
    return Rendering(images, masks, (seen.view_as(whole) / whole).clamp(max=1.0))


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Hue in degrees, saturation and value in [0, 1] (all ``...``) -> RGB in [0, 1] (``... 3``)."""
    sector = (hue[..., None] / 60 + torch.tensor([5.0, 3.0, 1.0])) % 6
    dip = torch.minimum(sector, 4 - sector).clamp(0, 1)
    return value[..., None] * (1 - saturation[..., None] * dip)


def _plane(size: tuple[int, int]) -> Tensor:
    # H W 3: (x, y, 1) of every pixel's centre, in units of the shorter side.
    y, x = (torch.arange(side).add(0.5) / min(size) for side in size)
    return torch.stack([x.expand(*size), y[:, None].expand(*size), torch.ones(size)], dim=-1)


def _affine(turn: Tensor, scale: Tensor, origin: Tensor) -> Tensor:
    # b 3 2: ``origin`` b 2 moved to the middle of a table, turned by ``turn`` b (degrees), times ``scale`` b.
    cos, sin = scale * turn.deg2rad().cos(), scale * turn.deg2rad().sin()
    turned = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], dim=1)
    return torch.cat([turned, -origin[:, None] @ turned], dim=1)


def _strokes(scenes: Scenes, size: tuple[int, int]) -> list[list[_Stroke]]:
    """What to paint on each scene, in order."""
    layers = (scenes.behind, scenes.objects, scenes.front)
    merged = Pieces(**{f.name: torch.cat([getattr(p, f.name) for p in layers], dim=1) for f in fields(Pieces)})
    behind, num, front = (layer.present.shape[1] for layer in layers)
    items = torch.tensor([-1] * behind + list(range(num)) + [-1] * front)
    scene, slot = merged.present.nonzero().unbind(1)
    pieces = Pieces(**{f.name: getattr(merged, f.name)[scene, slot] for f in fields(Pieces)})
    strokes: list[list[_Stroke]] = [[] for _ in range(len(scenes))]
    for stroke in _ready(pieces, scene, items[slot], scenes.light[scene], size):
        strokes[stroke.scene].append(stroke)
    return strokes


def _ready(pieces: Pieces, scene: Tensor, item: Tensor, light: Tensor, size: tuple[int, int]) -> Iterator[_Stroke]:
    short = min(size)
    centre = pieces.centre * torch.tensor([size[1], size[0]]) / short
    affine = _affine(pieces.rotation, 1 / (EXTENT * pieces.size), centre)
    colour = hsv_to_rgb(pieces.hue, pieces.saturation, pieces.value)[..., None, None]
    towards = (light - pieces.rotation).deg2rad()
    arm = (reach(_REACH)[pieces.shape] * pieces.size)[:, None]
    first = ((centre - arm) * short).floor().clamp(min=0).int()
    last = torch.minimum(((centre + arm) * short).ceil(), torch.tensor([size[1], size[0]])).int()
    numbers = (scene, item, pieces.shape, first, last, pieces.size * short, towards.cos(), towards.sin())
    for place, matrix, rgb in zip(zip(*(n.tolist() for n in numbers), strict=True), affine, colour, strict=True):
        scene_, item_, shape, (left, top), (right, bottom), radius, *light_ = place
        rows, columns = slice(top, bottom), slice(left, right)
        yield _Stroke(scene_, item_, shape, rows, columns, matrix, rgb, radius, tuple(light_))


def _paint(picture: Tensor, masks: Tensor, stroke: _Stroke, plane: Tensor) -> None:
    """Paint one piece on ``picture`` ``3 H W``, and take what it hides from the objects' ``masks`` ``K H W``."""
    where = plane[stroke.rows, stroke.columns] @ stroke.affine
    table = atlas()[stroke.shape][None]
    found = functional.grid_sample(table, where[None], padding_mode="border", align_corners=False)
    distance, across, down = found[0]
    alpha = (distance * -stroke.radius).add_(0.5).clamp_(0, 1)
    shade = (
        across.mul_(_RELIEF * stroke.light[0]).add_(down, alpha=_RELIEF * stroke.light[1]).add_(_AMBIENT).mul_(alpha)
    )
    keep = distance.mul_(_SHADOW / _REACH).add_(1 - _SHADOW).clamp_(1 - _SHADOW, 1).mul_(1 - alpha)
    picture[:, stroke.rows, stroke.columns].mul_(keep).addcmul_(stroke.colour, shade)
    solid = alpha > 0.5
    window = masks[:, stroke.rows, stroke.columns]
    window &= ~solid
    if stroke.item >= 0:
        window[stroke.item] = solid


def _paint_backdrop(backdrop: Backdrop, part: slice, plane: Tensor) -> Tensor:
    """The backgrounds, ``b 3 H W`` in [0, 1]: a turned window on a texture, between two colours."""
    zoom, texture = backdrop.zoom[part], textures()[backdrop.texture[part]]
    sides = plane[-1, -1, :2] + plane[0, 0, :2]
    long = sides.max()
    # The window may move as far as its corners stay on the texture, however it is turned.
    room = (1 / zoom - math.sqrt(2))[:, None] / math.sqrt(2)
    origin = sides / 2 + backdrop.shift[part] * room * long / 2
    affine = _affine(backdrop.angle[part], 2 * zoom / long, origin)
    where = (plane.flatten(0, 1) @ affine).unflatten(1, plane.shape[:2])
    pattern = functional.grid_sample(texture, where, padding_mode="border", align_corners=False)
    first, second = hsv_to_rgb(*backdrop.colours[part].unbind(-1))[..., None, None].unbind(1)
    return torch.addcmul(first, second - first, pattern)


@cache
def textures() -> Tensor:
    """The background textures, ``NUM_TEXTURES 1 side side`` in [0, 1]."""
    return torch.from_numpy(np.stack([_texture(number) for number in range(NUM_TEXTURES)])).float()[:, None]


def _texture(number: int) -> NDArray[np.float64]:
    # Four kinds in turn: clouds, bands bent by clouds, cells, weave; rough or smooth, large or fine.
    dice = np.random.default_rng(number)
    cloud = _cloud(dice, slope=dice.uniform(1.0, 1.9))
    x, y = np.meshgrid(*[np.linspace(0, 1, TEXTURE_SIDE)] * 2)
    rate = dice.uniform(5, 16)
    patterns = (
        cloud,
        0.5 + 0.5 * np.sin(2 * np.pi * (rate * x + 2.2 * cloud)),
        np.abs(2 * _cloud(dice, 1.6) - 1) ** 0.6,
        0.5
        + 0.25 * np.sin(2 * np.pi * rate * (x + 0.15 * cloud))
        + 0.25 * np.sin(2 * np.pi * rate * (y - 0.15 * cloud)),
    )
    pattern = 0.8 * patterns[number % 4] + 0.2 * _cloud(dice, slope=0.6)
    return (pattern - pattern.min()) / np.ptp(pattern)


def _cloud(dice: np.random.Generator, slope: float) -> NDArray[np.float64]:
    # Noise whose amplitude falls as frequency ** -slope, made uniform in [0, 1] by its own ranks.
    frequency = np.hypot(np.fft.fftfreq(TEXTURE_SIDE)[:, None], np.fft.rfftfreq(TEXTURE_SIDE)[None])
    spectrum = np.fft.rfft2(dice.standard_normal((TEXTURE_SIDE, TEXTURE_SIDE)))
    noise = np.fft.irfft2(spectrum / np.maximum(frequency, 1 / TEXTURE_SIDE) ** slope)
    return noise.ravel().argsort().argsort().reshape(noise.shape) / noise.size
