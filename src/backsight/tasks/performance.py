"""How well a forward model does its own task: the number that stands beside the error of every reconstruction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from backsight.core import Classes, Detections
from backsight.data import Batch, Target
from backsight.engine import StagedModel
from backsight.metrics import average_precision
from backsight.tasks.joint import GROUND_TRUTH, NUM_CHECKED


@torch.no_grad()
def performance(
    model: StagedModel, batches: Iterable[Batch], gather: Callable[[Any], list[Any]] = lambda found: [found]
) -> dict[str, float]:
    """``AP`` of a detector (boxes, as COCO counts) or ``accuracy`` of a classifier (top-1) on ``batches``, in [0, 1].

    Empty where the model predicts nothing, or nothing is known of the first images. The accuracy is over the images
    whose class is known. Where several processes have some batches each, ``gather`` gives what all have found.
    """
    if model.spec.task not in GROUND_TRUTH:
        return {}
    detections: list[Detections] = []
    targets: list[Target] = []
    right = known = blank = 0
    for batch in batches:
        if not batch.ids:
            continue
        if not any(target.label is not None or len(target.labels) for target in batch.targets):
            blank += len(batch.ids)
            if blank > NUM_CHECKED and not targets and not known:
                break
        found = model.predict(model.answer(batch.images, (), batch.valid))
        if isinstance(found, Classes):
            pairs = list(zip(found.top().tolist(), batch.targets, strict=True))
            right += sum(top == target.label for top, target in pairs)
            known += sum(target.label is not None for _, target in pairs)
        else:
            detections += found
            targets += batch.targets
    parts = gather((right, known, [_on_cpu(each) for each in detections], targets))
    right, known = (sum(part[place] for part in parts) for place in (0, 1))
    if known:
        return {"accuracy": right / known}
    detections, targets = ([each for part in parts for each in part[place]] for place in (2, 3))
    precision = average_precision(detections, targets)["AP"] if detections else math.nan
    return {} if math.isnan(precision) else {"AP": precision}


def _on_cpu(found: Detections) -> Detections:
    return Detections(found.boxes.cpu(), found.scores.cpu(), found.classes.cpu(), found.labels)
