"""How objects show themselves in a notebook: tables with pictures, in HTML that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backsight.chain import ChainEnsemble, InverseChain
from backsight.core import IMAGE, UserError, entry_title
from backsight.data import Batch, load_images
from backsight.engine import RANDOM, StagedModel, Trace
from backsight.error_table import error_table
from backsight.experiments import EXPERIMENTS
from backsight.experiments.claims import Judgement
from backsight.experiments.reconstruct import answers_of, caption
from backsight.experiments.subject import as_ensemble, trained_on
from backsight.figures import image_png, to_png
from backsight.metrics import mse, on_valid
from backsight.report.render import environment
from backsight.report.views import data_uri, format_bounds, format_effect, format_number
from backsight.results import Measurement, Result
from backsight.training_range import Distances, TrainingRange, stages_of, unlike_in_words
from backsight.weak_inverses import weak_in_words, weak_inverses

MOST_ROWS = 30
"""Of a table; of more the number is given."""


@dataclass(frozen=True)
class Html:
    """What a notebook shows as HTML, and a terminal as ``text``."""

    html: str
    text: str = ""

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Cell:
    """A picture, as a data URI, over what is said of it."""

    uri: str
    text: str


@dataclass(frozen=True)
class Table:
    """What the template ``table.html`` shows: a heading, facts, warnings, and rows of texts or pictures."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    facts: Sequence[str] = ()
    warnings: Sequence[str] = ()
    figures: Sequence[str] = field(default=())

    def html(self) -> str:
        """At most :data:`MOST_ROWS` rows of it."""
        left = len(self.rows) - MOST_ROWS
        more = f"and {left} more" if left > 0 else ""
        return environment().get_template("table.html").render(table=self, rows=self.rows[:MOST_ROWS], more=more)


# ---- models, passes, chains


def model_html(model: StagedModel) -> str:
    """The stages of a model: their layers, the shape of their features, where these are in the library's model."""
    rows = []
    for stage in model.spec.stages:
        layout, site = model.layout(stage.name), model.sites(stage.name)[0]
        grid = " + ".join(f"{height} × {width}" for height, width in layout.grids)
        shape = f"{layout.tokens} × {layout.width}"
        rows.append([stage.name, str(len(stage.layers) or ""), shape, grid, f"{site.path or 'the model'} {site.side}"])
    height, width = model.pixels.size
    count = sum(each.numel() for each in model.module.parameters())
    facts = [f"{height} × {width} pixels", f"{count / 1e6:.1f} M parameters", f"weights: {model.weights}"]
    columns = ["stage", "layers", "tokens × width", "grid", "where"]
    return Table(model.name, columns, rows, [*facts, model.spec.task], _random(model.weights)).html()


def trace_html(trace: Trace) -> str:
    """What a pass holds: the shape of the features at every stage and layer."""
    shapes = {IMAGE: trace.images, **trace.features}
    rows = [[name, " × ".join(map(str, each.shape))] for name, each in shapes.items()]
    facts = ["left early, without a prediction"] if trace.output is None else []
    facts += ["chain.show(trace) reconstructs it"]
    return Table("A forward pass", ["features", "B N D (images: B 3 H W)"], rows, facts).html()


def chain_html(chain: InverseChain | ChainEnsemble) -> str:
    """The inverses of a chain, or of several seeds: what each reads, what it returns, its parameters."""
    ensemble = as_ensemble(chain)
    rows = []
    for entry, inverse in ensemble.chains[0].items():
        plan, count = ensemble.chains[0].plans[entry], sum(each.numel() for each in inverse.parameters())
        shapes = [f"{each.tokens} × {each.width}" for each in (inverse.source, inverse.target)]
        rows.append([entry_title(entry), plan.inverse, *shapes, f"{count:,}"])
    data = trained_on(ensemble)
    facts = [f"seeds: {', '.join(str(each.seed) for each in ensemble.chains)}"]
    facts += [f"trained on {data}"] if data else []
    warnings = [*_random(ensemble.model["weights"]), *weak_in_words(weak_inverses(ensemble))]
    columns = ["inverse of", "kind", "reads", "returns", "parameters"]
    return Table(f"Inverses of {ensemble.model['name']}", columns, rows, facts, warnings).html()


@torch.no_grad()
def show(chain: InverseChain | ChainEnsemble, trace: Trace, at: Sequence[str] | None = None) -> Html:
    """What ``chain`` makes of every image in ``trace``, for a notebook: thumbnails (the mean over seeds), their errors,
    and a warning where the images are unlike its training data or an inverse says little.

    Args:
        chain: of one seed or several.
        trace: a forward pass.
        at: stages, layers or entries (``prediction@onehot``); every entry of the chain by default.

    Raises:
        UserError: nothing of the chain reads one of ``at``.
    """
    ensemble = as_ensemble(chain)
    batch = Batch(trace.images, tuple(f"image {index}" for index in range(len(trace.images))), (), trace.valid)
    names = [at] if isinstance(at, str) else list(at or ensemble.entries)
    columns: list[tuple[str, Tensor, Tensor | None]] = [("input", batch.images, None)]
    for name in names:
        seeds = ensemble.reconstruct(trace, name).float().clamp(0, 1)
        errors = torch.stack([on_valid(mse, batch.valid)(each, batch.images) for each in seeds]).mean(0)
        columns.append((entry_title(name), seeds.mean(0), errors))
    distances = _distances(ensemble, trace)
    rows = []
    for index in range(len(batch.ids)):
        far = 0.0 if distances is None else float(distances.farthest[index])
        note = f"{batch.ids[index]}{f', unlike the training data ({far:.2f})' if far > 1 else ''}"
        cells = [Cell(_uri(batch.cut(index, images[index])), "" if errors is None else f"MSE {errors[index]:.4f}")
                 for _, images, errors in columns]  # fmt: skip
        rows.append([Cell(cells[0].uri, note), *cells[1:]])
    unlike = "" if distances is None else unlike_in_words(batch.ids, distances, trained_on(ensemble))
    warnings = [*_random(ensemble.model["weights"]), *filter(None, [unlike])]
    warnings += weak_in_words({entry: why for entry, why in weak_inverses(ensemble).items() if entry in names})
    table = Table(f"Through the eyes of {ensemble.model['name']}", [name for name, _, _ in columns], rows, (), warnings)
    return Html(table.html(), f"{len(rows)} images from {', '.join(names)}: shown in a notebook")


