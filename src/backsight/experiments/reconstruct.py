"""What is seen from every stage (paper, sec. 3.3 and Fig. 3, 11 to 13)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from backsight.core import Classes, Detections, UserError
from backsight.data import Batch
from backsight.engine import StagedModel, Trace
from backsight.experiments.drawing import models_of, title_of
from backsight.experiments.run import Experiment
from backsight.experiments.subject import Subject, by_seed
from backsight.figures import PALETTE, Pages, Part, draw_frames, pages, picture_part
from backsight.figures.page import Caption
from backsight.metrics import mse, on_valid
from backsight.results import INPUT, Measurement, Picture, Result
from backsight.training_range import UNLIKE
from backsight.validation import Number, Share

PLAIN, DETECTED = "plain", "detected"
"""The rows of the input: as it is, and with the boxes of the model's detections drawn on it."""

MOST_NAMED = 4
"""Detections that are named under an input; of more the number is given."""

MEAN, SPREAD, SEEDS = "mean", "spread", "seeds"
"""The rows of a reconstruction: the mean over seeds, the spread between them, every seed by itself."""

DIFFER = "draws differ"
"""The row of maps of the standard deviation between draws: black is agreement."""

DETECTS = "detects "
"""How the caption of a detector's input begins."""

WARNING = "#b3261e"
"""The colour of what warns of a picture."""

WHITE = 0.25
"""The standard deviation between seeds, of values in [0, 1], that is white in a map of the spread."""


def measure(
    subject: Subject,
    *,
    num_pictures: Number = 6,
    rows: Sequence[str] = (MEAN, SPREAD),
    threshold: Share = 0.5,
) -> Result:
    """Images through every inverse chain, from every entry: ``prediction@onehot`` is one where the chain has it.

    Labels of the pictures: ``model``, ``image`` (its id), ``stage`` (``input`` or an entry of the chain), ``row``:
    ``mean`` over the seeds, ``spread`` between them (the standard deviation over seeds, averaged over
    colours: black is agreement, white is 0.25), ``seed S``, and, of inputs, ``plain`` and ``detected``. Labels of the
    measurements: ``model``, ``stage``, ``metric`` (``mse``), over all images; and ``of`` (``seeds``, or
    ``their mean``, which has one row).

    Args:
        subject: a model with its chains.
        num_pictures: how many images are shown, the first ones.
        rows: of an image in the figure: ``mean``, ``spread``, ``seeds`` (a row for each).
        threshold: the least score of a detection that is drawn, in [0, 1].

    Raises:
        UserError: a kind of row that there is not.
    """
    rows = [rows] if isinstance(rows, str) else list(rows)
    if not rows or not set(rows) <= {MEAN, SPREAD, SEEDS}:
        raise UserError(f"rows={rows}: the rows of an image are {MEAN}, {SPREAD}, {SEEDS}")
    notes = []
    if SPREAD in rows and len(subject.seeds) == 1:
        notes = [f"{subject.name} has one seed: no spread is shown"]
    pictures = _pictures(subject, num_pictures, rows, threshold)
    settings = {"num_pictures": num_pictures, "rows": rows, "threshold": threshold}
    return subject.result("reconstruct", _errors(subject), pictures, settings, notes)


def _errors(subject: Subject) -> Iterator[Measurement]:
    def errors(batch: Batch) -> dict[tuple[str, str], Tensor]:
        found = {entry: subject.reconstruct(batch, entry) for entry in subject.ensemble.entries}
        error = on_valid(mse, batch.valid)
        own = {("seeds", entry): by_seed(error, images, batch.images) for entry, images in found.items()}
        return own | {("their mean", entry): error(images.mean(0), batch.images) for entry, images in found.items()}

    for (of, entry), values in subject.gather(errors).items():
        yield Measurement({"stage": entry, "metric": "mse", "of": of}, values)


def _pictures(subject: Subject, count: int, rows: Sequence[str], threshold: float) -> Iterator[Picture]:
    for batch in subject.batches:
        shown, count = batch.part(0, min(max(0, count), len(batch.ids))), count - len(batch.ids)
        if shown.ids:
            images = {entry: subject.reconstruct(batch, entry) for entry in subject.ensemble.entries}
            found = subject.distances(batch)
            distances = None if found is None else found.farthest.tolist()
            trace = subject.trace(batch)
            yield from show(subject.model, shown, trace, images, subject.seeds, rows, threshold, distances)


