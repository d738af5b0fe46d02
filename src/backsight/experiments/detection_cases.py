"""The cases of a batch: every detection that counts and every missed object, with its place and its object query."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest

import torch
from torch import Tensor

from backsight.core import Classes, Detections, Layout, valid_sizes
from backsight.data import Batch, ImageData, Target
from backsight.data.loader import read_chunks
from backsight.engine import StagedModel
from backsight.experiments.objects import fill_boxes, object_masks
from backsight.experiments.subject import Subject
from backsight.metrics import Finding, find_errors, surroundings


@dataclass(frozen=True, eq=False)
class Case:
    """One detection or missed object.

    Attributes:
        row: which image of the batch.
        finding: what became of it.
        mask: ``H W``, bool: of the object that it is about, else the detection's box.
        ring: ``H W``, bool: the surroundings of ``mask``.
        query: which query detected it; None where it was missed, or where the model has no queries.
        truth: box of the object (x0, y0, x1, y1 in pixels) and its label, None where there is none.
        answer: the detection's box, label and score, None where it was missed.
    """

    row: int
    finding: Finding
    mask: Tensor
    ring: Tensor
    query: int | None
    truth: tuple[Tensor, int] | None
    answer: tuple[Tensor, int, float] | None

    @property
    def boxes(self) -> Tensor:
        """``1 4`` or ``2 4``: the object's and the detection's, as far as there are."""
        return torch.stack([each[0] for each in (self.truth, self.answer) if each is not None])

    @cached_property
    def window(self) -> tuple[slice, slice]:
        """(rows, columns) that hold mask and ring: the measurements need nothing else."""
        anything = self.mask | self.ring
        rows, columns = (anything.any(axis).nonzero().flatten().tolist() or [0] for axis in (1, 0))
        return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def detections_of(subject: Subject, batch: Batch) -> list[Detections]:
    """What the model detects in each image of one of the subject's batches, on the CPU.

    Raises:
        TypeError: the model classifies.
    """
    return on_cpu(subject.model.predict(subject.trace(batch)))


def on_cpu(answers: Classes | Sequence[Detections]) -> list[Detections]:
    """The answers of a detector, on the CPU.

    Raises:
        TypeError: they are those of a classifier.
    """
    if isinstance(answers, Classes):
        raise TypeError("a classifier detects nothing")
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


ERRORS = ("class", "location", "both", "background", "missed")
"""What counts as an error where images are chosen by it: a duplicate shows nothing that its better one does not."""


@dataclass(frozen=True)
class Search:
    """The indices of images with errors, by type, and how many images were looked through."""

    found: Mapping[str, Sequence[int]]
    looked: int

    def choose(self, count: int) -> list[int]:
        """``count`` images in order: of each type in turn the next one, the rarest type first; where there are not
        enough, the first images of all fill up."""
        rarest = sorted(self.found.values(), key=len)
        turns = [index for turn in zip_longest(*rarest) for index in turn if index is not None]
        return sorted(list(dict.fromkeys([*turns, *range(self.looked)]))[:count])


@torch.no_grad()
def search_errors(
    model: StagedModel, data: ImageData, among: int, threshold: float, enough: int, batch_size: int = 50
) -> Search:
    """Look through the first ``among`` images for those in which a detector errs, until there are ``enough`` with each
    type of error."""
    total, looked = min(among, len(data)), 0
    found: dict[str, list[int]] = {outcome: [] for outcome in ERRORS}
    chunks = [range(start, min(start + batch_size, total)) for start in range(0, total, batch_size)]
    for chunk, batch in zip(chunks, read_chunks(data, chunks, workers=0, device=model.device), strict=True):
        readable = chunk if len(batch.ids) == len(chunk) else [index for index in chunk if data[index] is not None]
        answers = on_cpu(model.predict(model.run(batch.images, valid=batch.valid))) if batch.ids else []
        for index, answer, target in zip(readable, answers, batch.targets, strict=True):
            outcomes = {each.outcome for each in find_errors(answer, target, threshold)}
            for outcome in outcomes & found.keys():
                found[outcome].append(index)
        looked = chunk.stop
        if all(len(each) >= enough for each in found.values()):
            break
    return Search(found, looked)


def _cases_of(
    row: int, target: Target, found: Detections, queries: Tensor | None, valid: Tensor, threshold: float
) -> Iterator[Case]:
    size = (valid.shape[0], valid.shape[1])
    masks = object_masks(replace(target, crowd=torch.zeros_like(target.crowd)), size)  # crowds as well
    for finding in find_errors(found, target, threshold):
        index, about = finding.detection, finding.truth
        answer = None if index is None else (found.boxes[index], int(found.classes[index]), float(found.scores[index]))
        truth = None if about is None else (target.boxes[about], int(target.labels[about]))
        others = torch.arange(len(masks)) != (-1 if about is None else about)
        # Who is wrong in both means no object in particular: what counts is the place that the detection names.
        if about is not None and finding.outcome != "both":
            mask = masks[about]
        else:
            mask, others = fill_boxes(found.boxes[[index]], size)[0] & valid, torch.ones_like(others)
        ring = surroundings(mask[None], masks[others].any(0) | ~valid)[0]
        query = None if queries is None or index is None else int(queries[index])
        yield Case(row, finding, mask, ring, query, truth, answer)


# ---- object queries

BY_QUERY = ("brought by query", "painted by query", "painted elsewhere")
"""What is measured by silencing the query of a detection: labels ``metric``."""


def prediction_of(model: StagedModel) -> str | None:
    """The stage whose features are the logits and boxes of every query; None for models that have none."""
    return next((stage.name for stage in model.spec.stages if stage.classes), None)


def query_stages(subject: Subject) -> list[str]:
    """The stages that the chains invert whose tokens are the queries of the prediction."""
    prediction = prediction_of(subject.model)
    if prediction is None:
        return []
    num_queries = subject.model.layout(prediction).tokens
    layouts = {stage: subject.model.layout(stage) for stage in subject.stages}
    return [stage for stage, layout in layouts.items() if not layout.grids and layout.tokens == num_queries]


def find_queries(detections: Detections, prediction: Tensor, size: tuple[int, int]) -> Tensor:
    """The query of each detection: the one with its box, as libraries' answers do not keep their queries.

    Args:
        detections: of one image, boxes in pixels.
        prediction: of the same image, ``Q D``: logits and box (cx, cy, w, h in 0..1) of every query.
        size: of the image, (H, W).

    Returns:
        An index in 0..Q-1 for each detection, int64.
    """
    from torchvision.ops import box_convert

    boxes = box_convert(prediction[:, -4:].cpu().double(), "cxcywh", "xyxy")
    unit = torch.tensor([size[1], size[0]] * 2, dtype=torch.float64)
    return torch.cdist(detections.boxes.cpu().double() / unit, boxes, p=1).argmin(1)


def object_scores(prediction: Tensor, layout: Layout) -> Tensor:
    """How sure each query is of any object: ``... Q D`` (logits and boxes) -> ``... Q`` in [0, 1]."""
    logits = prediction[..., : layout.classes]
    if layout.scores == "sigmoid":
        return logits.sigmoid().amax(-1)
    return logits.softmax(-1)[..., :-1].amax(-1)


def reconstruct_without(
    subject: Subject, batch: Batch, stage: str, pairs: Sequence[tuple[int, int]]
) -> Iterator[Tensor]:
    """The reconstructions from ``stage`` once a query says nothing: its features are replaced by those of the query of
    the same image that is least sure of any object.

    Args:
        subject: whose chains reconstruct.
        batch: the images.
        stage: one of :func:`query_stages`.
        pairs: (image in the batch, query) to be silenced, one at a time.

    Yields:
        ``S 3 H W`` for each pair; as many at once pass the networks as the batch has images.
    """
    trace = subject.trace(batch)
    prediction = str(prediction_of(subject.model))
    emptiest = object_scores(trace[prediction], subject.model.layout(prediction)).argmin(1)
    features = trace[stage]
    for start in range(0, len(pairs), len(batch.ids)):
        rows, queries = torch.tensor(pairs[start : start + len(batch.ids)], device=features.device).unbind(1)
        silenced = features[rows]
        silenced[torch.arange(len(rows), device=rows.device), queries] = features[rows, emptiest[rows]]
        yield from subject.invert(silenced, stage).unbind(1)
