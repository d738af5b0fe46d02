"""How much of the image is lost by each stage (paper, sec. 4.1 and Fig. 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from backsight.core import IMAGE, UserError
from backsight.data import Batch
from backsight.evaluation import Inverted, Metric, evaluate
from backsight.experiments.drawing import lines_of, models_of, title_of
from backsight.experiments.run import Experiment
from backsight.experiments.subject import Subject, baseline_notes
from backsight.figures import Pages, Panel, pages, panel_part
from backsight.metrics import dists, lpips, mse, multiscale_ssim, psnr, ratio, ssim
from backsight.metrics.statistics import estimate
from backsight.results import MEAN_IMAGE, Measurement, Result

METRICS: Mapping[str, Metric] = {
    "mse": mse,
    "psnr": psnr,
    "ssim": ssim,
    "ms-ssim": multiscale_ssim,
    "lpips": lpips,
    "dists": dists,
}
"""Of images, RGB in [0, 1]. LPIPS and DISTS only where their weights are at hand."""

SMALLEST = {"ssim": 11, "ms-ssim": 11, "lpips": 64, "dists": 64}
"""The sides that an image has to have for a metric, in pixels."""

TITLES = {
    "mse": ("MSE, lower is closer", "RGB in [0, 1]"),
    "relative mse": ("MSE, 1 is the mean image's", "ratio"),
    "psnr": ("PSNR, higher is closer", "dB"),
    "ssim": ("SSIM, higher is closer", ""),
    "ms-ssim": ("SSIM over several scales", ""),
    "lpips": ("LPIPS, lower looks closer", ""),
    "dists": ("DISTS, lower looks closer", ""),
    "layer error": ("Own inverse alone", "target's variance"),
}
"""Of the panels, in their order, and the units of their axes."""


def measure(subject: Subject) -> Result:
    """The error of every stage's reconstruction, and of every inverse on its own.

    Labels: ``model``, ``stage`` (or ``mean image``), ``metric``: ``mse``, ``psnr``, ``ssim``, ``ms-ssim`` (over
    several scales), ``lpips``, ``dists`` of images; ``relative mse``, in units of the mean image's mean error over
    these images, with the interval of that ratio; ``layer error``: the squared error of
    the stage's own inverse on true features, in units of its target's variance (1 is no better than the mean
    of every channel). What cannot be measured here is left out, and a note says so.
    """
    missing = _missing(subject)
    notes = [f"{subject.name}: no {metric}: {reason}" for metric, reason in missing.items()]
    result = _measure(subject, missing)
    return replace(
        result,
        measurements=[replace(each, labels={**each.labels, "model": subject.name}) for each in result.measurements],
        images={subject.name: result.images[subject.model.name]},
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
    for name in [name for name in METRICS if name not in missing]:
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
    unit = result.one(stage=MEAN_IMAGE, metric="mse").values
    relative = [_relative(each, unit) for each in result.select(metric="mse")]
    return replace(result, measurements=[*result.measurements, *relative])


def _relative(errors: Measurement, unit: Tensor) -> Measurement:
    """In units of the mean of ``unit`` ``1 images``, with the interval of the ratio of the two means."""
    table = ratio(errors.values, unit)
    known = Measurement({}, table).known()
    stated = estimate(known).interval() if known.numel() > 1 else None
    values = errors.values / unit.mean().clamp(min=1e-12)
    return Measurement({**errors.labels, "metric": "relative mse"}, values, stated)


def _outputs(subject: Subject, batch: Batch) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What every stage's own inverse makes of true features, and the whole chain, by each seed; as the subject keeps
    them."""
    for stage in subject.stages:
        own = subject.reconstruct(batch, stage, subject.model.spec.before(stage))
        for output, image in zip(own, subject.reconstruct(batch, stage), strict=True):
            yield stage, output, image


def draw(result: Result) -> Pages:
    """A panel for each metric, in it a line for each model over its stages; the mean image's error is dashed."""
    panels = []
    for metric, (title, unit) in TITLES.items():
        if table := lines_of(result, metric=metric):
            panels.append(Panel(title, table, _baselines(result, metric), from_zero=metric != "psnr", label=unit))
    return pages([panel_part(panels)])


def _baselines(result: Result, metric: str) -> dict[str, float]:
    """The mean image's: one line where all models saw the same data."""
    if metric == "relative mse":
        return {}  # by definition 1
    found = {model: result.select(model=model, metric=metric, stage=MEAN_IMAGE) for model in models_of(result)}
    means = {model: each[0].mean() for model, each in found.items() if each and each[0].known().numel()}
    same = len({str(card.get("data")) for card in result.subjects}) == 1
    if same and means:
        return {"mean image": next(iter(means.values()))}
    return {f"mean image, data of {title_of(result, model)}": mean for model, mean in means.items()}


STAGE_ERROR = Experiment(
    "stage_error",
    "How much of the image is lost by each stage?",
    measure,
    draw,
    reading=(
        "The error of the image from every stage, in comparison with that of the mean image, which knows nothing, and "
        "the error of every inverse by itself. Where the second is low and the first is high, the way down fails."
    ),
)
