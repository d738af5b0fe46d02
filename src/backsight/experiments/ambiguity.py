"""What do the features leave open? Draws of inverses that sample, against each other, the mean and the truth.

A mean is blurred where the model does not know, and where the inverse cannot paint. A draw is one input that may have
led to the features. Where draws differ, the features leave a choice; whether they differ as much as they ought to is
measured too: the truth has to lie among them as often as a draw does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor

from backsight.core import Classes, Detections, UserError
from backsight.data import Batch, Target
from backsight.devices import exact
from backsight.experiments.detection_cases import on_cpu
from backsight.experiments.drawing import models_of, pictures_of, points, title_of
from backsight.experiments.objects import object_masks
from backsight.experiments.reconstruct import DIFFER, spread_map
from backsight.experiments.run import Experiment
from backsight.experiments.subject import Subject
from backsight.figures import Panel, pages, panel_part, picture_parts
from backsight.metrics import match_objects, mse
from backsight.perturb import colour_vector
from backsight.perturb.colour import LUMA
from backsight.results import Measurement, Picture, Result
from backsight.validation import AnyNumber, Range

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAW, MEAN, AVERAGE = "draw", "mean inverse", "mean of draws"
"""What is measured: a draw, the picture of the inverses without noise, and the mean of all draws."""

INPUT = "input"
"""The stage of pictures of the images themselves."""

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

_AT_ONCE = 64

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
    whose truth (:data:`COVERED`) lies within the interval that draws span :data:`NOMINAL` of the time.

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
    stages, centres = subject.sampling_stages, _mean_features(subject)
    found = subject.gather(
        lambda batch: {
            (stage, *key): values
            for stage in stages
            for key, values in _measure(subject, batch, stage, centres[stage], num_draws, seed).items()
        }
    )
    measurements = [
        Measurement({"model": subject.name, "stage": stage, "metric": metric, "of": of}, values)
        for (stage, metric, of), values in found.items()
    ]
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
    answers = _answers(subject, batch.images)
    values: Values = {}
    again: list[list[list[Detections]]] = []
    for name, shown in pictures.items():
        flat = shown.flatten(0, 2)
        size = shown.shape[:3]
        images = batch.images.expand(*size[:2], *batch.images.shape).flatten(0, 2)
        values["mse", name] = mse(flat, images).view(size).mean(1)
        values["fine detail", name] = (fine_power(flat) / fine_power(images)).view(size).mean(1)
        if name == AVERAGE:
            continue
        features = subject.trace(batch)[stage].expand(*size[:2], -1, -1, -1).flatten(0, 2)
        seen, found = _seen_again(subject, flat, stage)
        values["features again", name] = _cosine(seen, features.cpu(), centre).view(size).mean(1)
        if answers is not None and found is not None:
            rows = [_same(answers[index % size[2]], each) for index, each in enumerate(found)]
            values["same answer", name] = torch.tensor(rows, dtype=torch.float64).view(size).mean(1)
            if name == DRAW and isinstance(found[0], Detections):
                again = [
                    [[found[(s * size[1] + d) * size[2] + b] for d in range(size[1])] for b in range(size[2])]
                    for s in range(size[0])
                ]
    return {**values, **_spreads(subject, batch, stage, draws, again, seed), **_coverage(batch, draws)}


def fine_power(images: Tensor) -> Tensor:
    """The power of ``B 3 H W`` at frequencies of :data:`FINE` cycles a pixel and above: ``B``."""
    spectrum = torch.fft.rfft2(images.float()).abs().square().mean(1)
    down, across = torch.fft.fftfreq(images.shape[-2]), torch.fft.rfftfreq(images.shape[-1])
    fine = torch.hypot(down[:, None], across[None]).to(images.device) >= FINE
    return (spectrum * fine).sum((1, 2))


def _cosine(features: Tensor, others: Tensor, centre: Tensor) -> Tensor:
    """Between features ``M N D``, each less the mean over images ``N D``: ``M``."""
    one, other = ((each.float() - centre).flatten(1) for each in (features, others))
    return torch.nn.functional.cosine_similarity(one, other)


def _seen_again(subject: Subject, images: Tensor, stage: str) -> tuple[Tensor, list | None]:
    """The features at ``stage`` of ``M 3 H W``, on the CPU, and what the model answers."""
    features, answers = [], []
    for part in images.split(_AT_ONCE):
        trace = subject.model.run(part)
        features.append(trace[stage].cpu())
        answers += _listed(subject, trace)
    return torch.cat(features), answers or None


def _answers(subject: Subject, images: Tensor) -> list | None:
    return _listed(subject, subject.model.run(images)) or None


def _listed(subject: Subject, trace: object) -> list:
    """An answer for each image: detections that count, or the number of the likeliest class; nothing of others."""
    if subject.model.read is None or subject.model.spec.task == "features":
        return []
    found = subject.model.predict(trace)  # pyright: ignore[reportArgumentType]
    if isinstance(found, Classes):
        return found.top().tolist()
    return [each.above(THRESHOLD) for each in on_cpu(found)]


def _same(one: Detections | int, other: Detections | int) -> float:
    """1 where two answers are the same: the same class, or as many detections of which each finds its like."""
    if isinstance(one, int) or isinstance(other, int):
        return float(one == other)
    matched = match_objects(other, _as_target(one))
    return float(len(one.scores) == len(other.scores) and bool((matched >= 0).all()))


def _as_target(answer: Detections) -> Target:
    return Target(answer.boxes, answer.classes, crowd=torch.zeros(len(answer.scores), dtype=torch.bool))


# ---- between draws


def _spreads(
    subject: Subject, batch: Batch, stage: str, draws: Tensor, again: list[list[list[Detections]]], seed: int
) -> Values:
    """``draws`` ``S n B 3 H W``; ``again`` the detections in them, by seed, image and draw."""
    values: Values = {}
    by_pixel = exact(draws).var(1, correction=1).mean(2).sqrt()
    values["spread", "draws"] = by_pixel.mean((2, 3))
    objects = _union(batch).to(by_pixel.device)
    for name, where in (
        ("object spread", objects),
        ("background spread", ~objects & objects.flatten(1).any(1)[:, None, None]),
    ):
        inside = where.to(by_pixel.dtype)
        values[name, "draws"] = (by_pixel * inside).sum((2, 3)) / inside.sum((1, 2))
    own = subject.ensemble.samplers()
    via = {stage: own[stage]} if stage in own else {}
    if via or subject.ensemble.chains[0].samples(stage):
        alone = subject.sample(batch, stage, via=via, draws=min(draws.shape[1], 8), seed=seed)
        values["own spread", "draws"] = exact(alone).var(1, correction=1).mean(2).sqrt().mean((2, 3))
    values["hue spread", "draws"] = _by_object(batch, draws, _hue_spread)
    if again:
        rows = [[_place_spread(found, batch.targets[b], batch) for b, found in enumerate(each)] for each in again]
        values["place spread", "draws"] = torch.tensor(rows, dtype=torch.float64)
    return values


def _union(batch: Batch) -> Tensor:
    """The pixels of all objects of each image, ``B H W`` bool."""
    size = batch.images.shape[-2], batch.images.shape[-1]
    return torch.stack([object_masks(target, size).any(0) if len(target.boxes) else torch.zeros(size, dtype=torch.bool)
                        for target in batch.targets])  # fmt: skip


def _by_object(batch: Batch, draws: Tensor, what: object) -> Tensor:
    """The mean over the objects of each image of ``what(hues)``, ``S B``; NaN where there are none."""
    table = torch.full((draws.shape[0], len(batch.ids)), math.nan, dtype=torch.float64)
    for index, hues in _object_hues(batch, draws):
        table[:, index] = what(hues).mean(-1).cpu()  # pyright: ignore[reportCallIssue]
    return table


def _object_hues(batch: Batch, draws: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(image, the hue of every object in every draw as a unit vector, ``S n objects``)."""
    size = batch.images.shape[-2], batch.images.shape[-1]
    for index, target in enumerate(batch.targets):
        if len(target.boxes):
            masks = object_masks(target, size).to(draws.device)
            vectors = colour_vector(draws[:, :, index, None], masks)
            yield index, vectors / vectors.abs().clamp(min=1e-12)


