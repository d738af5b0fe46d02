"""What do the features leave open? Draws of inverses that sample, against each other, the mean and the truth.

A mean is blurred where the model does not know, and where the inverse cannot paint. A draw is one input that may have
led to the features. Where draws differ, the features leave a choice; whether they differ as much as they ought to is
measured too: the truth has to lie among them as often as a draw does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional

from backsight.core import Classes, Detections, UserError
from backsight.data import Batch, Target
from backsight.devices import exact
from backsight.engine import Trace
from backsight.experiments.detection_cases import on_cpu
from backsight.experiments.drawing import models_of, named_lines, pictures_of, title_of
from backsight.experiments.objects import object_masks
from backsight.experiments.reconstruct import DIFFER, spread_map
from backsight.experiments.run import Experiment
from backsight.experiments.subject import Subject
from backsight.figures import ErrorPoint, Pages, Panel, pages, panel_part, picture_parts
from backsight.metrics import match_objects, mse
from backsight.perturb import LUMA, colour_vector
from backsight.results import INPUT, Measurement, Picture, Result
from backsight.validation import AnyNumber, Range

DRAW, MEAN, AVERAGE, TRUTH = "draw", "mean inverse", "mean of draws", "truth"
"""What is measured: a draw, the picture of the inverses without noise, the mean of all draws; and the image itself."""

THRESHOLD = 0.5
"""The least score of a detection that counts."""

FINE = 0.125
"""Cycles a pixel from which on detail is fine: half of what an image can have at most is 0.25."""

NOMINAL = 0.9
"""The share of truths that intervals are to hold."""

COVERED = ("hue", "brightness", "texture")
"""What coverage is measured of: mean hue and brightness of every object, the contrast of what is no object."""

SHOWN = 3
"""Draws of each image in the figure."""

NEAR = 0.1
"""The overlap from which on a detection in a draw is that of an object, somewhere else."""

ALONE = 8
"""Draws, at most, of a stage whose inverse samples alone."""

_AT_ONCE = 64

Answer = Detections | int
"""The detections in an image that count, or its likeliest class."""

Draws = Annotated[int, Range(2)]
"""How many draws, two at least: with one there is no spread."""

Values = dict[tuple[str, str], Tensor]
"""``S B`` by (metric, of)."""


def measure(subject: Subject, *, num_draws: Draws = 19, num_pictures: AnyNumber = 3, seed: int = 0) -> Result:
    """Draws from every stage, down the whole chain: how far they differ, what the model sees in them, and how often
    the truth lies among them.

    Labels: ``model``, ``stage``, ``metric`` and ``of``. Of a ``draw`` (the mean over draws), of the ``mean inverse``
    (its picture) and of the ``mean of draws``:

    ``mse``
        Against the image, RGB in [0, 1].
    ``fine detail``
        The power at frequencies of :data:`FINE` and above, in units of the image's own: 1 as sharp as the image.
    ``features again``
        The picture is given to the model once more: the cosine between its features at the stage and those of the
        image, both less the mean over images. 1 the same, 0 another image's.
    ``same answer``
        1 where the model's answer is that for the image: the same class; the same detections, no more and no fewer.

    Between draws (``of`` is ``draws``):

    ``spread``
        The standard deviation of a pixel, RGB in [0, 1], averaged over the image.
    ``object spread``, ``background spread``, ``own spread``
        The same inside the masks of objects; outside; and where the stage's own inverse samples alone.
    ``hue spread``
        Of the mean hue inside each object's mask: 0 where all draws agree, 1 where any hue is as likely.
    ``place spread``
        Of the centre of the detection that finds each object again, in units of what a place drawn at random has.

    ``hue covered``, ``brightness covered``, ``texture covered`` (``of`` is ``truth``): the share of objects (of images)
    whose truth (:data:`COVERED`) lies within the interval that draws span :data:`NOMINAL` of the time. ``object error``
    (``of`` is ``truth`` or ``draw``): :func:`object_errors`, equal where draws differ as the truth does.

    Args:
        subject: a model whose chains have inverses that sample, and images; with masks for what is said of objects.
        num_draws: of each image. With 19, an interval from the smallest to the largest holds 90 % of further draws.
        num_pictures: how many images are shown, with their first draws.
        seed: of the noise.

    Raises:
        UserError: no inverse samples.
    """
    if reason := AMBIGUITY.fits(subject):
        raise UserError(reason)
    subject = subject.drawing
    stages, centres = subject.sampling_stages, _mean_features(subject)
    found = subject.gather(
        lambda batch: {
            (stage, *key): values
            for stage in stages
            for key, values in _measure(subject, batch, stage, centres[stage], num_draws, seed).items()
        }
    )
    names = ("stage", "metric", "of")
    measurements = [Measurement(dict(zip(names, key, strict=True)), values) for key, values in found.items()]
    settings = {"num_draws": num_draws, "num_pictures": num_pictures, "seed": seed}
    notes = [f"{subject.name}: intervals of {num_draws} draws hold {nominal_of(num_draws):.1%} of further draws"]
    return subject.result(
        "ambiguity", measurements, _pictures(subject, stages, num_pictures, num_draws, seed), settings, notes
    )


@torch.no_grad()
def _mean_features(subject: Subject) -> dict[str, Tensor]:
    """The mean features ``1 N D`` of each stage over all images."""
    total = {stage: torch.zeros(()) for stage in subject.stages}
    for batch in subject.batches:
        total = {stage: each + exact(subject.trace(batch)[stage]).sum(0).cpu() for stage, each in total.items()}
    return {stage: (each / subject.num_images).float() for stage, each in total.items()}


# ---- one batch, from one stage


@torch.no_grad()
def _measure(subject: Subject, batch: Batch, stage: str, centre: Tensor, num: int, seed: int) -> Values:
    draws = subject.sample(batch, stage, draws=num, seed=seed)
    pictures = {DRAW: draws, MEAN: subject.reconstruct(batch, stage)[:, None], AVERAGE: draws.mean(1, keepdim=True)}
    values: Values = {}
    for name, shown in pictures.items():
        images = batch.images.expand_as(shown)
        values["mse", name] = _each(mse, shown, images)
        values["fine detail", name] = _each(lambda one, other: fine_power(one) / fine_power(other), shown, images)
    del pictures[AVERAGE]
    for name, shown in pictures.items():
        features, answers = _seen_again(subject, shown.flatten(0, 2), stage)
        own = subject.trace(batch)[stage].cpu().expand(*shown.shape[:2], -1, -1, -1).flatten(0, 2)
        values["features again", name] = _cosine(features, own, centre).view(shown.shape[:3]).mean(1)
        if answers:
            known = _answers(subject, subject.trace(batch))
            same = [_same(known[index % len(known)], each) for index, each in enumerate(answers)]
            values["same answer", name] = torch.tensor(same, dtype=torch.float64).view(shown.shape[:3]).mean(1)
        if name == DRAW and isinstance(answers[0] if answers else None, Detections):
            values["place spread", "draws"] = _place_spreads(batch, answers, draws.shape[:3])
    return {**values, **_spreads(subject, batch, stage, draws, seed), **_coverage(batch, draws)}


def _each(metric: Callable[[Tensor, Tensor], Tensor], shown: Tensor, images: Tensor) -> Tensor:
    """The mean over draws of ``metric``, of ``S n B 3 H W`` against as many images: ``S B``."""
    return metric(shown.flatten(0, 2), images.flatten(0, 2)).view(shown.shape[:3]).mean(1)


def fine_power(images: Tensor) -> Tensor:
    """The power of ``B 3 H W`` at frequencies of :data:`FINE` cycles a pixel and above: ``B``."""
    spectrum = torch.fft.rfft2(images.float()).abs().square().mean(1)
    down, across = torch.fft.fftfreq(images.shape[-2]), torch.fft.rfftfreq(images.shape[-1])
    fine = torch.hypot(down[:, None], across[None]).to(images.device) >= FINE
    return (spectrum * fine).sum((1, 2))


def _cosine(features: Tensor, others: Tensor, centre: Tensor) -> Tensor:
    """Between features ``M N D``, each less the mean over images ``1 N D``: ``M``."""
    one, other = ((each.float() - centre).flatten(1) for each in (features, others))
    return functional.cosine_similarity(one, other)


def _seen_again(subject: Subject, images: Tensor, stage: str) -> tuple[Tensor, list[Answer]]:
    """The features at ``stage`` of ``M 3 H W``, on the CPU, and what the model answers."""
    features, answers = [], list[Answer]()
    for part in images.split(_AT_ONCE):
        trace = subject.model.run(part)
        features.append(trace[stage].cpu())
        answers += _answers(subject, trace)
    return torch.cat(features), answers


def _answers(subject: Subject, trace: Trace) -> list[Answer]:
    """For each image the detections that count, or the likeliest class; nothing of models that do neither."""
    if subject.model.read is None or subject.model.spec.task == "features":
        return []
    found = subject.model.predict(trace)
    if isinstance(found, Classes):
        return list(found.top().tolist())
    return [each.above(THRESHOLD) for each in on_cpu(found)]


def _same(one: Answer, other: Answer) -> float:
    """1 where two answers are the same: the same class, or as many detections of which each finds its like."""
    if isinstance(one, int) or isinstance(other, int):
        return float(one == other)
    known = Target(one.boxes, one.classes, crowd=torch.zeros(len(one.scores), dtype=torch.bool))
    matched = match_objects(other, known)
    return float(len(one.scores) == len(other.scores) and bool((matched >= 0).all()))


# ---- between draws


def _spreads(subject: Subject, batch: Batch, stage: str, draws: Tensor, seed: int) -> Values:
    """Of ``draws`` ``S n B 3 H W``."""
    pixels = _pixel_spread(draws)
    values: Values = {("spread", "draws"): pixels.mean((2, 3))}
    size = batch.images.shape[-2], batch.images.shape[-1]
    objects = torch.stack([object_masks(each, size).any(0) for each in batch.targets]).to(pixels.device)
    there = objects.flatten(1).any(1)[:, None, None]
    for name, where in (("object spread", objects), ("background spread", ~objects & there)):
        values[name, "draws"] = (pixels * where).sum((2, 3)) / where.sum((1, 2))
    via = {each: variant for each, variant in subject.ensemble.samplers().items() if each == stage}
    if via:
        alone = subject.sample(batch, stage, via=via, draws=min(ALONE, draws.shape[1]), seed=seed)
        values["own spread", "draws"] = _pixel_spread(alone).mean((2, 3))
    hues = torch.full((draws.shape[0], len(batch.ids)), math.nan, dtype=torch.float64)
    for index, _, found in _object_hues(batch, draws):
        hues[:, index] = _hue_spread(found).mean(-1).cpu()
    values["hue spread", "draws"] = hues
    return values


def _pixel_spread(draws: Tensor) -> Tensor:
    """``S n B 3 H W`` -> the standard deviation between draws ``S B H W``, RGB in [0, 1]."""
    return exact(draws).var(1, correction=1).mean(2).sqrt()


def _object_hues(batch: Batch, draws: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(image, its objects' masks, the hue of every object in every draw as a unit vector, ``S n objects``)."""
    size = batch.images.shape[-2], batch.images.shape[-1]
    for index, target in enumerate(batch.targets):
        if len(target.boxes):
            masks = object_masks(target, size).to(draws.device)
            yield index, masks, _unit(colour_vector(draws[:, :, index, None], masks))


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.abs().clamp(min=1e-12)


