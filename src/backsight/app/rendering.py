"""What the views are made of: templates, images that a page embeds, rows of reconstructions with their errors."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from io import BytesIO
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

from backsight.app.model_view import Answer, ForwardPass, ModelView
from backsight.app.state import MEAN, SPREAD, State, to_query
from backsight.core import Detections
from backsight.data import read_image
from backsight.figures import colour_map, difference, draw_detections, grid, image_png, to_array, to_png
from backsight.report.views import data_uri

FORMAT = "backsight.view/1"
"""Of the JSON; changes when a reader of the old schema would misread the new one."""

SMALL = 200
"""Pictures with a side of fewer pixels are shown as squares and embedded as PNG; those twice as large as WebP."""

LARGEST_DIFFERENCE = 0.3
"""The root mean square over the colours that has the brightest colour on every map of differences."""


@lru_cache
def templates() -> Environment:
    """Jinja with the templates of the page; all text is escaped."""
    loader = PackageLoader("backsight", "app/templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def part(name: str, *values: Any, **options: Any) -> str:
    """A part of the page: the macro ``name`` of ``controls.html``."""
    return str(getattr(templates().get_template("controls.html").module, name)(*values, **options))


# ---- images


@dataclass(frozen=True)
class EmbeddedImage:
    """An image that is its own address; its ``size`` (H, W) keeps the page from jumping when it comes."""

    uri: str
    size: tuple[int, int]

    @property
    def is_small(self) -> bool:
        """Whether its pixels are to be seen as squares."""
        return min(self.size) < SMALL

    @property
    def pixels(self) -> Tensor:
        """``3 H W`` in [0, 1]."""
        return read_image(base64.b64decode(self.uri.partition(",")[2])).float() / 255


def embed(image: Tensor, lossy: bool = False) -> EmbeddedImage:
    """``3 H W`` in [0, 1] as a page carries it; ``lossy`` for images that are many and small."""
    size = (image.shape[-2], image.shape[-1])
    if min(size) < 2 * SMALL and not lossy:
        return EmbeddedImage(data_uri(image_png(image), "image/png"), size)
    return EmbeddedImage(data_uri(webp(image), "image/webp"), size)


def webp(image: Tensor, longest: int | None = None) -> bytes:
    """``3 H W`` in [0, 1] as a WebP file, no side longer than ``longest`` pixels."""
    from PIL import Image

    stream, picture = BytesIO(), Image.fromarray(to_array(image))
    if longest is not None:
        picture.thumbnail((longest, longest))
    picture.save(stream, format="WEBP", quality=90, method=2)
    return stream.getvalue()


def annotated(model: ModelView, forward: ForwardPass, threshold: float = 0.5) -> Tensor:
    """The image with the model's detections drawn on it, enlarged; as it is for models that detect nothing."""
    image, found = forward.without_padding(forward.image.cpu()), model.predict(forward)
    if not isinstance(found, Detections):
        return image
    on_cpu = Detections(found.boxes.cpu(), found.scores.cpu(), found.classes.cpu(), found.labels)
    return draw_detections(image, on_cpu, threshold)


@dataclass(frozen=True)
class Cell:
    """An ``image`` (``3 H W``) of a row of stages or layers, of the stage or layer ``name``: what it shows (``alt``),
    its number as ``text`` and the ``meaning`` of that, and the ``share`` (0..1) of its bar."""

    name: str
    image: Tensor
    alt: str
    text: str
    meaning: str
    share: float

    @cached_property
    def embedded(self) -> EmbeddedImage:
        """The image as a page carries it."""
        return embed(self.image)


Row = dict[str, Cell]
"""A cell for each stage or layer."""


def reconstructions(
    model: ModelView,
    forward: ForwardPass,
    shows: str = MEAN,
    names: Sequence[str] | None = None,
    reference: ForwardPass | None = None,
) -> Row:
    """Reconstructions over their mean squared errors: of the seed that is shown, or the mean over all. The bar is full
    where the error is that of the mean image.

    Args:
        model: whose.
        forward: of which pass.
        shows: ``mean``, ``spread`` or a seed.
        names: stages and layers; all stages by default.
        reference: the pass whose image the errors are from; ``forward`` by default.

    Raises:
        UserError: no such seed or layer.
    """
    row: Row = {}
    for name in names or model.stages:
        image = forward.without_padding(model.show_seeds(forward, name, shows))
        errors = model.errors(forward, name, reference)
        error = float(errors.mean() if shows in (MEAN, SPREAD) else errors[model.seeds.index(int(shows))])
        share = min(1.0, error / max(model.baseline(forward), 1e-9))
        row[name] = Cell(name, image, f"Reconstruction from {name}", f"{error:.4f}", "mean squared error", share)
    return row


