"""Tables as maps of colour: how alike every two layers are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from backsight.figures.house_style import LETTER_WIDTH, LETTERS, LINE_HEIGHT, WIDTH, wrapped
from backsight.figures.page import Part, panel_axes

COLOURS = "cividis"
"""Of the maps: even steps look even, to colour-blind people and in grey print too."""

_BAR = 0.6  # of the scale beside the maps, inches


def heat_map_part(tables: Mapping[str, tuple[Sequence[str], Tensor]], heading: str) -> Part:
    """Symmetric tables, two side by side, on one scale from 0 (as dark as what lies below) to 1.

    Args:
        tables: by title: the names of the rows, and the table (``L L``, NaN stays white).
        heading: over all of it.
    """
    columns = min(2, len(tables))
    num_rows = math.ceil(len(tables) / columns)
    letters = LETTER_WIDTH * max(len(name) for names, _ in tables.values() for name in names) + 0.1
    side = (WIDTH - _BAR) / columns - letters

    def draw(place: Any) -> None:
        spaces = panel_axes(place, len(tables), columns)
        shown = None
        for axes, (title, (names, table)) in zip(spaces, tables.items(), strict=False):
            shown = _draw_map(axes, title, names, table, side)
        bar = place.colorbar(shown, ax=spaces, shrink=0.5, aspect=30, pad=0.02)
        bar.outline.set_visible(False)

    return Part((side + letters + 2 * LINE_HEIGHT) * num_rows, draw, heading)


def _draw_map(axes: Any, title: str, names: Sequence[str], table: Tensor, side: float) -> Any:
    shown = axes.imshow(table.numpy(), vmin=0, vmax=1, cmap=COLOURS, interpolation="nearest")
    axes.set_title(wrapped(title, side), pad=4)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=LETTERS)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    if side / len(names) > 4.3 * LETTER_WIDTH:  # room for 0.00
        for down, row in enumerate(table.tolist()):
            for across, value in enumerate(row):
                colour = "white" if value < 0.5 else "black"
                text = f"{value:.2f}" if math.isfinite(value) else ""
                axes.text(across, down, text, ha="center", va="center", fontsize=LETTERS, color=colour)
    return shown