def _hue_spread(hues: Tensor) -> Tensor:
    """One less the length of the mean of unit vectors ``S n objects``, without its bias: ``S objects``."""
    count = hues.shape[1]
    squared = hues.mean(1).abs().square()
    return 1 - ((count * squared - 1) / (count - 1)).clamp(min=0).sqrt()


def _place_spreads(batch: Batch, answers: Sequence[Answer], shape: Sequence[int]) -> Tensor:
    """``S B``; ``answers`` in the order of ``shape`` (S, n, B)."""
    seeds, num, images = shape
    table = torch.full((seeds, images), math.nan, dtype=torch.float64)
    for seed in range(seeds):
        for image, target in enumerate(batch.targets):
            found = [answers[(seed * num + number) * images + image] for number in range(num)]
            table[seed, image] = _place_spread(found, target, (batch.images.shape[-1], batch.images.shape[-2]))
    return table


def _place_spread(answers: Sequence[Answer], target: Target, size: tuple[int, int]) -> float:
    """The standard deviation of the centres of an object's detections over draws, averaged over objects, in units of
    that of a place at random; NaN without objects that are found in two draws. ``size`` is (W, H)."""
    centres: dict[int, list[Tensor]] = {}
    for answer in answers:
        if isinstance(answer, Detections):
            for place, which in enumerate(match_objects(answer, target, NEAR).tolist()):
                box = answer.boxes[place].double()
                centres.setdefault(which, []).append((box[:2] + box[2:]) / 2 / box.new_tensor(size))
    spreads = [
        torch.stack(each).var(0, correction=1).mean().sqrt()
        for which, each in centres.items()
        if which >= 0 and len(each) > 1
    ]
    return float(torch.stack(spreads).mean() * 12**0.5) if spreads else math.nan