def _hue_spread(hues: Tensor) -> Tensor:
    """One less the length of the mean of unit vectors ``S n objects``, without its bias: ``S objects``."""
    count = hues.shape[1]
    squared = hues.mean(1).abs().square()
    return 1 - ((count * squared - 1) / (count - 1)).clamp(min=0).sqrt()


def _place_spread(found: list[Detections], target: Target, batch: Batch) -> float:
    """The standard deviation of the centres of an object's detections over draws, averaged over objects, in units of
    that of a place at random; NaN for objects found in fewer than two draws."""
    sides = torch.tensor([batch.images.shape[-1], batch.images.shape[-2]], dtype=torch.float64)
    centres: dict[int, list[Tensor]] = {}
    for answer in found:
        for place, which in enumerate(match_objects(answer, target, overlap=0.1).tolist()):
            if which >= 0:
                box = answer.boxes[place].double()
                centres.setdefault(which, []).append((box[:2] + box[2:]) / 2 / sides)
    spreads = [torch.stack(each).var(0, correction=1).mean().sqrt() for each in centres.values() if len(each) > 1]
    return float(torch.stack(spreads).mean() * 12**0.5) if spreads else math.nan


# ---- where the truth lies


def nominal_of(num_draws: int) -> float:
    """The share of further draws that :func:`covered` holds: as near to :data:`NOMINAL` as so many draws allow."""
    return 1 - 2 * _cut(num_draws) / (num_draws + 1)


