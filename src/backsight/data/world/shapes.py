"""The shapes of the drawn world, as tables of signed distance: one lookup says whether a point is inside.

A shape is a set of closed outlines on a plane where it fills about the square [-1, 1] x [-1, 1], x to the right
and y down. What lies inside an odd number of outlines is the shape, so a ring is two circles. Distances are in
the same units, negative inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Outline = NDArray[np.float64]
"""The corners of one closed outline, in order: ``corners 2`` (x, y)."""

EXTENT = 1.25
"""The tables cover [-EXTENT, EXTENT] on both axes; every shape lies inside with room for its soft edge."""

CELLS = 80
"""Cells along each side of a table: bilinear lookups are then exact to a hundredth of a shape's radius."""

BEVEL = 0.30
"""How far from its edge a shape's surface is sloped; further inside it is flat."""


def signed_distance(points: NDArray[np.float64], outlines: Sequence[Outline]) -> NDArray[np.float64]:
    """The distance of ``points`` ``n 2`` to the nearest edge, negative inside (even-odd rule), ``n``."""
    nearest = np.full(len(points), np.inf)
    inside = np.zeros(len(points), dtype=bool)
    x, y = points.T
    for outline in outlines:
        for start, end in zip(outline, np.roll(outline, -1, axis=0), strict=True):
            edge, offset = end - start, points - start
            along = np.clip(offset @ edge / max(edge @ edge, 1e-12), 0, 1)
            nearest = np.minimum(nearest, np.hypot(*(offset - along[:, None] * edge).T))
            crosses = (start[1] > y) != (end[1] > y)
            rise = edge[1] if edge[1] != 0 else 1.0
            inside ^= crosses & (x < start[0] + (y - start[1]) / rise * edge[0])
    return np.where(inside, -nearest, nearest)


def _polygon(corners: int, radius: float, turn: float = -90.0) -> Outline:
    angle = np.deg2rad(turn) + np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _circle(radius: float) -> Outline:
    return _polygon(48, radius, turn=0)


def _star() -> Outline:
    outer, inner = _polygon(5, 1.12), _polygon(5, 0.50, turn=-54)
    return np.stack([outer, inner], axis=1).reshape(-1, 2) + np.array([0, 0.06])


def _heart() -> Outline:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y - 2.5], axis=1) / 16


def _cross() -> Outline:
    long, short = 1.0, 0.36
    arm = np.array([(-short, -long), (short, -long), (short, -short)])
    quarter = np.array([[0.0, -1.0], [1.0, 0.0]])
    return np.concatenate([arm @ np.linalg.matrix_power(quarter.T, turns) for turns in range(4)])


def _crescent() -> Outline:
    # The outer arc, then back along the circle that cuts the moon out: the two meet at the horns.
    horn = np.deg2rad(50)
    outer = np.linspace(horn, 2 * np.pi - horn, 40)
    tip = np.array([np.cos(horn), np.sin(horn)])
    centre = 0.62
    reach = np.hypot(tip[0] - centre, tip[1])
    bite = np.arctan2(tip[1], tip[0] - centre)
    inner = np.linspace(2 * np.pi - bite, bite, 30)[1:-1]
    arcs = [np.stack([np.cos(outer), np.sin(outer)], 1)]
    arcs.append(np.stack([centre + reach * np.cos(inner), reach * np.sin(inner)], 1))
    return np.concatenate(arcs) + np.array([0.12, 0])


def _blob(seed: int) -> Outline:
    # A bean: no corner, no symmetry, nothing that a class has.
    phase = np.random.default_rng(seed).uniform(0, 2 * np.pi, 3)
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    radius = 0.72 + sum(0.16 / k**0.5 * np.cos(k * angle + p) for k, p in zip((2, 3, 5), phase, strict=True))
    return np.stack([radius * np.cos(angle), 0.62 * radius * np.sin(angle)], axis=1)


def _stick() -> Outline:
    thickness = 0.09
    half = np.linspace(-np.pi / 2, np.pi / 2, 9)
    cap = np.stack([0.95 + thickness * np.cos(half), thickness * np.sin(half)], axis=1)
    return np.concatenate([cap, -cap])


SHAPES: dict[str, list[Outline]] = {
    "ring": [_circle(0.95), _circle(0.48)],
    "star": [_star()],
    "heart": [_heart()],
    "cross": [_cross()],
    "triangle": [_polygon(3, 1.20) + np.array([0, 0.20])],
    "crescent": [_crescent()],
    "octagon": [_polygon(8, 0.98, turn=22.5)],
    "square": [_polygon(4, 1.15, turn=45)],
}
"""The outlines of the shapes that classes wear, by name."""

CLUTTER: dict[str, list[Outline]] = {"stick": [_stick()], **{f"blob {seed}": [_blob(seed)] for seed in range(5)}}
"""Those that nobody is asked to find."""

NAMES: tuple[str, ...] = (*SHAPES, *CLUTTER)
"""Every table's name, in the order of :func:`atlas`."""


@cache
def atlas() -> Tensor:
    """All tables: ``shapes 3 CELLS CELLS``, read by bilinear interpolation.

    The channels are the signed distance and the slope of the surface along x and y (length 1 at the edge, 0 outside and
    further than :data:`BEVEL` inside), which is all that shading needs.
    """
    return torch.from_numpy(np.stack([_table(name) for name in NAMES])).float()


@cache
def areas() -> Tensor:
    """The area of every shape of :data:`NAMES`, in its own units."""
    distances = atlas()[:, 0].flatten(1)
    cell = 2 * EXTENT / CELLS
    return (0.5 - distances / cell).clamp(0, 1).sum(1) * cell**2


@cache
def reach(beyond: float) -> Tensor:
    """How far from its middle each shape of :data:`NAMES` reaches, with everything up to ``beyond`` its edge."""
    centres = (torch.arange(CELLS) + 0.5) * (2 * EXTENT / CELLS) - EXTENT
    radius = torch.hypot(*torch.meshgrid(centres, centres, indexing="ij"))
    return (radius * (atlas()[:, 0] <= beyond)).flatten(1).amax(1) + 2 * EXTENT / CELLS


def _table(name: str) -> NDArray[np.float64]:
    # 3 CELLS CELLS
    centres = (np.arange(CELLS) + 0.5) * (2 * EXTENT / CELLS) - EXTENT
    x, y = np.meshgrid(centres, centres)
    points = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float64)
    distance = signed_distance(points, {**SHAPES, **CLUTTER}[name]).reshape(CELLS, CELLS)
    down, right = np.gradient(distance, centres, centres)
    depth = np.clip(-distance / BEVEL, 0, 1)
    slope = np.where(distance < centres[1] - centres[0], (1 - depth) ** 2 * (1 + 2 * depth), 0)
    return np.stack([distance, right * slope, down * slope])