# ---- where the truth lies


def nominal_of(num_draws: int) -> float:
    """The share of further draws that :func:`covered` holds: as near to :data:`NOMINAL` as so many draws allow."""
    return 1 - 2 * _cut(num_draws) / (num_draws + 1)


def _cut(num_draws: int) -> int:
    return max(1, round((1 - NOMINAL) / 2 * (num_draws + 1)))


def covered(truth: Tensor, draws: Tensor) -> Tensor:
    """Whether the truth lies between the k-th smallest and the k-th largest draw, with k so that one more draw does
    90 % of the time: ``T`` and ``S n T`` -> ``S T``. By ranks, not quantiles: right for few draws too."""
    below = (draws < truth).sum(1).float() + 0.5 * (draws == truth).sum(1)
    cut = _cut(draws.shape[1])
    return ((below >= cut) & (below <= draws.shape[1] - cut)).float()


def hue_covered(truth: Tensor, draws: Tensor) -> Tensor:
    """The same of hues, which are unit vectors: round the circle from opposite the mean direction of all, the truth
    among them, so that it has no place of its own."""
    middle = (draws.sum(1) + truth).conj()
    middle = torch.where(middle.abs() > 1e-9, middle, torch.ones_like(middle))
    return covered((truth * middle).angle()[:, None], (draws * middle[:, None]).angle())