def _cut(num_draws: int) -> int:
    return max(1, round((1 - NOMINAL) / 2 * (num_draws + 1)))


def covered(truth: Tensor, draws: Tensor) -> Tensor:
    """Whether the truth lies between the k-th smallest and the k-th largest draw, with k so that one more draw does
    90 % of the time: ``T`` and ``S n T`` -> ``S T``. As probable ranks, not quantiles: right for few draws too."""
    below = (draws < truth).sum(1).double() + 0.5 * (draws == truth).sum(1)
    cut = _cut(draws.shape[1])
    return ((below >= cut) & (below <= draws.shape[1] - cut)).double()


def hue_covered(truth: Tensor, draws: Tensor) -> Tensor:
    """The same of hues, which are unit vectors: round the circle from opposite the mean direction of all, the truth
    among them, so that it has no place of its own."""
    middle = (draws.sum(1) + truth).conj()
    middle = torch.where(middle.abs() > 1e-9, middle, torch.ones_like(middle))
    return covered((truth * middle).angle()[:, None], (draws * middle[:, None]).angle())


def _coverage(batch: Batch, draws: Tensor) -> Values:
    """``S B`` of each of :data:`COVERED`, averaged over the objects of an image."""
    tables = {name: torch.full((draws.shape[0], len(batch.ids)), math.nan, dtype=torch.float64) for name in COVERED}
    luma = torch.tensor(LUMA).view(3, 1, 1).to(draws)
    grey, true_grey = (draws * luma).sum(-3), (batch.images * luma).sum(-3)
    size = batch.images.shape[-2], batch.images.shape[-1]
    for index, hues in _object_hues(batch, draws):
        masks = object_masks(batch.targets[index], size).to(draws.device)
        vectors = colour_vector(batch.images[index, None], masks)
        tables["hue"][:, index] = hue_covered(vectors / vectors.abs().clamp(min=1e-12), hues).mean(1).cpu()
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
    return {(f"{name} covered", "truth"): table for name, table in tables.items()}


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
            labels = {"model": subject.name, "image": index, "row": row}
            yield Picture({**labels, "stage": INPUT}, batch.cut(index, batch.images[index]).cpu())
            for stage in stages:
                yield Picture({**labels, "stage": stage}, batch.cut(index, shown[stage][row]).cpu())


def _shown(subject: Subject, batch: Batch, index: int, stage: str, num: int, seed: int) -> dict[str, Tensor]:
    draws = subject.sample(batch, stage, draws=num, seed=seed)[0, :, index]
    names = {f"draw {number}": each for number, each in enumerate(draws[:SHOWN], 1)}
    return {MEAN: subject.reconstruct(batch, stage)[0, index], **names, DIFFER: spread_map(draws)}


# ---- the figure


def draw(result: Result) -> list[Figure]:
    """For each model: is the sampler right, what is left open, what does the model see; then pictures."""
    parts = []
    for model in models_of(result):
        covers = {
            f"{name} of {'the rest' if name == 'texture' else 'objects'}": points(
                result.select(model=model, metric=f"{name} covered"), "stage"
            )
            for name in COVERED
        }
        panels = [
            Panel(
                "Truths that lie within the draws' 90 % intervals", _known(covers), {"calibrated": NOMINAL}, top=1.02
            ),
            Panel("Between draws: 0 settled, 1 anything", _lines(result, model, ("hue spread", "place spread"))),
            Panel(
                "Spread of a pixel between draws",
                _lines(result, model, ("object spread", "background spread", "own spread")),
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


def _lines(result: Result, model: str, metrics: tuple[str, ...]) -> dict:
    return _known({metric: points(result.select(model=model, metric=metric), "stage") for metric in metrics})


def _of(result: Result, model: str, metric: str) -> dict:
    """A line for the draws, one for the mean inverse, one for the mean of draws."""
    return _known(
        {of: points(result.select(model=model, metric=metric, of=of), "stage") for of in (DRAW, MEAN, AVERAGE)}
    )


def _known(lines: dict) -> dict:
    return {name: line for name, line in lines.items() if line}


AMBIGUITY = Experiment(
    "ambiguity", "What do the features leave open?", measure, draw, padded=False, controlled=False, samples=True
)
