"""A plate: panels of lines that share one legend, and under them blocks of pictures with named rows and columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from backsight.figures.house_style import LETTER_WIDTH, LETTERS, LINE_HEIGHT, WIDTH, ink, nth_colour, style, wrapped
from backsight.figures.lines import ErrorPoint
from backsight.figures.pictures import to_array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = ("o", "s", "^", "D", "v", "P")
_PANEL = 1.55  # height of a panel's axes, inches
_LEFT = 0.54  # of a panel's axes, for what is written there, inches
_GAP, _BETWEEN = 0.04, 0.16  # between pictures, and between blocks, inches
_LARGEST = 1.15  # width of a picture, inches
_MOST_COLUMNS = 10


@dataclass(frozen=True)
class Panel:
    """Lines over named places.

    Attributes:
        title: what is shown, one line.
        label: of the vertical axis: what is measured, in which unit.
        lines: for every line its points; lines of the same name look the same in all panels.
        limits: (low, high) of the vertical axis; None to fit.
        marks: heights that mean something, by name ("" to write nothing).
        across: label of the horizontal axis.
        joined: whether the points of a line are joined; not where their order means nothing.
    """

    title: str
    label: str
    lines: Mapping[str, Sequence[ErrorPoint]]
    limits: tuple[float | None, float | None] = (0, None)
    marks: Mapping[str, float] = field(default_factory=dict)
    across: str = ""
    joined: bool = True

    @property
    def places(self) -> list[str]:
        """The names along the horizontal axis."""
        return list(dict.fromkeys(point.stage for points in self.lines.values() for point in points))


@dataclass(frozen=True)
class Block:
    """Pictures of one kind: ``rows`` by name, each with a picture ``3 H W`` in [0, 1] (or None) for every column."""

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[Tensor | None]]


def plate(panels: Sequence[Panel], blocks: Sequence[Block] = ()) -> Figure:
    """Panels side by side over blocks of pictures, 7 inches wide.

    Blocks with the same row names and proportions stand beside each other, where there is room, and share the names.

    Args:
        panels: at least one.
        blocks: of pictures.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    legend = _legend_rows(names)
    shelves = _shelves([block for block in blocks if block.rows])
    top = LINE_HEIGHT * 1.35 * len(legend) + 0.1
    width = WIDTH / len(panels) - _LEFT - 0.1
    under = max(_under(panel, width) for panel in panels)
    head = LINE_HEIGHT * (0.3 + 1.2 * max(_title(panel, width).count("\n") + 1 for panel in panels))
    heights = [_shelf_height(shelf) for shelf in shelves]
    with style():
        figure = Figure(figsize=(WIDTH, top + head + _PANEL + under + sum(heights) + 0.03))
        handles: dict[str, Any] = {}
        for index, panel in enumerate(panels):
            corner = (index * WIDTH / len(panels) + _LEFT, top + head)
            axes = _axes(figure, corner, (width, _PANEL))
            handles |= _draw_panel(axes, panel, names, width)
        _draw_legend(figure, legend, handles)
        down = top + head + _PANEL + under
        for shelf, height in zip(shelves, heights, strict=True):
            _draw_shelf(figure, shelf, down)
            down += height
    return figure


# ---- panels


def _draw_panel(axes: Any, panel: Panel, names: Sequence[str], width: float) -> dict[str, Any]:
    """Draw the lines; returns a handle of each for the legend."""
    places = panel.places
    axes.grid(axis="y")
    axes.set_title(_title(panel, width), loc="left", pad=4)
    axes.set_ylabel(panel.label, labelpad=3)
    axes.set_xlabel(panel.across)
    axes.set_xlim(-0.5, max(1, len(places)) - 0.5)
    for name, height in panel.marks.items():
        axes.axhline(height, color=ink(), linewidth=0.8, linestyle=(0, (4, 2)))
        axes.annotate(
            name,
            (1, height),
            (-1, 1),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=LETTERS,
            ha="right",
            va="bottom",
        )
    handles = {}
    for name, points in panel.lines.items():
        index = names.index(name)
        shift = 0.3 * (index - (len(names) - 1) / 2) / max(1, len(names))
        at = [places.index(point.stage) + shift for point in points]
        line = _draw_line(axes, index, at, points)
        line[0].set_linestyle("-" if panel.joined else "none")
        handles[name] = line
    axes.set_ylim(*panel.limits)
    _name_places(axes, places, width / max(1, len(places)))
    return handles


def _title(panel: Panel, width: float) -> str:
    return wrapped(panel.title, width * 0.95)  # its letters are a little larger


def _draw_line(axes: Any, index: int, at: Sequence[float], points: Sequence[ErrorPoint]) -> Any:
    bounds = [point.bounds for point in points]
    means = [mean for mean, _, _ in bounds]
    lengths = [[max(0.0, mean - low) for mean, low, _ in bounds], [max(0.0, high - mean) for mean, _, high in bounds]]
    look: dict[str, Any] = {"color": nth_colour(index), "marker": _MARKERS[index % len(_MARKERS)], "markersize": 3.5}
    return axes.errorbar(at, means, yerr=lengths, capsize=2, linewidth=1.2, elinewidth=0.9, **look)


def _fit(places: Sequence[str], room: float) -> bool:
    """Whether the names can be written under the axis, in ``room`` inches each."""
    return all(len(word) * LETTER_WIDTH < room for place in places for word in place.split())


