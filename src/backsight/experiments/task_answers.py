"""How well a forward model does its own task: right classes, found objects, average precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from backsight.core import Classes, UserError
from backsight.data import Batch
from backsight.engine import StagedModel, Trace
from backsight.experiments.subject import Subject
from backsight.metrics import average_precision, share_found
from backsight.results import Label, Measurement

NEEDS = {"classify": "labels", "detect": "boxes"}
"""What data must have for a model's task to be measured."""


def measure_task(
    subject: Subject, trace: Callable[[Batch], Trace], labels: Mapping[str, Label], model: StagedModel | None = None
) -> list[Measurement]:
    """The task of ``model`` (the subject's own by default) on the passes that ``trace`` gives of every batch.

    ``metric`` is added to ``labels``: ``accuracy`` of a classifier, 0 or 1 for each image; of a detector ``found``, the
    share of each image's objects that are found (score and overlap of 0.5 at least, the right class), and ``AP``,
    one number for all images. Nothing is returned where the data has no answers, or the model gives none.
    """
    if not _has_answers(subject):
        return []
    model = model or subject.model
    answers = [model.predict(trace(batch)) for batch in subject.batches]
    targets = [target for batch in subject.batches for target in batch.targets]
    if isinstance(answers[0], Classes):
        tops = torch.cat([each.top() for each in answers if isinstance(each, Classes)]).tolist()
        pairs = zip(tops, targets, strict=True)
        right = [math.nan if target.label is None else float(top == target.label) for top, target in pairs]
        return [Measurement({**labels, "metric": "accuracy"}, torch.tensor([right], dtype=torch.float64))]
    detections = [each for found in answers if not isinstance(found, Classes) for each in found]
    shares = [share_found(each, target) for each, target in zip(detections, targets, strict=True)]
    precision = average_precision(detections, targets)["AP"]
    return [
        Measurement({**labels, "metric": "found"}, torch.tensor([shares], dtype=torch.float64)),
        Measurement({**labels, "metric": "AP"}, torch.tensor([[precision]], dtype=torch.float64)),
    ]


def _has_answers(subject: Subject) -> bool:
    task = subject.model.spec.task
    try:
        subject.require(*[NEEDS[task]] if task in NEEDS else [])
    except UserError:
        return False
    return task in NEEDS
