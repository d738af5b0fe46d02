"""How much of the image is lost by each stage (paper, sec. 4.1 and Fig. 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from backsight.core import IMAGE
from backsight.data import Batch
from backsight.experiments.registry import Experiment
from backsight.experiments.result import Measurement, Result
from backsight.experiments.subject import Subject
from backsight.figures import ErrorPoint, error_bars
from backsight.metrics import mse, psnr, ssim

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = {"mse": mse, "psnr": psnr, "ssim": ssim}
"""Of images, RGB in [0, 1]."""

MEAN_IMAGE = "mean image"
"""The stage of what is measured against the training data's mean image."""


def measure(subjects: Sequence[Subject]) -> Result:
    """The error of every stage's reconstruction, and of every inverse on its own.

    Labels: ``model``, ``stage`` (or ``mean image``), ``metric``: ``mse``, ``psnr``, ``ssim`` of images, and ``layer
    error``: the squared error of the stage's own inverse on true features, in units of its target's variance (1 is
    no better than the mean of every channel).
    """
    measurements = [each for subject in subjects for each in _measure(subject)]
    return Result("stage_error", [subject.card() for subject in subjects], measurements)


def _measure(subject: Subject) -> Iterator[Measurement]:
    mean = subject.mean_image
    for name, metric in METRICS.items():
        labels = {"model": subject.name, "metric": name}
        values = subject.collect(lambda batch, metric=metric: metric(mean.expand_as(batch.images), batch.images))
        yield Measurement({**labels, "stage": MEAN_IMAGE}, values)
        for stage in subject.stages:
            values = subject.collect(lambda batch, metric=metric, stage=stage: _by_seed(subject, batch, stage, metric))
            yield Measurement({**labels, "stage": stage}, values)
    for stage in subject.stages:
        yield Measurement({"model": subject.name, "metric": "layer error", "stage": stage}, layer_error(subject, stage))


def _by_seed(subject: Subject, batch: Batch, stage: str, metric: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return torch.stack([metric(images, batch.images) for images in subject.reconstruct(batch, stage)])


def layer_error(subject: Subject, stage: str) -> Tensor:
    """``S images``: the squared error of the inverse of ``stage`` on true features, as a share of the variance that
    its target has about its channels' means over all images."""
    before = subject.model.spec.before(stage)
    variance = _variance(subject, before)

    def error(batch: Batch) -> Tensor:
        target = subject.trace(batch)[before]
        return (subject.reconstruct(batch, stage, before) - target).square().flatten(2).mean(2) / variance

    return subject.collect(error)


def _variance(subject: Subject, stage: str) -> float:
    channel = 1 if stage == IMAGE else 2  # images are B 3 H W, features B N D
    by_channel = [subject.trace(batch)[stage].movedim(channel, -1).flatten(0, -2).double() for batch in subject.batches]
    return max(float(torch.cat(by_channel).var(0, correction=0).mean()), 1e-12)


def draw(result: Result, metric: str = "mse") -> Figure:
    """A line for each model: the error over its stages, and the mean image's as a dashed line."""
    table, baselines = {}, {}
    for model in result.values_of("model"):
        found = [m for m in result.select(model=model, metric=metric) if m.labels["stage"] != MEAN_IMAGE]
        table[model] = [ErrorPoint(str(m.labels["stage"]), m.known().mean(1).tolist(), m.interval()) for m in found]
        baselines[f"mean image, data of {model}"] = result.one(model=model, metric=metric, stage=MEAN_IMAGE).mean()
    return error_bars(table, baselines, label="mean squared error, RGB in [0, 1]" if metric == "mse" else metric)


STAGE_ERROR = Experiment("stage_error", "How much of the image is lost by each stage?", measure, draw)