def show(
    model: StagedModel,
    batch: Batch,
    trace: Trace,
    reconstructions: Mapping[str, Tensor],
    seeds: Sequence[int],
    rows: Sequence[str],
    threshold: float = 0.5,
    distances: Sequence[float] | None = None,
) -> Iterator[Picture]:
    """The pictures of a batch, each cut to its valid part: the input, and its reconstructions.

    Args:
        model: the forward model.
        batch: the images; there may be more in ``trace`` and ``reconstructions``, after them.
        trace: their forward pass.
        reconstructions: ``S B 3 H W`` in [0, 1] by entry.
        seeds: of the chains.
        rows: of each reconstruction: ``mean``, ``spread``, ``seeds``.
        threshold: the least score of a detection that is drawn, in [0, 1].
        distances: of each image from the centre of the training data
            (:attr:`~backsight.training_range.Distances.farthest`); None where its range is not known.

    Yields:
        Pictures with the labels of :func:`measure`, those of the input also with ``caption``, the model's answer, and
        ``distance``. The boxes of its detections have the colours of :data:`~backsight.figures.PALETTE`, in the order
        of the caption.
    """
    answers = answers_of(model, trace)
    for index, name in enumerate(batch.ids):
        image, answer = batch.cut(index, batch.images[index]).cpu(), answers[index]
        labels = {"model": model.name, "image": name}
        own = {**labels, "stage": INPUT, "caption": caption(answer, threshold)}
        own |= {} if distances is None else {"distance": round(distances[index], 2)}
        yield Picture({**own, "row": PLAIN}, image)
        if isinstance(answer, Detections):
            boxes = answer.above(threshold).boxes[_surest_first(answer, threshold)]
            yield Picture({**own, "row": DETECTED}, draw_frames(image, [(b, _colour(i)) for i, b in enumerate(boxes)]))
        for entry, images in reconstructions.items():
            for row, picture in _versions(batch.cut(index, images[:, index]).cpu(), seeds, rows):
                yield Picture({**labels, "stage": entry, "row": row}, picture)


def answers_of(model: StagedModel, trace: Trace) -> Sequence[Classes | Detections | None]:
    """The model's answer for each image."""
    if model.read is None or model.spec.task == "features":
        return [None] * len(trace.images)
    answer = model.predict(trace)
    return [Classes(logits, answer.labels) for logits in answer.logits] if isinstance(answer, Classes) else answer


def caption(answer: Classes | Detections | None, threshold: float = 0.5) -> str:
    """The model's answer for one image in words."""

    def name(label: int, labels: Mapping[int, str]) -> str:
        return labels.get(label, f"class {label}")

    if isinstance(answer, Detections):
        sure = answer.above(threshold)
        names = [f"{name(int(sure.classes[index]), sure.labels)} {sure.scores[index]:.0%}"
                 for index in _surest_first(answer, threshold)]  # fmt: skip
        return f"{DETECTS}{', '.join(names) or 'nothing'}"
    if isinstance(answer, Classes):
        probability, top = answer.logits.softmax(-1).max(-1)
        return f"says {name(int(top), answer.labels)} ({probability:.0%})"
    return ""


def _surest_first(answer: Detections, threshold: float) -> list[int]:
    return answer.above(threshold).scores.argsort(descending=True, stable=True).tolist()


