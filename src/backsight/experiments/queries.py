"""Which object query of a detector a detection comes from, and what is reconstructed without it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from backsight.core import Detections, Layout
from backsight.data import Batch
from backsight.engine import StagedModel
from backsight.experiments.subject import Subject

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
