"""What a view shows, whole: a frozen dataclass of plain values, and the address that says the same.

A link is permanent because nothing else decides what is seen: ``view=look&picture=world-prior/3&at=encoder.2``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar
from urllib.parse import urlencode

import numpy as np
import torch
from torch import Tensor

from backsight.core import UserError

MEAN, SPREAD = "mean", "spread"
"""What a view may show of the seeds, beside each of them: their mean, and where they disagree."""

LONGEST = 2000
"""Letters that one value of an address may have."""


@dataclass(frozen=True)
class State:
    """What all views have in common. ``model`` is "" for the first, ``shows`` is ``mean``, ``spread`` or a seed."""

    view: ClassVar[str] = ""
    model: str = ""
    shows: str = MEAN


@dataclass(frozen=True)
class Look(State):
    """One picture through one or two models (``also``); ``at`` is the layer under the slider, "" for the last one;
    detections below ``threshold`` (0..1) are left out."""

    view: ClassVar[str] = "look"
    picture: str = ""
    also: str = ""
    at: str = ""
    threshold: float = 0.5


@dataclass(frozen=True)
class Change(State):
    """One picture, recoloured and with tokens replaced.

    ``colour`` is a filter, ``where`` is ``all``, ``brush``, ``detected.N`` or ``known.N`` (the N-th object), ``brush``
    the cells that were painted. At ``stage`` the ``tokens`` become ``noise``: those of the picture ``other`` for a
    swap. Cells are written as by :func:`write_cells`.
    """

    view: ClassVar[str] = "change"
    picture: str = ""
    colour: str = "none"
    where: str = "all"
    brush: str = ""
    stage: str = ""
    noise: str = "uniform"
    tokens: str = ""
    other: str = ""


@dataclass(frozen=True)
class Compare(State):
    """Two pictures (``other``), two models (``also``), or both, stage by stage."""

    view: ClassVar[str] = "compare"
    picture: str = ""
    other: str = ""
    also: str = ""


@dataclass(frozen=True)
class Diagnose(State):
    """The errors of a detector on its data: of one ``kind`` and one ``label`` ("" for any), and a ``case`` opened
    ("" for none)."""

    view: ClassVar[str] = "diagnose"
    kind: str = ""
    label: str = ""
    case: str = ""


VIEWS: Mapping[str, type[State]] = {kind.view: kind for kind in (Look, Change, Compare, Diagnose)}
"""Every view by its name in an address."""


def to_query(state: State) -> str:
    """The query of the address that shows ``state``; what is as it is by default is left out."""
    values = {
        each.name: getattr(state, each.name) for each in fields(state) if getattr(state, each.name) != each.default
    }
    return urlencode({"view": state.view, **values}, safe="/,:@")


def from_query(query: Mapping[str, str]) -> State:
    """The inverse of :func:`to_query`, of a query that is parsed already; parameters of others are left alone.

    Raises:
        UserError: no such view, a value that is too long, or no number where one belongs.
    """
    view = query.get("view", Look.view)
    if view not in VIEWS:
        raise UserError(f"there is no view '{view[:40]}': there are {', '.join(VIEWS)}")
    kind = VIEWS[view]
    return kind(
        **{each.name: _read(each.name, query[each.name], each.type) for each in fields(kind) if each.name in query}
    )


def _read(name: str, text: str, kind: Any) -> Any:
    if len(text) > LONGEST:
        raise UserError(f"'{name}' in the address is too long: {len(text)} letters, at most {LONGEST} are read")
    if kind != "float":
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UserError(f"'{name}' in the address is '{text[:40]}': it is to be a number from 0 to 1")
    return value


def write_cells(cells: Tensor) -> str:
    """Which cells of a grid are chosen, ``h w`` bool, counted row by row: ``3-6,12``; "" for none."""
    chosen = cells.flatten().nonzero().flatten().numpy()
    runs = np.split(chosen, np.flatnonzero(np.diff(chosen) > 1) + 1) if len(chosen) else []
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def read_cells(text: str, grid: tuple[int, int]) -> Tensor:
    """The inverse of :func:`write_cells`, ``h w`` bool.

    Raises:
        UserError: it is written in another way, or names cells that the grid does not have.
    """
    cells = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
    for part in filter(None, text.split(",")):
        start, _, stop = part.partition("-")
        if not (start.isdecimal() and (stop or start).isdecimal() and int(start) <= int(stop or start) < len(cells)):
            raise UserError(f"'{part[:40]}' is no cell of a grid of {grid[0]} x {grid[1]}: write them as 3-6,12")
        cells[int(start) : int(stop or start) + 1] = True
    return cells.view(grid)