def _coverage(batch: Batch, draws: Tensor) -> Values:
    """``S B`` of each of :data:`COVERED` and of :func:`object_errors`, averaged over the objects of an image."""
    unknown = torch.full((draws.shape[0], len(batch.ids)), math.nan, dtype=torch.float64)
    tables, off = ({name: unknown.clone() for name in names} for names in (COVERED, (TRUTH, DRAW)))
    luma = torch.tensor(LUMA).view(3, 1, 1).to(draws)
    grey, true_grey = (draws * luma).sum(-3), (batch.images * luma).sum(-3)
    for index, masks, hues in _object_hues(batch, draws):
        tables["hue"][:, index] = (
            hue_covered(_unit(colour_vector(batch.images[index, None], masks)), hues).mean(1).cpu()
        )
        inside = masks.to(grey.dtype)
        means = [
            (each.unsqueeze(-3) * inside).sum((-2, -1)) / inside.sum((-2, -1))
            for each in (true_grey[index], grey[:, :, index])
        ]
        tables["brightness"][:, index] = covered(*means).mean(1).cpu()
        rest = ~masks.any(0)
        if int(rest.sum()) > 1:
            contrasts = [each[..., rest].std(-1) for each in (true_grey[index], grey[:, :, index])]
            tables["texture"][:, index] = covered(contrasts[0][None], contrasts[1][..., None]).mean(1).cpu()
        for of, errors in object_errors(batch.images[index], draws[:, :, index], masks).items():
            off[of][:, index] = errors.cpu()
    return {
        **{(f"{name} covered", TRUTH): table for name, table in tables.items()},
        **{("object error", of): table for of, table in off.items()},
    }


