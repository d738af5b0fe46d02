"""How every figure looks, and how it becomes a file."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

from backsight.figures.fonts import installed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 7.0
"""Of a printed page, in inches."""

HEIGHT = 9.0
"""The most that a figure takes of a printed page, in inches."""

RESOLUTION = 150
"""Of a figure's PNG file, in dots per inch."""

LETTERS = 7.0
"""The smallest letters, in points."""

LINE_HEIGHT = LETTERS * 1.3 / 72
"""Of one line of the smallest letters, in inches."""

LETTER_WIDTH = LETTERS * 0.6 / 72
"""What a letter usually takes, in inches."""

# The colours of Okabe and Ito (2008), which colour-blind people tell apart, without their black and yellow.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
"""In the order in which they are used on white: the best visible first."""

DARK_PALETTE = (SKY, ORANGE, GREEN, PURPLE, VERMILLION, BLUE)
"""The same on a dark page."""


@contextmanager
def style(dark: bool = False) -> Iterator[None]:
    """Matplotlib's settings for every figure of the package; ``dark`` for light lines on a dark page."""
    import matplotlib
    from cycler import cycler

    ink, faint, paper = ("#d9dbe0", "#4a4f59", "#16181d") if dark else ("#22252b", "#cfd2d8", "#ffffff")
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    settings: Any = {
        **dict.fromkeys(inked, ink),
        "axes.prop_cycle": cycler(color=DARK_PALETTE if dark else PALETTE),
        "figure.facecolor": paper,
        "axes.facecolor": "none",
        "grid.color": faint,
        "grid.linewidth": 0.5,
        "font.family": list(installed()),
        "font.size": LETTERS + 1,
        "axes.titlesize": LETTERS + 1,
        "axes.labelsize": LETTERS + 0.5,
        "xtick.labelsize": LETTERS + 0.5,
        "ytick.labelsize": LETTERS,
        "legend.fontsize": LETTERS + 0.5,
        "legend.frameon": False,
        "axes.linewidth": 0.6,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "lines.linewidth": 1.3,
        "pdf.fonttype": 42,
        "svg.hashsalt": "backsight",
    }
    with matplotlib.rc_context(settings):
        yield


def ink() -> str:
    """The colour of letters in the style in force."""
    from matplotlib import rcParams

    return rcParams["text.color"]


def nth_colour(index: int) -> str:
    """The colour of the line with this index in the style in force; after the last comes the first again."""
    from matplotlib import rcParams

    colours = rcParams["axes.prop_cycle"].by_key()["color"]
    return colours[index % len(colours)]


def wrapped(text: str, width: float) -> str:
    """Lines of at most ``width`` inches, broken between words only."""
    letters = max(4, int(width / LETTER_WIDTH))
    return textwrap.fill(text, letters, break_long_words=False, break_on_hyphens=False)


def to_png(figure: Figure, dpi: int = RESOLUTION) -> bytes:
    """The figure as a PNG file; the same figure gives the same bytes."""
    return _saved(figure, format="png", dpi=dpi, metadata={"Software": None})


def to_svg(figure: Figure) -> bytes:
    """The figure as an SVG file without a background; letters are outlines, so it looks the same everywhere."""
    return _saved(figure, format="svg", transparent=True, metadata={"Date": None})


def to_pdf(figures: Sequence[Figure]) -> bytes:
    """Figures as one PDF file, each on a page of its size, with the very pixels of their pictures."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.image import AxesImage

    stream = BytesIO()
    with (
        style(),
        rc_context({"image.composite_image": False}),
        PdfPages(stream, metadata={"CreationDate": None}) as file,
    ):
        for figure in figures:
            for picture in figure.findobj(AxesImage):
                picture.set_interpolation("none")
            file.savefig(figure)
    return stream.getvalue()


def _saved(figure: Figure, **options: Any) -> bytes:
    stream = BytesIO()
    with style():
        figure.savefig(stream, **options)
    return stream.getvalue()