def _colour(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def _versions(pictures: Tensor, seeds: Sequence[int], rows: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """The rows of one image at one stage: ``S 3 H W`` -> (its name, ``3 H W``)."""
    for row in rows:
        if row == MEAN:
            yield MEAN, pictures.mean(0)
        elif row == SPREAD and len(seeds) > 1:
            yield SPREAD, spread_map(pictures)
        elif row == SEEDS:
            yield from ((f"seed {seed}", picture) for seed, picture in zip(seeds, pictures, strict=True))


def spread_map(pictures: Tensor) -> Tensor:
    """Where the seeds disagree: ``S 3 H W`` in [0, 1], at least two seeds -> ``3 H W`` of greys in [0, 1].

    The standard deviation over seeds, averaged over colours, in units of :data:`WHITE`.
    """
    spread = pictures.std(0).mean(0) / WHITE
    return spread.clamp(0, 1).expand(3, -1, -1)


# ---- the figure


def draw(result: Result) -> Pages:
    """Every image beside its reconstructions, with the error of each.

    Models that were shown the same images share the rows and the column of the input; others stand below each other.
    """
    models = models_of(result)
    shown = {tuple((p.labels["image"], tuple(p.image.shape)) for p in _inputs(result, model)) for model in models}
    groups = [models] if len(shown) == 1 else [[model] for model in models]
    return pages([_part(result, group) for group in groups])


def _inputs(result: Result, model: str) -> list[Picture]:
    return result.shown(model=model, stage=INPUT, row=PLAIN)


def _part(result: Result, models: Sequence[str]) -> Part:
    columns = [column for model in models for column in _columns(result, models[0], model)]
    kinds = dict.fromkeys(str(p.labels["row"]) for p in result.pictures if p.labels["stage"] != INPUT)
    rows, names, captions = [], [], []
    for place, image in enumerate(_inputs(result, models[0])):
        for row in kinds:
            first = row == next(iter(kinds))
            rows.append([_picture(result, column, str(image.labels["image"]), row, first) for column in columns])
            captions.append([_caption(result, column, place, row, first) for column in columns])
            names.append(str(image.labels["image"]) if first else "between seeds" if row == SPREAD else row)
    if not rows:
        raise UserError("this result has no pictures to draw: measure it with num_pictures of at least 1")
    several = len(models) > 1
    titles = [
        stage if not several or stage == INPUT else f"{title_of(result, model)} {stage}" for model, stage in columns
    ]
    heading = "" if several else title_of(result, models[0])
    return picture_part(rows, titles, names, captions, heading, together=len(kinds))


def _columns(result: Result, leading: str, model: str) -> list[tuple[str, str]]:
    """(model, stage): a later model has an input of its own only where it was shown other pixels."""
    stages = dict.fromkeys(str(p.labels["stage"]) for p in result.shown(model=model))
    pairs = zip(_inputs(result, leading), _inputs(result, model), strict=True)
    if model != leading and all(torch.equal(one.image, other.image) for one, other in pairs):
        stages.pop(INPUT, None)
    return [(model, stage) for stage in stages]


def _picture(result: Result, column: tuple[str, str], image: str, row: str, first: bool) -> Tensor | None:
    """What stands in one place; the input stands in the first row of its image."""
    model, stage = column
    wanted = [row] if stage != INPUT else [DETECTED, PLAIN] if first else []
    found = [p for name in wanted for p in result.shown(model=model, image=image, stage=stage, row=name)]
    return found[0].image if found else None


def _caption(result: Result, column: tuple[str, str], place: int, row: str, first: bool) -> Caption:
    """The model's answer to an input; the error of a reconstruction: those shown are the first that were measured."""
    model, stage = column
    if stage == INPUT:
        return _input_caption(_inputs(result, model)[place]) if first else ""
    if row == SPREAD:
        return ""
    of = "their mean" if row == MEAN else "seeds"
    errors = result.one(model=model, stage=stage, metric="mse", of=of).values[:, place]
    seeds = next(subject["seeds"] for subject in result.subjects if subject["model"] == model)
    return f"MSE {errors[0 if row == MEAN else [f'seed {seed}' for seed in seeds].index(row)]:.4f}"


def _input_caption(picture: Picture) -> Caption:
    """The model's answer, and whether the image is unlike the training data."""
    answer, warning = _answer(str(picture.labels.get("caption", ""))), unlike_lines(picture)
    if not warning:
        return answer
    lines = [(answer, "")] if isinstance(answer, str) else list(answer)
    return [*(line for line in lines if line[0]), *warning]


def unlike_lines(picture: Picture) -> list[tuple[str, str]]:
    """What stands under the input of an image that is unlike the training data, with its colour."""
    return [(line, WARNING) for line in UNLIKE] if float(picture.labels.get("distance", 0)) > 1 else []


def _answer(caption: str) -> Caption:
    """Detections one below the other, each in the colour of its box."""
    if not caption.startswith(DETECTS):
        return caption
    names = caption.removeprefix(DETECTS).split(", ")
    more = [(f"and {len(names) - MOST_NAMED} more", "")] if len(names) > MOST_NAMED else []
    return [*((name, _colour(index)) for index, name in enumerate(names[:MOST_NAMED])), *more]


RECONSTRUCT = Experiment(
    "reconstruct",
    "What is seen from every stage?",
    measure,
    draw,
    controlled=False,
    reading=(
        "Every image beside what the inverses make of each stage. Sharp: the features leave little choice. Blurred, "
        "grey or typical: they leave one, or the inverse cannot read them."
    ),
)
