"""Outlines of objects -> masks: polygons, and COCO's run lengths of both kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as run_lengths
from torch import Tensor

from backsight.data.fields import Box, with_area

FURTHEST = 4
"""How many times the size of its photo a polygon may reach out of it: COCO's tools take memory for every pixel."""

LARGEST = 2**28
"""Pixels of run lengths, at the most: more than a picture may have."""

Outline = list[list[float]] | dict[str, Any]
"""Polygons (x, y, x, y, ...), or run lengths: ``size`` (rows, columns) and ``counts``, down the columns."""


def read_outline(value: Any) -> Outline | None:
    """COCO's ``segmentation``, one polygon or several, of numbers or of points, or run lengths; None for nothing.

    Raises:
        ValueError: it is something else, encloses nothing, or its run lengths are not those of their size.
        TypeError: the same.
    """
    if isinstance(value, Mapping):
        rows, columns = (int(side) for side in value["size"])
        counts = value["counts"]
        runs = uncompressed(counts) if isinstance(counts, str) else [int(count) for count in counts]
        if min(runs, default=-1) < 0 or not 0 < rows * columns <= LARGEST or sum(runs) != rows * columns:
            raise ValueError("run lengths of another size")
        return {"size": [rows, columns], "counts": runs} if sum(runs[1::2]) else None
    if not isinstance(value, list):
        raise TypeError(value)
    flat = [part for part in value if part != []]
    if not flat:
        return None
    flat = flat if isinstance(flat[0], list) else [flat]
    if isinstance(flat[0][0], list) and not isinstance(flat[0][0][0], list) and len(flat[0][0]) == 2:
        flat = [[side for point in polygon for side in point] for polygon in flat]
    elif len(flat) > 2 and all(len(point) == 2 for point in flat):  # one polygon, as points
        flat = [[side for point in flat for side in point]]
    polygons = [np.asarray(polygon, float) for polygon in flat if len(polygon) >= 6]
    if not polygons or not all(each.ndim == 1 and len(each) % 2 == 0 and np.isfinite(each).all() for each in polygons):
        raise ValueError("no polygon of three points or more")
    return [each.tolist() for each in polygons]


def uncompressed(text: str) -> list[int]:
    """COCO's compressed run lengths as numbers: six bits a letter, five of them of a number, which is the difference
    to the one before the last.

    Raises:
        ValueError: it is none.
    """
    runs: list[int] = []
    value = bits = 0
    for letter in text:
        six = ord(letter) - 48
        if not 0 <= six < 64:
            raise ValueError(text)
        value |= (six & 31) << bits
        bits += 5
        if not six & 32:
            value -= (six & 16) << (bits - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = bits = 0
    if bits:
        raise ValueError(text)
    return runs


def bounds(outline: Outline) -> Box:
    """The box around an outline, x0, y0, x1, y1.

    Raises:
        ValueError: it has no area.
    """
    if isinstance(outline, dict):
        rows, columns = np.nonzero(_runs_mask(outline))
        return with_area(tuple(map(float, (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))))
    points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in outline])
    return with_area((*points.min(0).tolist(), *points.max(0).tolist()))


def draw_mask(outline: Outline, size: tuple[int, int]) -> Tensor | None:
    """``H W`` bool, to the bit as COCO's own tools draw it; None for an outline of another photo than one of ``size``
    (rows, columns)."""
    if isinstance(outline, dict):
        return torch.from_numpy(_runs_mask(outline)) if tuple(outline["size"]) == size else None
    furthest = FURTHEST * max(size)
    if any(abs(side) > furthest for polygon in outline for side in polygon):
        return None
    runs = run_lengths.merge([run_lengths.frPyObjects([polygon], *size)[0] for polygon in outline])
    return torch.from_numpy(np.ascontiguousarray(run_lengths.decode(runs))).bool()


def _runs_mask(outline: dict[str, Any]) -> np.ndarray:
    counts, (rows, columns) = outline["counts"], outline["size"]
    inside = np.arange(len(counts)) % 2 == 1
    return np.ascontiguousarray(np.repeat(inside, counts).reshape(columns, rows).T)


def fill_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes ``n 4`` (x0, y0, x1, y1 in pixels) -> the pixels whose middle lies inside, ``n H W`` bool."""
    y, x = (torch.arange(side, device=boxes.device) + 0.5 for side in size)
    left, top, right, bottom = boxes[:, :, None].unbind(1)
    return ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None]