def _under(panel: Panel, width: float) -> float:
    """What is needed under the axes for the names and the label, in inches."""
    places = panel.places
    room = width / max(1, len(places))
    if _fit(places, room):
        names = LINE_HEIGHT * max((wrapped(place, room).count("\n") + 1 for place in places), default=1)
    else:
        names = 0.1 + 0.62 * LETTER_WIDTH * max(map(len, places))
    return 0.2 + names + (LINE_HEIGHT * 1.2 if panel.across else 0)


def _name_places(axes: Any, places: Sequence[str], room: float) -> None:
    """Written under the axis where they fit in ``room`` inches each, slanted where they do not."""
    if _fit(places, room):
        axes.set_xticks(range(len(places)), [wrapped(place, room) for place in places])
    else:
        axes.set_xticks(range(len(places)), places, rotation=38, ha="right", rotation_mode="anchor")
    axes.tick_params(axis="x", length=2, pad=2, labelsize=LETTERS)


def _legend_rows(names: Sequence[str]) -> list[list[str]]:
    rows: list[list[str]] = [[]]
    for name in names:
        used = sum(_legend_width(each) for each in rows[-1])
        if rows[-1] and used + _legend_width(name) > WIDTH:
            rows.append([])
        rows[-1].append(name)
    return rows


def _legend_width(name: str) -> float:
    return LETTER_WIDTH * 1.05 * len(name) + 0.5


def _draw_legend(figure: Figure, rows: Sequence[Sequence[str]], handles: Mapping[str, Any]) -> None:
    height = figure.get_figheight()
    for index, row in enumerate(rows):
        at = (0.005, 1 - (0.03 + index * LINE_HEIGHT * 1.35) / height)
        legend = figure.legend(
            [handles[name] for name in row], row, loc="upper left", bbox_to_anchor=at, ncols=len(row),
            borderpad=0, borderaxespad=0, columnspacing=1.4, handlelength=2,
        )  # fmt: skip
        figure.add_artist(legend)


# ---- pictures


def _shelves(blocks: Sequence[Block]) -> list[list[Block]]:
    """Blocks that stand beside each other: of the same rows and proportions, not too many columns together."""
    shelves: list[list[Block]] = []
    for block in blocks:
        last = shelves[-1] if shelves else []
        together = sum(len(each.columns) for each in last) + len(block.columns)
        alike = bool(last) and list(last[0].rows) == list(block.rows) and _proportion(last[0]) == _proportion(block)
        if alike and together <= _MOST_COLUMNS:
            last.append(block)
        else:
            shelves.append([block])
    return shelves


def _margin(shelf: Sequence[Block]) -> float:
    """The room for the names of rows, in inches."""
    longest = max(len(name) for name in shelf[0].rows)
    return longest * LETTER_WIDTH + 0.08 if longest else 0.0


def _side(shelf: Sequence[Block]) -> float:
    """The width of a picture, in inches."""
    columns = sum(len(block.columns) for block in shelf)
    room = WIDTH - _margin(shelf) - _BETWEEN * (len(shelf) - 1) - _GAP * (columns - len(shelf))
    return min(_LARGEST, room / columns)


def _proportion(block: Block) -> float:
    """The height of the highest picture in units of its width."""
    pictures = [picture for row in block.rows.values() for picture in row if picture is not None]
    return max((picture.shape[-2] / picture.shape[-1] for picture in pictures), default=1.0)


def _row_height(shelf: Sequence[Block]) -> float:
    return _side(shelf) * _proportion(shelf[0])


def _head(shelf: Sequence[Block]) -> float:
    """The height of headings and column titles, in inches."""
    lines = max(wrapped(title, _side(shelf)).count("\n") + 1 for block in shelf for title in block.columns)
    return LINE_HEIGHT * (lines + 1.6)


def _shelf_height(shelf: Sequence[Block]) -> float:
    return _head(shelf) + len(shelf[0].rows) * (_row_height(shelf) + _GAP) + _BETWEEN


def _draw_shelf(figure: Figure, shelf: Sequence[Block], down: float) -> None:
    left, side, height = _margin(shelf), _side(shelf), _row_height(shelf)
    top = down + _head(shelf)
    for row, name in enumerate(shelf[0].rows):
        middle = top + row * (height + _GAP) + height / 2
        _write(figure, name, (left - 0.06, middle), ha="right", va="center")
    for block in shelf:
        _write(figure, block.title, (left, down + LINE_HEIGHT * 0.6), ha="left", va="center", weight="bold")
        for column, title in enumerate(block.columns):
            x = left + column * (side + _GAP)
            _write(figure, wrapped(title, side), (x + side / 2, top - 0.025), ha="center", va="bottom")
            for row, pictures in enumerate(block.rows.values()):
                _draw_picture(figure, pictures[column], (x, top + row * (height + _GAP)), side)
        left += len(block.columns) * (side + _GAP) - _GAP + _BETWEEN


def _draw_picture(figure: Figure, picture: Tensor | None, corner: tuple[float, float], side: float) -> None:
    if picture is None:
        return
    axes = _axes(figure, corner, (side, side * picture.shape[-2] / picture.shape[-1]))
    axes.set_axis_off()
    axes.imshow(to_array(picture), aspect="auto")


def _axes(figure: Figure, corner: tuple[float, float], size: tuple[float, float]) -> Any:
    """Axes of ``size`` (width, height) whose upper left ``corner`` is seen from the figure's upper left, in inches."""
    across, down = figure.get_size_inches()
    return figure.add_axes((corner[0] / across, 1 - (corner[1] + size[1]) / down, size[0] / across, size[1] / down))


def _write(figure: Figure, text: str, at: tuple[float, float], **settings: Any) -> None:
    across, down = figure.get_size_inches()
    figure.text(at[0] / across, 1 - at[1] / down, text, fontsize=LETTERS, linespacing=1.05, **settings)