def object_errors(image: Tensor, draws: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """How far the mean colour of an object in the truth ``3 H W`` is from that in the mean of ``draws`` ``S n 3 H W``,
    and in a draw from the mean of the others: squared, RGB in [0, 1], the mean over ``masks`` ``objects H W``. ``S``
    each."""
    areas = masks.sum((1, 2))[:, None]
    truth, found = (torch.einsum("...chw,ohw->...oc", exact(each), exact(masks)) / areas for each in (image, draws))
    average, num = found.mean(1, keepdim=True), found.shape[1]
    others = (num * average - found) / (num - 1)
    return {
        TRUTH: (truth - average).square().mean((1, 2, 3)),
        DRAW: (found - others).square().mean((1, 2, 3)),
    }


# ---- pictures


@torch.no_grad()
def _pictures(subject: Subject, stages: list[str], count: int, num: int, seed: int) -> Iterator[Picture]:
    """The first images: the input, and from every stage the mean, three draws, and where draws differ."""
    if not count:
        return
    batch = subject.batches[0]
    for index in range(min(count, len(batch.ids))):
        shown: Mapping[str, Mapping[str, Tensor]] = {
            stage: _shown(subject, batch, index, stage, num, seed) for stage in stages
        }
        for row in next(iter(shown.values())):
            labels = {"image": index, "row": row}
            yield Picture({**labels, "stage": INPUT}, batch.cut(index, batch.images[index]).cpu())
            for stage in stages:
                yield Picture({**labels, "stage": stage}, batch.cut(index, shown[stage][row]).cpu())


def _shown(subject: Subject, batch: Batch, index: int, stage: str, num: int, seed: int) -> dict[str, Tensor]:
    draws = subject.sample(batch, stage, draws=num, seed=seed)[0, :, index]
    names = {f"draw {number}": each for number, each in enumerate(draws[:SHOWN], 1)}
    return {MEAN: subject.reconstruct(batch, stage)[0, index], **names, DIFFER: spread_map(draws)}


# ---- the figure


def draw(result: Result) -> Pages:
    """For each model: is the sampler right, what is left open, what does the model see; then pictures."""
    parts = []
    for model in models_of(result):
        covers = {
            f"{name} of {'the rest' if name == 'texture' else 'objects'}": {"metric": f"{name} covered"}
            for name in COVERED
        }
        panels = [
            Panel(
                "Truths that lie within the draws' 90 % intervals",
                named_lines(result, covers, model=model),
                {"calibrated": NOMINAL},
                top=1.02,
            ),
            Panel("Between draws: 0 settled, 1 anything", _lines(result, model, "hue spread", "place spread")),
            Panel(
                "Spread of a pixel between draws",
                _lines(result, model, "object spread", "background spread", "own spread"),
            ),
            Panel(
                "Colour of whole objects: squared distance from the mean of draws",
                named_lines(result, {of: {"of": of} for of in (TRUTH, DRAW)}, model=model, metric="object error"),
            ),
            Panel("Error: MSE", _of(result, model, "mse")),
            Panel("Fine detail: 1 as sharp as the image", _of(result, model, "fine detail"), {"the image": 1.0}),
            Panel("Features again: 1 those of the image", _of(result, model, "features again"), top=1.0),
            Panel("Share with the answer for the image", _of(result, model, "same answer"), top=1.02),
        ]
        parts.append(panel_part([each for each in panels if each.table], columns=2, heading=title_of(result, model)))
        images = dict.fromkeys(each.labels["image"] for each in result.shown(model=model))
        parts += [each for image in images for each in picture_parts([pictures_of(result, model, "row", image=image)])]
    return pages(parts)


def _lines(result: Result, model: str, *metrics: str) -> dict[str, list[ErrorPoint]]:
    return named_lines(result, {metric: {"metric": metric} for metric in metrics}, model=model)


def _of(result: Result, model: str, metric: str) -> dict[str, list[ErrorPoint]]:
    """A line for the draws, one for the mean inverse, one for the mean of draws."""
    return named_lines(result, {of: {"of": of} for of in (DRAW, MEAN, AVERAGE)}, model=model, metric=metric)


AMBIGUITY = Experiment(
    "ambiguity",
    "What do the features leave open?",
    measure,
    draw,
    padded=False,
    controlled=False,
    samples=True,
    reading=(
        "Draws beside the mean: each is an image that may have led to the features. Where draws differ, the features "
        "leave a choice, as far as their intervals hold the truth as often as they claim: coverage says so. No draw is "
        "the image itself."
    ),
)
