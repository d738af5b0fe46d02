"""Errors of a chain and scores of its forward model, on images that they have not seen (paper, sec. 4.1 and Fig. 4).

They are measured here and nowhere else: training, experiments, cards and the report read the :class:`Result`.

=================  ============================================================================================
``mse`` ...        of the image that the chain reconstructs from an entry, RGB in [0, 1]; ``S images``
``layer error``    squared error of the entry's own inverse on true features, as a share of the variance that its
                   target has about the means of its channels: 0 is perfect, 1 no better than those; ``S images``
``accuracy``       of a classifier: 1 where the likeliest class is right, 0 where it is not; ``1 images``
``found``, ``AP``  of a detector: the share of an image's objects that it finds, ``1 images``, and COCO's average
                   precision over all images, ``1 1``
=================  ============================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backsight.chain import ChainEnsemble
from backsight.core import IMAGE, Classes, Detections, UserError, split_entry
from backsight.data import Batch, Target, mean_of, sum_images
from backsight.devices import exact
from backsight.engine import RANDOM, StagedModel, Trace
from backsight.io import read_tensor
from backsight.metrics import average_precision, mse, on_valid, psnr, saturation, share_found, ssim
from backsight.results import LAYER_ERROR, MEAN_IMAGE, Measurement, Result

Metric = Callable[[Tensor, Tensor], Tensor]
"""``B 3 H W``, ``B 3 H W`` -> ``B``."""

Gather = Callable[[Any], list[Any]]
"""What one process has found on its part of the images -> what all have, in their order."""

Inverted = tuple[Mapping[str, Tensor], Iterable[tuple[str, Tensor, Tensor]]]
"""One batch: its true features by stage, the image included; and for every entry, seed after seed, what the entry's own
inverse makes of them (``B N D``, or ``B 3 H W``) and the image in [0, 1] that the whole chain makes of them."""

METRICS: Mapping[str, Metric] = {"mse": mse, "psnr": psnr, "ssim": ssim, "saturation": saturation}
"""What is measured on images, RGB in [0, 1]; ``saturation`` is that of the reconstruction itself."""

FOUND, PRECISION, ACCURACY = "found", "AP", "accuracy"

BLANK = 100
"""Images without an answer after which the forward model's task is not measured."""


def alone(found: Any) -> list[Any]:
    """The :data:`Gather` of a single process."""
    return [found]


# ---- the mean image


@dataclass(frozen=True)
class MeanImage:
    """What an inverse paints that knows nothing: the mean of the training images, or, where nothing keeps that, of the
    very images that are measured.

    ``image`` is ``3 H W`` in [0, 1]. ``counts`` says over how many of the measured images it goes at each pixel,
    ``H W`` or one number; None: it is that of the training data.
    """

    image: Tensor
    counts: Tensor | int | None = None

    @classmethod
    def over(cls, batches: Iterable[Batch]) -> MeanImage:
        """That of the measured images themselves; of padded ones only the pictures count."""
        total, counts = torch.zeros(()), 0
        for batch in batches:  # where pictures of one are padded, those of another may not be
            own, number = sum_images(batch.to("cpu"))
            total, counts = total + own, counts + number
        return cls(mean_of(total, counts).float(), counts)

    def against(self, batch: Batch) -> Tensor:
        """What is held against the images of ``batch``, ``B 3 H W``: the mean image of the training data.

        The mean of n images is nearer to each of them than to any other image: its squared error is low by
        (n - 1) / n, and that of one image is 0. So it is moved away from each image, by the root of n / (n - 1): its
        squared error is then the variance without bias. It lies between the image and the mean of the
        others, whose own error would be as much too high. Where there is no other image it is their mean colour; NaN if
        there is none at all.
        """
        mean = self.image.to(batch.images.device).expand_as(batch.images)
        if self.counts is None:
            return mean
        counts = torch.as_tensor(self.counts, dtype=mean.dtype, device=mean.device)
        moved = batch.images + (counts / (counts - 1)).sqrt() * (mean - batch.images)
        alone = mean.mean((2, 3), keepdim=True) if counts.max() > 1 else mean.new_tensor(torch.nan)
        return torch.where(counts > 1, moved, alone)


def mean_image_of(run: str | Path) -> Tensor | None:
    """The mean of the training images that a run, or a shipped model, keeps, ``3 H W``; None where it does not."""
    path = Path(run) / "mean_image.safetensors"
    fix = "restore it, or remove it to measure against the mean of the images themselves"
    return read_tensor(path, "mean_image", fix).float() if path.is_file() else None


# ---- errors of a chain


