"""What fades on the way: objects that are detected, objects that are not, and the background (paper, Fig. 12).

If a detector keeps what its answer needs, what it does not detect should fade with depth, as the background does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from backsight.data import Batch
from backsight.experiments.detection_cases import detections_of
from backsight.experiments.drawing import models_of, named_lines, pictures_of, title_of
from backsight.experiments.objects import object_masks
from backsight.experiments.run import Experiment
from backsight.experiments.subject import Subject, baseline_notes
from backsight.figures import PALETTE, ErrorPoint, Pages, Panel, Part, outline, pages, panel_part, picture_parts
from backsight.metrics import contrast_kept, found, mse
from backsight.results import INPUT, MEAN_IMAGE, Measurement, Picture, Result
from backsight.validation import AnyNumber, Share

DETECTED, UNDETECTED, OBJECT, BACKGROUND = "detected", "undetected", "object", "background"
"""The regions: pixels of objects that are detected, of the others, of all objects, and of none."""

TITLES = {
    "relative mse": "Error, 1 = the mean image's in the same region",
    "contrast kept": "Contrast kept, 1 = as in the input",
    "pattern kept": "Contrast kept where it was, 1 = as in the input",
}
"""Of the panels, in their order."""

_COLOURS = {DETECTED: PALETTE[2], UNDETECTED: PALETTE[1], OBJECT: PALETTE[2]}


def measure(subject: Subject, *, threshold: Share = 0.5, num_shown: AnyNumber = 3) -> Result:
    """The error and the contrast kept in each region, by stage.

    Labels: ``model``, ``stage`` (or ``mean image``), ``region``: ``detected`` and ``undetected`` (of detectors),
    ``object`` (all of them), ``background``; ``metric``: ``mse``, ``relative mse`` (in units of the mean image's
    mean error in the same region), ``contrast kept`` and ``pattern kept`` (standard deviation and covariance
    within the region in units of the input's, see :func:`~backsight.metrics.contrast_kept`). Crowds are in no region.

    Args:
        threshold: the least score with which an object counts as detected.
        num_shown: how many images are kept as pictures: the first ones with every region.
    """
    measurements, pictures = _measure(subject, threshold), _pictures(subject, threshold, num_shown)
    settings = {"threshold": threshold, "num_shown": num_shown}
    return subject.result("abstraction", measurements, pictures, settings, baseline_notes(subject))


def _measure(subject: Subject, threshold: float) -> Iterator[Measurement]:
    def values(batch: Batch) -> dict[tuple[str, str, str], Tensor]:
        known: dict[tuple[str, str, str], Tensor] = {}
        nothing = subject.baseline.against(batch)
        for region, mask in divide(subject, batch, threshold).items():
            known["mse", region, MEAN_IMAGE] = mse(nothing, batch.images, mask)
            for stage in subject.stages:
                images = subject.reconstruct(batch, stage)
                known["mse", region, stage] = torch.stack([mse(each, batch.images, mask) for each in images])
                kept = [contrast_kept(batch.images, each, mask) for each in images]
                for name, parts in zip(("contrast kept", "pattern kept"), zip(*kept, strict=True), strict=True):
                    known[name, region, stage] = torch.stack(parts)
        return known

    found_values = subject.gather(values)
    for (metric, region, stage), each in found_values.items():
        labels = {"region": region, "stage": stage}
        yield Measurement({**labels, "metric": metric}, each)
        if metric == "mse":
            unit = found_values["mse", region, MEAN_IMAGE].nanmean().clamp(min=1e-12)
            yield Measurement({**labels, "metric": "relative mse"}, each / unit)


def divide(subject: Subject, batch: Batch, threshold: float) -> dict[str, Tensor]:
    """The regions of every image of a batch, ``B H W`` bool each. A pixel of several objects is of a detected one if
    any of them is detected; what only a crowd covers is in no region."""
    size, targets = subject.model.pixels.size, batch.targets
    objects = [object_masks(target, size) for target in targets]
    anything = torch.stack([masks.any(0) for masks in objects])
    crowds = torch.stack([object_masks(replace(target, crowd=~target.crowd), size).any(0) for target in targets])
    regions = {OBJECT: anything, BACKGROUND: ~anything & ~crowds}
    if subject.model.spec.task == "detect":
        answers = detections_of(subject, batch)
        chosen = [found(each, t, threshold)[~t.crowd] for each, t in zip(answers, targets, strict=True)]
        seen = torch.stack([masks[which].any(0) for masks, which in zip(objects, chosen, strict=True)])
        regions = {DETECTED: seen, UNDETECTED: anything & ~seen, **regions}
    regions = {name: mask.to(batch.images.device) for name, mask in regions.items()}
    return regions if batch.valid is None else {name: mask & batch.valid for name, mask in regions.items()}


def _pictures(subject: Subject, threshold: float, num_shown: int) -> Iterator[Picture]:
    """The first images that have every region, as the first seed paints them, the objects outlined in the input."""
    num_left = num_shown
    for batch in subject.batches:
        regions = divide(subject, batch, threshold)
        complete = torch.stack([mask.flatten(1).any(1) for mask in regions.values()]).all(0)
        for row in complete.nonzero().flatten().tolist()[:num_left]:
            masks = {region: mask[row] for region, mask in regions.items()}
            shown = {INPUT: _outlined(batch.images[row], masks)}
            shown |= {stage: subject.reconstruct(batch, stage)[0, row] for stage in subject.stages}
            for stage, picture in shown.items():
                yield Picture({"image": batch.ids[row], "stage": stage}, batch.cut(row, picture))
            num_left -= 1
        if num_left <= 0:
            return


def _outlined(image: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
    width = max(1, round(min(image.shape[-2:]) / 96))
    for region in (OBJECT,) if DETECTED not in masks else (DETECTED, UNDETECTED):
        image = outline(image, masks[region], _COLOURS[region], width)
    return image


def draw(result: Result) -> Pages:
    """For each model a panel for each metric, in it a line for each region over the stages, and the pictures."""
    parts: list[Part] = []
    detectors = {card["model"] for card in result.subjects if card["task"] == "detect"}
    for model in models_of(result):
        panels = [Panel(title, _lines(result, model, metric)) for metric, title in TITLES.items()]
        parts.append(panel_part([panel for panel in panels if panel.table], heading=title_of(result, model)))
        what = "objects outlined in green"
        if model in detectors:
            what = "detected objects outlined in green, undetected ones in red"
        heading = f"Input ({what}) and reconstructions of the first seed"
        parts += picture_parts([replace(pictures_of(result, model, "image"), heading=heading)])
    return pages(parts)


def _lines(result: Result, model: str, metric: str) -> dict[str, list[ErrorPoint]]:
    """A line for each region; all objects together only where it is not known which of them are detected."""
    regions = {region: {"region": region} for region in (DETECTED, UNDETECTED, OBJECT, BACKGROUND)}
    lines = named_lines(result, regions, model=model, metric=metric)
    if DETECTED in lines or UNDETECTED in lines:
        lines.pop(OBJECT, None)
    return lines


ABSTRACTION = Experiment(
    "abstraction",
    "Does what is not detected fade with depth?",
    measure,
    draw,
    needs=("masks",),
    reading=(
        "Errors and contrast inside detected objects, undetected ones and background, stage by stage. A region that "
        "fades before others is what the inverse cannot read there any more; that the model has dropped it needs a "
        "probe as well."
    ),
)
"""Paper, Fig. 12."""
