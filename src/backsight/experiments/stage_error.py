"""How much of the image is lost by each stage (paper, sec. 4.1 and Fig. 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from backsight.core import IMAGE, UserError
from backsight.data import Batch
from backsight.experiments.lines import lines_of, title_of
from backsight.experiments.run import Experiment
from backsight.experiments.subject import Subject, baseline_notes, by_seed
from backsight.figures import Panel, page, panel_part
from backsight.metrics import lpips, mse, on_valid, psnr, ssim
from backsight.results import Measurement, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": mse, "psnr": psnr, "ssim": ssim, "lpips": lpips}
"""Of images, RGB in [0, 1]. LPIPS only where its weights are at hand."""

SMALLEST = {"ssim": 11, "lpips": 64}
"""The sides that an image has to have for a metric, in pixels."""

MEAN_IMAGE = "mean image"
"""The stage of what is measured against the training data's mean image."""

TITLES = {
    "mse": "MSE, RGB in [0, 1]: lower is closer",
    "relative mse": "MSE in units of the mean image's: 1 is no better than painting that",
    "psnr": "PSNR in dB: higher is closer",
    "ssim": "SSIM: higher is closer, 1 is identical",
    "lpips": "LPIPS: lower looks closer",
    "layer error": "Own inverse alone, layer error: 0 is perfect, 1 no better than the mean",
}
"""Of the panels, in their order."""


def measure(subject: Subject) -> Result:
    """The error of every stage's reconstruction, and of every inverse on its own.

    Labels: ``model``, ``stage`` (or ``mean image``), ``metric``: ``mse``, ``psnr``, ``ssim``, ``lpips`` of images;
    ``relative mse``, in units of the mean image's mean error over these images; ``layer error``: the squared error of
    the stage's own inverse on true features, in units of its target's variance (1 is no better than the mean
    of every channel). What cannot be measured here is left out, and a note says so.
    """
    missing = _missing(subject)
    notes = [f"{subject.name}: no {metric}: {reason}" for metric, reason in missing.items()]
    notes += baseline_notes(subject)
    return Result("stage_error", [subject.card()], list(_measure(subject, missing)), notes=notes)


def _missing(subject: Subject) -> dict[str, str]:
    """The metrics that cannot be measured, and why, by asking for them."""
    height, width = subject.model.pixels.size
    side = min(height, width)
    missing = {
        name: f"it needs images of at least {least} pixels, these are {height} x {width}"
        for name, least in SMALLEST.items()
        if side < least
    }
    for name in METRICS.keys() - missing.keys():
        try:
            METRICS[name](torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64))
        except UserError as error:
            missing[name] = str(error)
    return missing


def _measure(subject: Subject, missing: Mapping[str, str]) -> Iterator[Measurement]:
    metrics = {name: metric for name, metric in METRICS.items() if name not in missing}

    def errors(batch: Batch) -> dict[tuple[str, str], Tensor]:
        nothing, own = subject.baseline.against(batch), {n: on_valid(m, batch.valid) for n, m in metrics.items()}
        found = {(name, MEAN_IMAGE): metric(nothing, batch.images) for name, metric in own.items()}
        for stage in subject.stages:
            images = subject.reconstruct(batch, stage)
            found |= {(name, stage): by_seed(metric, images, batch.images) for name, metric in own.items()}
        return found

    values = subject.gather(errors)
    unit = values["mse", MEAN_IMAGE].mean().clamp(min=1e-12)
    values |= {("relative mse", stage): values["mse", stage] / unit for stage in [MEAN_IMAGE, *subject.stages]}
    values |= {("layer error", stage): layer_error(subject, stage) for stage in subject.stages}
    for (name, stage), each in values.items():
        yield Measurement({"model": subject.name, "metric": name, "stage": stage}, each)


def layer_error(subject: Subject, stage: str) -> Tensor:
    """``S images``: the squared error of the inverse of ``stage`` on true features, as a share of the variance that
    its target has about its channels' means over all images."""
    before = subject.model.spec.before(stage)
    variance = _variance(subject, before)

    def error(batch: Batch) -> Tensor:
        target = subject.trace(batch)[before]
        errors = (subject.reconstruct(batch, stage, before) - target).square()
        counted = subject.model.layout(before).under(batch.valid)
        if counted is None:
            return errors.flatten(2).mean(2) / variance
        channels = 2 if before == IMAGE else 3  # S B 3 H W, or S B N D
        return (errors.mean(channels).flatten(2) * counted).sum(2) / counted.sum(1) / variance

    return subject.collect(error)


def _variance(subject: Subject, stage: str) -> float:
    """The mean over channels of the variance over images and places, in sums: all features at once may be too much."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    origin: Tensor | None = None  # near the mean, so that the difference of the sums keeps its digits
    for batch in subject.batches:
        features = subject.trace(batch)[stage].cpu().double()
        by_channel = features.movedim(1 if stage == IMAGE else 2, -1).flatten(0, -2)  # B 3 H W, or B N D
        counted = subject.model.layout(stage).under(batch.valid)
        by_channel = by_channel if counted is None else by_channel[counted.flatten().cpu()]
        origin = by_channel.mean(0) if origin is None else origin
        centred = by_channel - origin
        count, total, squares = count + len(centred), total + centred.sum(0), squares + centred.square().sum(0)
    return max(float((squares / count - (total / count).square()).mean()), 1e-12)


def draw(result: Result) -> Figure:
    """A panel for each metric, in it a line for each model over its stages; the mean image's error is dashed."""
    panels = []
    for metric, title in TITLES.items():
        table = {
            model: [point for point in points if point.stage != MEAN_IMAGE]
            for model, points in lines_of(result, metric=metric).items()
        }
        if table:
            panels.append(Panel(title, table, _baselines(result, metric), from_zero=metric != "psnr"))
    return page([panel_part(panels)])


def _baselines(result: Result, metric: str) -> dict[str, float]:
    found = result.select(metric=metric, stage=MEAN_IMAGE)
    if metric == "relative mse":
        return {}  # by definition 1
    known = [each for each in found if each.known().numel()]
    return {f"mean image, data of {title_of(result, str(each.labels['model']))}": each.mean() for each in known}


STAGE_ERROR = Experiment("stage_error", "How much of the image is lost by each stage?", measure, draw)