@torch.no_grad()
def evaluate(
    model: StagedModel,
    ensemble: ChainEnsemble,
    batches: Iterable[Batch],
    mean_image: Tensor | MeanImage,
    metrics: Mapping[str, Metric] = METRICS,
    gather: Gather = alone,
    invert: Callable[[Batch], Inverted] | None = None,
) -> Result:
    """Measure every entry and seed of ``ensemble`` on ``batches``, and the mean image beside them.

    Args:
        model: the forward model.
        ensemble: its chains, one for each seed.
        batches: images in [0, 1]. Of padded ones only the pictures count, and the tokens at least partly under them.
        mean_image: ``3 H W`` in [0, 1], of the training data.
        metrics: of images, by name.
        gather: where several processes have a part of every batch each (an empty one, if need be).
        invert: how a batch passes through; by the forward model and every entry of ``ensemble`` if not given.

    Returns:
        Measurements with the labels ``model``, ``stage`` (an entry, or ``mean image``) and ``metric``: those of
        ``metrics``, and ``layer error`` of every entry.

    Raises:
        UserError: there is no image at all.
    """
    baseline = mean_image if isinstance(mean_image, MeanImage) else MeanImage(mean_image)
    invert = invert or (lambda batch: invert_chains(model, ensemble, batch))
    variances: dict[str, _Variance] = {}
    own = [(batch.ids, _measure(model, batch, invert(batch), baseline, metrics, variances) if batch.ids else {})
           for batch in batches]  # fmt: skip
    parts = gather((own, {stage: each.on_cpu() for stage, each in variances.items()}))
    rows = [row for step in zip_longest(*(rows for rows, _ in parts), fillvalue=((), {})) for row in step if row[0]]
    if not rows:
        raise UserError("none of the images to measure on can be read: see the lines above")
    values = {key: torch.cat([found[key] for _, found in rows], 1) for key in rows[0][1]}
    for stage, metric in values:
        if metric == LAYER_ERROR:
            target = model.spec.before(split_entry(stage)[0])
            values[stage, metric] /= _Variance.joined([part[target] for _, part in parts if target in part]).value()
    ids = [identity for names, _ in rows for identity in names]
    card = {
        "model": model.name,
        "weights": model.weights,
        "random": model.weights == RANDOM,
        "task": model.spec.task,
        "stages": model.stages,
        "num_images": len(ids),
        "size": list(model.pixels.size),
        "fit": model.pixels.fit,
        "value_range": "RGB in [0, 1]",
        "seeds": [chain.seed for chain in ensemble.chains],
    }
    measurements = [
        Measurement({"model": model.name, "stage": stage, "metric": metric}, each)
        for (stage, metric), each in values.items()
    ]
    return Result("evaluation", [card], measurements, images={model.name: ids})


def join_seeds(results: Sequence[Result]) -> Result:
    """Evaluations on the same images of chains that do not share a forward model, as one of all their seeds."""
    first, measurements = results[0], []
    for index, each in enumerate(first.measurements):
        if each.labels["stage"] != MEAN_IMAGE:
            each = replace(each, values=torch.cat([result.measurements[index].values for result in results]))
        measurements.append(each)
    seeds = [seed for result in results for seed in result.subjects[0]["seeds"]]
    return replace(first, subjects=[{**first.subjects[0], "seeds": seeds}], measurements=measurements)


def invert_chains(model: StagedModel, ensemble: ChainEnsemble, batch: Batch) -> Inverted:
    """One batch through the forward model, and from there through every entry and seed."""
    features = {IMAGE: batch.images, **model.features(batch.images, model.stages, batch.valid)}

    def outputs() -> Iterator[tuple[str, Tensor, Tensor]]:
        for entry in ensemble.entries:
            stage, _ = split_entry(entry)
            for chain in ensemble.chains:
                own = image = chain.inverses[entry](features[stage]).float()
                for below in chain.path(stage)[1:]:
                    image = chain.inverses[below](image)
                yield entry, own, image.float().clamp(0, 1)

    return features, outputs()


def _measure(
    model: StagedModel,
    batch: Batch,
    inverted: Inverted,
    baseline: MeanImage,
    metrics: Mapping[str, Metric],
    variances: dict[str, _Variance],
) -> dict[tuple[str, str], Tensor]:
    """Measure one batch: ``S B`` by (stage, metric). Its layer errors are not in units of the target's variance yet,
    which ``variances`` add up."""
    features, outputs = inverted
    by_seed: dict[tuple[str, str], list[Tensor]] = {}

    def keep(stage: str, metric: str, values: Tensor) -> None:
        by_seed.setdefault((stage, metric), []).append(exact(values).cpu())

    def measure_images(stage: str, images: Tensor) -> None:
        for name, metric in metrics.items():
            keep(stage, name, on_valid(metric, batch.valid)(images, batch.images))

    seen: set[str] = set()
    for entry, own, image in outputs:
        before = model.spec.before(split_entry(entry)[0])
        target = features[before]
        counted = None if batch.valid is None else model.layout(before).under(batch.valid)
        if before not in seen:
            variances.setdefault(before, _Variance()).add(target, counted)
            seen.add(before)
        measure_images(entry, image)
        keep(entry, LAYER_ERROR, token_error(own, target, counted))
    measure_images(MEAN_IMAGE, baseline.against(batch))
    return {key: torch.stack(values) for key, values in by_seed.items()}


