"""How much of the image is lost by each stage (paper, sec. 4.1 and Fig. 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from backsight.core import IMAGE, UserError
from backsight.data import Batch
from backsight.evaluation import Inverted, Metric, evaluate
from backsight.experiments.lines import lines_of, title_of
from backsight.experiments.run import Experiment
from backsight.experiments.subject import Subject, baseline_notes
from backsight.figures import Panel, page, panel_part
from backsight.metrics import lpips, mse, psnr, ssim
from backsight.results import MEAN_IMAGE, Measurement, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS: Mapping[str, Metric] = {"mse": mse, "psnr": psnr, "ssim": ssim, "lpips": lpips}
"""Of images, RGB in [0, 1]. LPIPS only where its weights are at hand."""

SMALLEST = {"ssim": 11, "lpips": 64}
"""The sides that an image has to have for a metric, in pixels."""

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
    return replace(
        _measure(subject, missing),
        experiment="stage_error",
        subjects=[subject.card()],
        notes=[*notes, *baseline_notes(subject)],
    )


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


def _measure(subject: Subject, missing: Mapping[str, str]) -> Result:
    metrics = {name: metric for name, metric in METRICS.items() if name not in missing}

    def invert(batch: Batch) -> Inverted:
        trace = subject.trace(batch)
        return {name: trace[name] for name in [IMAGE, *subject.model.stages]}, _outputs(subject, batch)

    given = {"metrics": metrics, "gather": subject.processes.gather, "invert": invert}
    result = evaluate(subject.model, subject.ensemble, subject.own_batches(), subject.baseline, **given)
    unit = result.one(stage=MEAN_IMAGE, metric="mse").values.mean().clamp(min=1e-12)
    relative = [
        Measurement({**each.labels, "metric": "relative mse"}, each.values / unit)
        for each in result.select(metric="mse")
    ]
    return replace(result, measurements=[*result.measurements, *relative])


def _outputs(subject: Subject, batch: Batch) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What every stage's own inverse makes of true features, and the whole chain, by each seed; as the subject keeps
    them."""
    for stage in subject.stages:
        own = subject.reconstruct(batch, stage, subject.model.spec.before(stage))
        for output, image in zip(own, subject.reconstruct(batch, stage), strict=True):
            yield stage, output, image


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