def explore(model: StagedModel, chain: InverseChain | ChainEnsemble, image: Tensor | str | Path) -> Any:
    """A slider over every stage and layer that ``chain`` reads, over the reconstruction from there (for a notebook).

    Args:
        model: the forward model.
        chain: its inverses, of one seed or several.
        image: ``3 H W`` or ``1 3 H W`` in [0, 1] at the model's size, or a picture file.

    Returns:
        A widget of ipywidgets.

    Raises:
        UserError: ipywidgets is missing, or the chain is of another model.
    """
    try:
        widgets: Any = import_module("ipywidgets")
    except ImportError as error:
        raise UserError("explore needs ipywidgets, which is missing: pip install ipywidgets") from error
    ensemble = as_ensemble(chain)
    ensemble.check(model)
    pixels = image if isinstance(image, Tensor) else load_images([image], model.pixels).images
    trace = model.run(pixels.reshape(1, *pixels.shape[-3:]).to(model.device))
    names = [
        name
        for name in trace
        if (stage := model.stage_of(name).name) in ensemble.entries and model.layout(name) == model.layout(stage)
    ]
    slider = widgets.SelectionSlider(options=names, value=names[-1], description="layer", continuous_update=False)
    shown = widgets.HTML(show(ensemble, trace, [names[-1]]).html)

    def follow(change: Any) -> None:
        shown.value = show(ensemble, trace, [change["new"]]).html

    slider.observe(follow, names="value")
    answer = widgets.HTML(_answer(model, trace))
    return widgets.VBox([answer, slider, shown])


def _answer(model: StagedModel, trace: Trace) -> str:
    (answer,) = answers_of(model, trace)
    facts = [f"The model {caption(answer)}"] if answer is not None else []
    return Table(model.name, [], [], facts, _random(model.weights)).html()


def _distances(ensemble: ChainEnsemble, trace: Trace) -> Distances | None:
    known = TrainingRange.beside(ensemble)
    if known is None or not all(stage in trace for stage in stages_of(ensemble)):
        return None
    return known.distances_of(ensemble, trace)


def _random(weights: str) -> list[str]:
    return ["Random weights: nothing here is what a trained model knows."] if weights == RANDOM else []


def _uri(image: Tensor) -> str:
    return data_uri(image_png(image.cpu()), "image/png")


# ---- results and claims


def result_html(result: Result) -> str:
    """A result: its measurements with their intervals, its notes, its figure."""
    if result.experiment == "evaluation":
        return _errors_html(result)
    labels = list(dict.fromkeys(name for each in result.measurements for name in each.labels))
    rows = [[*(str(each.labels.get(name, "")) for name in labels), *_numbers(each)] for each in result.measurements]
    experiment = EXPERIMENTS.get(result.experiment)
    figures = [] if experiment is None else [data_uri(to_png(page), "image/png") for page in experiment.draw(result)]
    heading = result.experiment if experiment is None else experiment.question
    facts = [*_cards(result), *([experiment.reading] if experiment is not None and experiment.reading else [])]
    columns = [*labels, "mean", "95 % interval", "images", "seeds"]
    return Table(heading, columns, rows, facts, result.notes, figures).html()


def _errors_html(result: Result) -> str:
    columns, rows = error_table(result)
    cells = [
        [
            entry_title(row.stage),
            "" if row.share is None else f"{row.share:.2f}",
            *("" if each is None else format_number(each.mean()) for each in row.cells),
        ]
        for row in rows
    ]
    names = ["from", "of the mean image's", *(column.name for column in columns)]
    return Table("Errors by stage", names, cells, _cards(result), result.notes).html()


def _cards(result: Result) -> list[str]:
    return [
        f"{card['model']} on {card.get('data', 'its images')}, {card.get('num_images', '?')} images"
        for card in result.subjects
        if not card.get("control")
    ]


def _numbers(measurement: Measurement) -> list[str]:
    mean, low, high = measurement.interval()
    seeds, images = measurement.known().shape
    bounds = "" if low != low else f"{format_number(low)} to {format_number(high)}"
    return [format_number(mean), bounds, str(images), str(seeds)]


def claims_html(claims: Sequence[Judgement]) -> str:
    """Claims with their verdicts, and the effect that each hangs on."""
    rows = []
    for claim in claims:
        part = claim.effect
        effect = "" if part is None else f"{format_effect(part.mean)} {format_bounds(part.low, part.high)}"
        rows.append([claim.statement, claim.verdict, effect, claim.unit, claim.condition or claim.reason])
    return Table("Claims", ["claim", "verdict", "effect", "unit", "condition"], rows).html()
