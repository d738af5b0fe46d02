"""What becomes of colours that were changed (paper, sec. 4.3, Fig. 7 and 8)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from backsight.data import Batch
from backsight.devices import exact
from backsight.engine import Trace
from backsight.evaluation import FOUND, PRECISION, score_detections, task_scores
from backsight.experiments.detection_cases import on_cpu
from backsight.experiments.drawing import lines_of, models_of, named_lines, pictures_of, title_of
from backsight.experiments.objects import category_masks, find_class
from backsight.experiments.run import Experiment
from backsight.experiments.subject import Subject
from backsight.figures import Pages, Panel, pages, panel_part, picture_parts
from backsight.metrics import average_precision_interval
from backsight.perturb import FILTERS, HUES, VISIBLE, colour_vector, recolour, region_mean
from backsight.results import INPUT, Measurement, Picture, Result
from backsight.validation import AnyNumber

SIX = tuple(name for name in FILTERS if name != "none")
"""The filters between which images and reconstructions are compared."""

_DRAWN = (("pairwise mse", "image"), ("hue retention", "object"))
NAMES = {"rotate120": "turned 120°", "rotate240": "turned 240°"}
"""How a figure calls the filters whose names are not words."""


def measure(subject: Subject, *, category: str = "", num_pictures: AnyNumber = 2) -> Result:
    """Recolour the objects of one category after the other, reconstruct, and compare; then recolour whole images.

    As in the paper, the five filters of hue change the objects of the category alone, the grey one the whole image;
    what is measured is averaged over the categories in an image.

    Labels: ``model``, ``stage`` (or ``input``), ``metric`` and ``region`` (``image`` or ``object``, the mask):

    ``pairwise mse``
        The mean over all pairs of the six filters of the squared error between the images they lead to.
    ``hue retention``
        How much of the imposed hue is found inside the mask, see :func:`hue_retention`.

    and ``model``, ``filter``, ``metric`` of the model's task on images recoloured as a whole: ``accuracy`` of a
    classifier; of a detector ``found`` (the share of an image's objects that are found), ``AP`` (of all images, with
    its interval) and ``AP by group``: the pseudo-values of its jackknife, whose differences between filters are paired.

    Args:
        category: name of the objects' class; by default every class in an image.
        num_pictures: how many images are kept as pictures.

    Raises:
        UserError: the data has no such class.
    """
    label = find_class(subject.data.classes, category) if category else None
    of_objects, pictures = _measure_objects(subject, label, num_pictures)
    on_task = [] if subject.control else [each for name in FILTERS for each in _measure_task(subject, name)]
    notes = []
    if not on_task and not subject.control:
        notes = [f"{subject.data.name} has no answers to {subject.name}'s task: only reconstructions were measured"]
    if not any(each.values.isfinite().any() for each in of_objects):
        what = f"no object of the category '{category}'" if category else "no object"
        notes.append(f"{subject.name}: none of the {subject.num_images} images has {what}, so nothing was recoloured")
    settings = {"category": category, "num_pictures": num_pictures}
    return subject.result("color_perturbation", [*of_objects, *on_task], pictures, settings, notes)


# ---- objects recoloured, and reconstructed


@dataclass(frozen=True)
class _Recoloured:
    """One image through all seven filters, for one category: what went in and what every stage gives, ``S 7 3 H W``
    (input: S = 1); ``mask`` ``H W`` is where it was recoloured, ``valid`` ``H W`` where the picture is (None:
    everywhere), ``size`` how large (rows, columns)."""

    stages: Mapping[str, Tensor]
    mask: Tensor
    valid: Tensor | None
    size: tuple[int, int]

    def through(self, stage: str, names: Sequence[str]) -> Tensor:
        """Only the filters ``names``: ``S F 3 H W``."""
        return self.stages[stage][:, [list(FILTERS).index(name) for name in names]]


@torch.no_grad()
def _recolour_all(subject: Subject, label: int | None) -> Iterator[list[_Recoloured]]:
    """For every image its recoloured versions by category, the largest first; nothing where it has none."""
    for batch in subject.batches:
        for index, target in enumerate(batch.targets):
            masks = category_masks(target, (batch.images.shape[-2], batch.images.shape[-1]), label)
            yield _recolour_one(subject, batch, index, [mask.to(batch.images.device) for mask in masks])


def _recolour_one(subject: Subject, batch: Batch, index: int, masks: Sequence[Tensor]) -> list[_Recoloured]:
    if not masks:
        return []
    image, hues = batch.images[index], [name for name in SIX if name != "grey"]
    changed = [recolour(image, name, mask) for mask in masks for name in hues]
    given = torch.stack([*changed, recolour(image, "grey")])
    valid = None if batch.valid is None else batch.valid[index]
    features = subject.model.features(
        given, subject.stages, None if valid is None else valid.expand(len(given), -1, -1)
    )
    stages = {INPUT: torch.cat([image[None], given])[None]}
    for stage in subject.stages:
        clean = subject.reconstruct(batch, stage)[:, index, None]  # through no filter: what other experiments use too
        stages[stage] = torch.cat([clean, subject.invert(features[stage], stage)], 1)
    rows, columns = batch.cut(index, image).shape[-2:]
    found = []
    for number, mask in enumerate(masks):
        own = [0, *range(1 + number * len(hues), 1 + (number + 1) * len(hues)), len(given)]  # none, the hues, grey
        versions = {stage: pictures[:, own] for stage, pictures in stages.items()}
        found.append(_Recoloured(versions, mask, valid, (rows, columns)))
    return found


def _measure_objects(subject: Subject, label: int | None, num_pictures: int) -> tuple[list[Measurement], list[Picture]]:
    values = _unanswered(subject)
    pictures: list[Picture] = []
    shown = 0
    for column, categories in enumerate(_recolour_all(subject, label)):
        if not categories:
            continue
        for stage in categories[0].stages:
            compared = [_compare(each, stage) for each in categories]
            for kind in compared[0]:
                values[stage, *kind][:, column] = torch.stack([each[kind] for each in compared]).nanmean(0).cpu()
        if shown < num_pictures:
            pictures += _pictures(categories[0], shown)
            shown += 1
    measurements = [
        Measurement({"stage": stage, "metric": metric, "region": region}, table)
        for (stage, metric, region), table in values.items()
    ]
    return measurements, pictures


def _unanswered(subject: Subject) -> dict[tuple[str, str, str], Tensor]:
    """A table of NaN for each (stage, metric, region)."""
    rows = {INPUT: 1, **dict.fromkeys(subject.stages, len(subject.seeds))}
    kinds = (("pairwise mse", "image"), ("pairwise mse", "object"), ("hue retention", "object"))
    return {
        (stage, *kind): torch.full((num, subject.num_images), math.nan, dtype=torch.float64)
        for stage, num in rows.items()
        for kind in kinds
    }


def _compare(image: _Recoloured, stage: str) -> dict[tuple[str, str], Tensor]:
    """(metric, region) -> ``S``."""
    apart = pairwise_error(image.through(stage, SIX))
    hues = hue_retention(image.through(INPUT, HUES)[0], image.through(stage, HUES), image.mask)
    return {
        ("pairwise mse", "image"): region_mean(apart, image.valid),
        ("pairwise mse", "object"): region_mean(apart, image.mask),
        ("hue retention", "object"): hues,
    }


def pairwise_error(images: Tensor) -> Tensor:
    """The mean over all pairs of F images of their squared difference: ``... F 3 H W`` -> ``... H W``.

    That is twice their variance (the unbiased one), so no pair is ever formed.
    """
    return 2 * exact(images).var(-4, correction=1).mean(-3)


def hue_retention(given: Tensor, found: Tensor, mask: Tensor) -> Tensor:
    """How much of the hue that filters impose on a region is found in reconstructions: 1 all, 0 none.

    For every filter of :data:`~backsight.perturb.HUES` the mean hue of the region, weighted by chroma, is taken in the
    filtered image (``h``, with mean colour ``c``) and in what is reconstructed from it (``h'``); retention is

        ``sum c cos(h' - h) / sum c``.

    The filters set two triples of hues, each a third of the circle apart and of one chroma, so whatever an inverse
    paints without looking, whichever hue that is, sums to 0. How saturated the reconstruction is does not count, except
    that a colour too faint to be seen (:data:`~backsight.perturb.VISIBLE`) counts in proportion. Hues that
    are painted at random give 0 on average, the opposite ones -1.

    Args:
        given: the filtered images, ``F 3 H W``.
        found: their reconstructions, ``... F 3 H W``.
        mask: the region, ``H W`` bool.

    Returns:
        ``...``; NaN where the region has no colour that could be changed.
    """
    known, painted = colour_vector(given, mask), colour_vector(found, mask)
    seen = painted.abs().clamp(min=1e-12)
    direction = painted / torch.maximum(seen, known.abs().clamp(max=VISIBLE))
    kept = (direction * known.conj()).real.sum(-1) / known.abs().sum()
    return torch.where(known.abs().mean() >= VISIBLE, kept, math.nan)


def _pictures(image: _Recoloured, number: int) -> Iterator[Picture]:
    for stage, versions in image.stages.items():
        for name, picture in zip(FILTERS, versions[0], strict=True):  # as the first seed paints it
            shown = picture[:, : image.size[0], : image.size[1]].cpu()
            yield Picture({"stage": stage, "filter": name, "image": number}, shown)


# ---- whole images recoloured, and the model's task


@torch.no_grad()
def _measure_task(subject: Subject, name: str) -> list[Measurement]:
    """The model's task on all images through the filter ``name``; nothing where the data has no answers."""

    def trace(batch: Batch) -> Trace:
        if name == "none":
            return subject.trace(batch)
        return subject.model.run(recolour(batch.images, name), valid=batch.valid)

    labels = {"filter": name}
    if subject.model.spec.task != "detect":
        scores = task_scores(subject.model, subject.batches, run=trace)
        return [Measurement({**labels, "metric": each}, found) for each, found in scores.items()]
    targets = [target for batch in subject.batches for target in batch.targets]
    found = [answer for batch in subject.batches for answer in on_cpu(subject.model.predict(trace(batch)))]
    scores = score_detections(found, targets)
    if not scores:
        return []
    interval, groups = average_precision_interval(found, targets)
    return [
        Measurement({**labels, "metric": FOUND}, scores[FOUND]),
        Measurement({**labels, "metric": PRECISION}, scores[PRECISION], interval),
        Measurement({**labels, "metric": f"{PRECISION} by group"}, groups[None]),
    ]


# ---- the figure


def draw(result: Result) -> Pages:
    """Pairwise error and retention over stages, the task over filters; under them the first image of each model."""
    apart, kept = (lines_of(result, metric=metric, region=region) for metric, region in _DRAWN)
    panels = [
        Panel("How far six recolourings are apart", apart, label="pairwise MSE"),
        Panel("Hue found again in the object", kept, {"": 0.0}, label="hue retention", limits=(-0.15, 1.08)),
    ]
    for metric in ("accuracy", "AP"):
        lines = {title_of(result, model): {"model": model} for model in models_of(result)}
        if lines := named_lines(result, lines, "filter", NAMES, metric=metric):
            panels.append(Panel("The task on recoloured images", lines, label=metric, limits=(0, 1)))
    blocks = [pictures_of(result, str(model), "filter", image=0) for model in models_of(result)]
    blocks = [replace(each, names=[NAMES.get(name, name) for name in each.names]) for each in blocks]
    return pages([panel_part(panels), *picture_parts(blocks)])


COLOR_PERTURBATION = Experiment(
    "color_perturbation",
    "Which stages keep the colours that were changed?",
    measure,
    draw,
    needs=("masks",),
    reading=(
        "What becomes of a hue that was painted onto objects: 1 where the reconstruction has it, 0 where it has the "
        "hue from before, or none. A retained hue is in the features; a lost one may be there without being painted."
    ),
)
