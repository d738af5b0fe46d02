"""What the views are made of: templates, images that a page embeds, reconstructions with their errors."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from io import BytesIO
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

from backsight.app.model_view import Answer, ForwardPass, ModelView
from backsight.app.state import MEAN, SPREAD, State, to_query
from backsight.core import Detections
from backsight.data import read_image
from backsight.figures import draw_detections, image_png, to_array
from backsight.figures.maps import colour_map, difference
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
class Reconstruction:
    """The ``image`` (``3 H W``) of a stage or layer and its mean squared ``error``: of the seed that is shown, or the
    mean over all. ``share`` is the error in units of that of the mean image, 1 at most."""

    name: str
    image: Tensor
    error: float
    share: float
    embedded: EmbeddedImage = field(repr=False)


def reconstruction(
    model: ModelView, forward: ForwardPass, name: str, shows: str = MEAN, reference: ForwardPass | None = None
) -> Reconstruction:
    """What a view shows of a stage or layer: ``shows`` is ``mean``, ``spread`` or a seed.

    The error is from the image of ``forward``, or from that of ``reference``.

    Raises:
        UserError: no such seed or layer.
    """
    image = forward.without_padding(model.show_seeds(forward, name, shows))
    errors = model.errors(forward, name, reference)
    error = float(errors.mean() if shows in (MEAN, SPREAD) else errors[model.seeds.index(int(shows))])
    share = min(1.0, error / max(model.baseline(forward), 1e-9))
    return Reconstruction(name, image, error, share, embed(image))


@dataclass(frozen=True)
class DifferenceMap:
    """Where two images differ, ``H W``: its root mean square, and the map in colours."""

    values: Tensor

    @property
    def strength(self) -> float:
        """The root mean square."""
        return float(self.values.square().mean().sqrt())

    @property
    def share(self) -> float:
        """The same in units of the brightest colour."""
        return self.strength / LARGEST_DIFFERENCE

    @property
    def image(self) -> Tensor:
        """``3 H W``."""
        return colour_map(self.values, LARGEST_DIFFERENCE)

    @property
    def embedded(self) -> EmbeddedImage:
        """The map as a page carries it."""
        return embed(self.image)


def difference_map(one: Tensor, other: Tensor) -> DifferenceMap | None:
    """Where two images ``3 H W`` differ; None if their sizes do."""
    return DifferenceMap(difference(one, other)) if one.shape == other.shape else None


def unless_spread(shows: str) -> str:
    """What differences are taken of: of the mean where the spread is shown."""
    return MEAN if shows == SPREAD else shows


# ---- a view


@dataclass(frozen=True)
class View:
    """One view of a state: what its template (of the view's name) shows, what gives its numbers, what draws it."""

    state: State
    context: Mapping[str, Any]
    numbers: Callable[[], Mapping[str, Any]]
    draw: Callable[[], bytes]
    """As a PNG file."""

    def html(self) -> str:
        """The page's part, with its link and its downloads."""
        template = templates().get_template(f"{self.state.view}.html")
        return template.render(self.context, view=self.state.view, query=to_query(self.state), state=self.state)

    def json(self) -> dict[str, Any]:
        """The same as a file for programs."""
        return {"format": FORMAT, "address": f"?{to_query(self.state)}", **self.numbers()}


def describe(
    model: ModelView, forward: ForwardPass, threshold: float = 0.5, reference: ForwardPass | None = None
) -> dict[str, Any]:
    """One model and one image in numbers: its card, its answer, the error at every layer and seed.

    The errors are from the image of ``forward``, or from that of ``reference``.
    """
    errors = {name: model.errors(forward, name, reference).tolist() for name in model.layers}
    return {
        **model.card(),
        "answer": [_rounded(answer) for answer in model.answers(forward, threshold)],
        "mse": {name: [round(value, 6) for value in values] for name, values in errors.items()},
        "mse of the mean image": round(model.baseline(reference or forward), 6),
    }


def _rounded(answer: Answer) -> dict[str, Any]:
    box = None if answer.box is None else [round(corner, 2) for corner in answer.box]
    return {**asdict(answer), "score": round(answer.score, 4), "box": box}
