"""What a linear probe is given of a stage: a vector an image, about a region of it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from backsight.core import Layout
from backsight.engine import StagedModel, Trace


def read_features(model: StagedModel, trace: Trace, stage: str, region: Tensor) -> Tensor:
    """``B F`` about ``region`` ``B H W`` (bool).

    On a grid: the tokens' mean weighted by how much of the region they cover, level by level, and the prefix
    tokens. Object queries have no place: the query whose box covers the region best, beside the mean and the maximum
    over all queries.
    """
    layout, features = model.layout(stage), trace[stage]
    if not layout.grids:
        return torch.cat([_best_query(trace, features, region), features.mean(1), features.amax(1)], 1)
    return torch.cat([features[:, : layout.prefix].flatten(1), *_pooled(features, layout, region)], 1)


def _pooled(features: Tensor, layout: Layout, region: Tensor) -> list[Tensor]:
    start, pooled = layout.prefix, []
    for h, w in layout.grids:
        cover = functional.adaptive_avg_pool2d(region[:, None].float(), (h, w)).flatten(2)
        share = cover / cover.sum(2, keepdim=True).clamp(min=1e-9)
        pooled.append((share @ features[:, start : start + h * w])[:, 0])
        start += h * w
    return pooled


def _best_query(trace: Trace, features: Tensor, region: Tensor) -> Tensor:
    """The features of the query whose box overlaps the box around the region most, ``B D``."""
    from torchvision.ops import box_convert, box_iou

    boxes = box_convert(trace["prediction"][..., -4:].clamp(0, 1), "cxcywh", "xyxy")
    chosen = [box_iou(around[None], own)[0].argmax() for around, own in zip(_around(region), boxes, strict=True)]
    return features[torch.arange(len(features)), torch.stack(chosen)]


def _around(region: Tensor) -> Tensor:
    """The box around each region, ``B 4`` (x0, y0, x1, y1 in 0..1); the whole image where it is empty."""
    ends = []
    for axis in (1, 2):
        occupied = region.any(axis)
        occupied = occupied | ~occupied.any(1, keepdim=True)
        length = occupied.shape[1]
        first, last = occupied.float().argmax(1), length - occupied.flip(1).float().argmax(1)
        ends += [first / length, last / length]
    left, right, top, bottom = ends
    return torch.stack([left, top, right, bottom], 1)