def differences(one: tuple[ModelView, ForwardPass], other: tuple[ModelView, ForwardPass], shows: str = MEAN) -> Row:
    """Maps of where the reconstructions of two passes differ (those of the mean where the spread is shown), over their
    root mean squares: of the stages that both have, at the same size."""
    shows = MEAN if shows == SPREAD else shows
    rows = [reconstructions(model, forward, shows) for model, forward in (one, other)]
    pairs = {name: (cell.image, rows[1][name].image) for name, cell in rows[0].items() if name in rows[1]}
    return {name: difference_cell(name, *pair) for name, pair in pairs.items() if pair[0].shape == pair[1].shape}


def difference_cell(name: str, one: Tensor, other: Tensor) -> Cell:
    """A map of where two images ``3 H W`` differ, on one scale for all."""
    values = difference(one, other)
    strength = float(values.square().mean().sqrt())
    alt, meaning = f"Difference, {strength:.3f} on average", "root mean square of the difference"
    share = min(1.0, strength / LARGEST_DIFFERENCE)
    return Cell(name, colour_map(values, LARGEST_DIFFERENCE), alt, f"{strength:.3f}", meaning, share)


# ---- a view


@dataclass(frozen=True)
class FigureRow:
    """A row of a figure: its ``label``, the picture on the left (None leaves its place empty), the ``caption`` of that,
    and cells."""

    label: str
    picture: Tensor | None
    caption: str
    cells: Row


@dataclass(frozen=True)
class View:
    """One view of a ``state``, and the forward ``passes`` that it shows. What its template (of the view's name) shows,
    its numbers and the rows of its figure are computed when they are asked for."""

    state: State
    passes: Sequence[tuple[ModelView, ForwardPass]]
    context: Callable[[], Mapping[str, Any]]
    numbers: Callable[[], Mapping[str, Any]]
    figure: Callable[[], Sequence[FigureRow]]

    def html(self) -> str:
        """The page's part, with its link and its downloads."""
        template = templates().get_template(f"{self.state.view}.html")
        return template.render(self.context(), view=self.state.view, query=to_query(self.state), state=self.state)

    def json(self) -> dict[str, Any]:
        """The same as a file for programs."""
        return {"format": FORMAT, "address": f"?{to_query(self.state)}", **self.numbers()}

    def png(self) -> bytes:
        """The same as a picture: the image, and a column for each stage."""
        rows = self.figure()
        stages = list(dict.fromkeys(name for row in rows for name in row.cells))
        images = [
            [row.picture, *(row.cells[name].image if name in row.cells else None for name in stages)] for row in rows
        ]
        texts = [[row.caption, *(row.cells[name].text if name in row.cells else "" for name in stages)] for row in rows]
        return to_png(grid(images, ["picture", *stages], [row.label for row in rows], texts))


def weights_in_words(model: ModelView) -> str:
    """Which weights a figure shows."""
    card = model.card()
    return "random weights" if card["random"] else str(card["weights"])


def describe(
    model: ModelView, forward: ForwardPass, threshold: float = 0.5, reference: ForwardPass | None = None
) -> dict[str, Any]:
    """One model and one image in numbers: its card, its answer, the error at every layer and seed.

    The errors are from the image of ``forward``, or from that of ``reference``.
    """
    errors = {name: model.errors(forward, name, reference).tolist() for name in model.layers}
    return {
        **model.card(),
        "unlike": model.unlike(forward),
        "answer": [_rounded(answer) for answer in model.answers(forward, threshold)],
        "mse": {name: [round(value, 6) for value in values] for name, values in errors.items()},
        "mse of the mean image": round(model.baseline(reference or forward), 6),
    }


def _rounded(answer: Answer) -> dict[str, Any]:
    box = None if answer.box is None else [round(corner, 2) for corner in answer.box]
    return {**asdict(answer), "score": round(answer.score, 4), "box": box}