def tokens_of(features: Tensor) -> Tensor:
    """``B 3 H W`` or ``B N D`` -> ``B N D`` in float64."""
    return exact(features.flatten(2).mT if features.ndim == 4 else features)


def token_error(output: Tensor, target: Tensor, counted: Tensor | None) -> Tensor:
    """The mean squared error of each image, ``B``, over the tokens that are ``counted`` (``B N`` bool; None: all)."""
    errors = (tokens_of(output) - tokens_of(target)).square().mean(2)
    if counted is None:
        return errors.mean(1)
    counted = counted.to(errors.device)
    return (errors * counted).sum(1) / counted.sum(1)


@dataclass
class _Variance:
    """The variance of a target about the means of its channels, added up over batches in float64.

    The sums are of differences from ``origin``, which is near the mean: so the difference of two large numbers that
    the variance is keeps its digits.
    """

    origin: Tensor | None = None
    count: int = 0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, target: Tensor, counted: Tensor | None) -> None:
        """Take up ``B N D`` (or ``B 3 H W``), the tokens that are ``counted``."""
        tokens = tokens_of(target)
        tokens = tokens.flatten(0, 1) if counted is None else tokens[counted.to(tokens.device)]
        if self.origin is None:
            self.origin = tokens.mean(0)
        centred = tokens - self.origin
        self.count += len(centred)
        self.total = self.total + centred.sum(0)
        self.squares = self.squares + centred.square().sum(0)

    def on_cpu(self) -> _Variance:
        """The same, ready to be sent to another process."""
        origin = None if self.origin is None else self.origin.cpu()
        return _Variance(origin, self.count, torch.as_tensor(self.total).cpu(), torch.as_tensor(self.squares).cpu())

    @classmethod
    def joined(cls, parts: Sequence[_Variance]) -> _Variance:
        """What all ``parts`` together would have added up, about the origin of the first."""
        origin = torch.as_tensor(parts[0].origin)
        whole = cls(origin)
        for part in parts:
            shift = torch.as_tensor(part.origin) - origin
            whole.count += part.count
            whole.total = whole.total + part.total + part.count * shift
            whole.squares = whole.squares + part.squares + 2 * shift * part.total + part.count * shift.square()
        return whole

    def value(self) -> float:
        """The mean over channels."""
        mean = torch.as_tensor(self.total) / self.count
        return max(float((torch.as_tensor(self.squares) / self.count - mean.square()).mean()), 1e-12)


# ---- scores of the forward model


@torch.no_grad()
def task_scores(
    model: StagedModel,
    batches: Iterable[Batch],
    gather: Gather = alone,
    run: Callable[[Batch], Trace] | None = None,
) -> dict[str, Tensor]:
    """How well ``model`` does its own task on ``batches``.

    Args:
        model: a classifier or a detector; there is nothing to measure of others.
        batches: images with their targets.
        gather: where several processes have some batches each.
        run: a batch's forward pass; the model's own by default.

    Returns:
        ``accuracy`` of a classifier, ``1 images``, NaN where an image's class is not known. Of a detector ``found``,
        ``1 images``, NaN where there is no object, and ``AP`` ``1 1``. All are in [0, 1]. Nothing where the first
        :data:`BLANK` images, or all, have no answer.
    """
    if model.spec.task not in ("classify", "detect"):
        return {}
    right: list[float] = []
    detections: list[Detections] = []
    targets: list[Target] = []
    blank, answered = 0, False
    for batch in batches:
        if not batch.ids:
            continue
        answered = answered or any(target.label is not None or len(target.labels) for target in batch.targets)
        blank += len(batch.ids)
        if blank > BLANK and not answered:
            break
        found = model.predict(run(batch) if run else model.answer(batch.images, (), batch.valid))
        if isinstance(found, Classes):
            right += right_answers(found, batch.targets)
        else:
            detections += [Detections(d.boxes.cpu(), d.scores.cpu(), d.classes.cpu(), d.labels) for d in found]
            targets += batch.targets
    parts = gather((right, detections, targets))
    right, detections, targets = ([each for part in parts for each in part[place]] for place in range(3))
    if any(math.isfinite(each) for each in right):
        return {ACCURACY: _row(right)}
    return score_detections(detections, targets)


def right_answers(answer: Classes, targets: Sequence[Target]) -> list[float]:
    """For each image 1 where the likeliest class is right, 0 where it is not, NaN where the class is not known."""
    pairs = zip(answer.top().tolist(), targets, strict=True)
    return [math.nan if target.label is None else float(top == target.label) for top, target in pairs]


def score_detections(detections: Sequence[Detections], targets: Sequence[Target]) -> dict[str, Tensor]:
    """``found`` and ``AP`` as :func:`task_scores` has them; nothing where no image has an object."""
    if not any(len(target.labels) for target in targets):
        return {}
    shares = [share_found(each, target) for each, target in zip(detections, targets, strict=True)]
    return {FOUND: _row(shares), PRECISION: _row([average_precision(detections, targets)["AP"]])}


def _row(values: Sequence[float]) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)
