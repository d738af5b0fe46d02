"""How good detections are: average precision, and which of the objects in an image are found.

Truths are anything with the ``boxes``, ``labels`` and ``crowd`` of :class:`Objects`, as the targets of every data set.
A crowd is a region of many: it need not be found, and what is detected inside it is neither right nor wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from backsight.core import Detections
from backsight.metrics.statistics import Interval, estimate

OVERLAP = 0.5
"""The least overlap (intersection over union) of a detection with the object that it finds."""

THRESHOLD = 0.5
"""The least score of a detection that counts, where detections are counted one by one."""

_FIGURES = {
    "AP": "map",
    "AP50": "map_50",
    "AP75": "map_75",
    "AP small": "map_small",
    "AP medium": "map_medium",
    "AP large": "map_large",
}


@runtime_checkable
class Objects(Protocol):
    """The objects of one image: ``boxes`` ``n 4`` (x0, y0, x1, y1 in pixels), ``labels`` and ``crowd`` (bool) ``n``."""

    @property
    def boxes(self) -> Tensor:
        """``n 4``, in pixels."""
        ...

    @property
    def labels(self) -> Tensor:
        """``n``, int64."""
        ...

    @property
    def crowd(self) -> Tensor:
        """``n``, bool."""
        ...


def average_precision(detections: Sequence[Detections], truths: Sequence[Objects]) -> dict[str, float]:
    """COCO's average precision of boxes, by faster-coco-eval behind torchmetrics.

    Pass all detections, however faint: the precision is averaged over every threshold of the score. Of each image
    the best hundred count. Truths are of the same images in the same order, boxes in the same pixels.

    Returns:
        In [0, 1], NaN where there is no such object: ``AP`` (over overlaps of 0.5 to 0.95), ``AP50``, ``AP75``, and
        ``AP small``, ``AP medium``, ``AP large`` (boxes of less than 32 x 32 pixels, less than 96 x 96, the others;
        pixels of the image as the model sees it).

    Raises:
        ValueError: there are not as many of the one as of the other.
    """
    import numpy
    from torchmetrics.detection import MeanAveragePrecision

    # The library's own recalls are of float32, and miss COCO's by rounding where one is an exact hundredth.
    recalls = numpy.linspace(0, 1, 101).tolist()
    metric = MeanAveragePrecision(
        box_format="xyxy", iou_type="bbox", rec_thresholds=recalls, backend="faster_coco_eval"
    )
    metric.warn_on_many_detections = False  # it would only say that the best hundred count
    for each, truth in zip(detections, truths, strict=True):
        answer = {"boxes": each.boxes.cpu(), "scores": each.scores.cpu(), "labels": each.classes.cpu()}
        known = {"boxes": truth.boxes.cpu(), "labels": truth.labels.cpu(), "iscrowd": truth.crowd.cpu().long()}
        metric.update([answer], [known])
    if not any(len(truth.labels) for truth in truths):
        return dict.fromkeys(_FIGURES, math.nan)
    computed = metric.compute()
    figures = {name: float(computed[key]) for name, key in _FIGURES.items()}
    return {name: value if value >= 0 else math.nan for name, value in figures.items()}


def average_precision_interval(
    detections: Sequence[Detections], truths: Sequence[Objects], groups: int = 10
) -> tuple[Interval, Tensor]:
    """``AP`` with its 95 % interval for new images, by a jackknife: it is computed again without each of some groups of
    images (every tenth one), and what each group adds scatters as images do (Efron and Tibshirani, 1993, chapter 11).

    Returns:
        The AP of all images with its interval (NaN where there are fewer than two), which lies about the mean of the
        pseudo-values: the AP of few images is too high on average, and that takes most of it away. And the
        pseudo-value of each group, ``groups``: of two conditions of the same images, their differences are paired.
    """
    whole = average_precision(detections, truths)["AP"]
    groups = min(groups, len(detections))
    if groups < 2 or math.isnan(whole):
        return Interval(whole, math.nan, math.nan), torch.full((max(groups, 1),), math.nan, dtype=torch.float64)
    without = []
    for left_out in range(groups):
        kept = [index for index in range(len(detections)) if index % groups != left_out]
        without.append(average_precision([detections[i] for i in kept], [truths[i] for i in kept])["AP"])
    pseudo = groups * whole - (groups - 1) * torch.tensor(without, dtype=torch.float64)
    known = pseudo[pseudo.isfinite()]
    if len(known) < 2:
        return Interval(whole, math.nan, math.nan), pseudo
    _, low, high = estimate(known).interval()
    return Interval(whole, max(0.0, low), min(1.0, high)), pseudo


def box_overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """The intersection over union of ``boxes`` ``Q 4`` and ``others`` ``n 4``: ``Q n`` in [0, 1], 0 for empty boxes;
    float64, on the CPU."""
    from torchvision.ops import box_iou

    return box_iou(boxes.cpu().double(), others.cpu().double()).nan_to_num(0.0)


def match_objects(detections: Detections, truth: Objects, overlap: float = OVERLAP) -> Tensor:
    """Which object of an image each detection finds, as COCO decides it.

    One after the other, the surest first, a detection takes the object of its class that it overlaps with most, among
    those that none has taken yet; ``overlap`` (above 0) is the least intersection over union. Crowds are never taken.

    Returns:
        The index of the object, -1 for none: ``Q``, int64.
    """
    taken = torch.full((len(detections.scores),), -1)
    allowed = (detections.classes.cpu()[:, None] == truth.labels.cpu()) & ~truth.crowd.cpu()
    free = box_overlaps(detections.boxes, truth.boxes) * allowed
    if free.numel() == 0:
        return taken
    for index in detections.scores.argsort(descending=True, stable=True).tolist():
        best = int(free[index].argmax())
        if free[index, best] >= overlap:
            taken[index] = best
            free[:, best] = 0
    return taken


def found(detections: Detections, truth: Objects, threshold: float = THRESHOLD, overlap: float = OVERLAP) -> Tensor:
    """Which objects of an image are found: by a detection of their class, with a score of at least ``threshold``, that
    overlaps with them by at least ``overlap``. ``n`` bool, False for crowds."""
    matched = match_objects(detections.above(threshold), truth, overlap)
    answer = torch.zeros(len(truth.labels), dtype=torch.bool)
    answer[matched[matched >= 0]] = True
    return answer


def share_found(
    detections: Detections, truth: Objects, threshold: float = THRESHOLD, overlap: float = OVERLAP
) -> float:
    """The share of an image's objects, crowds left out, that are :func:`found`, in [0, 1]; NaN without objects."""
    return float(found(detections, truth, threshold, overlap)[~truth.crowd.cpu()].double().mean())
