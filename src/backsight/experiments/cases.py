"""The cases of a batch: every detection that counts and every object that is missed, with its place in the image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from backsight.core import Classes, Detections, valid_sizes
from backsight.data import Batch, Target
from backsight.experiments.objects import fill_boxes, object_masks
from backsight.experiments.queries import find_queries, prediction_of
from backsight.experiments.subject import Subject
from backsight.metrics import Finding, find_errors, surroundings


@dataclass(frozen=True)
class Case:
    """One detection or missed object.

    Attributes:
        row: which image of the batch.
        finding: what became of it.
        mask: ``H W``, bool: of the object that it is about, else the detection's box.
        ring: ``H W``, bool: the surroundings of ``mask``.
        query: which query detected it; None where it was missed, or where the model has no queries.
        truth: box of the object (x0, y0, x1, y1 in pixels) and its label, None where there is none.
        said: the detection's box, label and score, None where it was missed.
    """

    row: int
    finding: Finding
    mask: Tensor
    ring: Tensor
    query: int | None
    truth: tuple[Tensor, int] | None
    said: tuple[Tensor, int, float] | None

    @property
    def boxes(self) -> Tensor:
        """``1 4`` or ``2 4``: the object's and the detection's, as far as there are."""
        return torch.stack([each[0] for each in (self.truth, self.said) if each is not None])

    @cached_property
    def window(self) -> tuple[slice, slice]:
        """(rows, columns) that hold mask and ring: nothing else has to be looked at."""
        anything = self.mask | self.ring
        rows, columns = (anything.any(axis).nonzero().flatten().tolist() or [0] for axis in (1, 0))
        return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def detections_of(subject: Subject, batch: Batch) -> list[Detections]:
    """What the model detects in each image of one of the subject's batches, on the CPU.

    Raises:
        TypeError: the model classifies.
    """
    answers = subject.model.predict(subject.trace(batch))
    if isinstance(answers, Classes):
        raise TypeError(f"{subject.name} classifies: it detects nothing")
    return [Detections(a.boxes.cpu(), a.scores.cpu(), a.classes.cpu(), a.labels) for a in answers]


def find_cases(subject: Subject, batch: Batch, threshold: float) -> list[Case]:
    """All cases of a batch, image by image; ``threshold`` is the least score of a detection that counts."""
    prediction = prediction_of(subject.model)
    queries = None if prediction is None else subject.trace(batch)[prediction]
    valid = batch.shown
    cases = []
    for row, (target, found) in enumerate(zip(batch.targets, detections_of(subject, batch), strict=True)):
        own = None if queries is None else find_queries(found, queries[row], valid_sizes(valid)[row])
        cases += _cases_of(row, target, found, own, valid[row].cpu(), threshold)
    return cases


def _cases_of(
    row: int, target: Target, found: Detections, queries: Tensor | None, valid: Tensor, threshold: float
) -> Iterator[Case]:
    size = (valid.shape[0], valid.shape[1])
    masks = object_masks(replace(target, crowd=torch.zeros_like(target.crowd)), size)  # crowds as well
    for finding in find_errors(found, target, threshold):
        index, about = finding.detection, finding.truth
        said = None if index is None else (found.boxes[index], int(found.classes[index]), float(found.scores[index]))
        truth = None if about is None else (target.boxes[about], int(target.labels[about]))
        others = torch.arange(len(masks)) != (-1 if about is None else about)
        # Who is wrong in both means no object in particular: what counts is the place that the detection names.
        if about is not None and finding.outcome != "both":
            mask = masks[about]
        else:
            mask, others = fill_boxes(found.boxes[[index]], size)[0] & valid, torch.ones_like(others)
        ring = surroundings(mask[None], masks[others].any(0) | ~valid)[0]
        query = None if queries is None or index is None else int(queries[index])
        yield Case(row, finding, mask, ring, query, truth, said)
