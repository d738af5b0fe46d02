"""What kind of mistake a detection is: the types of TIDE (Bolya et al., 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from backsight.core import Detections
from backsight.metrics.detection import OVERLAP, THRESHOLD, Objects, box_overlaps, match_objects

Outcome = Literal["correct", "class", "location", "both", "duplicate", "background", "missed"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
"""``correct``, and in which way a detection can be wrong: of its ``class``, its ``location`` or ``both``, a
``duplicate`` of a better one, or on mere ``background``; an object of which nothing is said is ``missed``."""

BACKGROUND = 0.1
"""A detection that overlaps with no object by more than this is on background (TIDE's t_b)."""


@dataclass(frozen=True)
class Finding:
    """What became of a detection, or of an object that was missed.

    ``detection`` is the detection's index, None for what was missed. ``truth`` is the index of the object that
    it finds, or means: None where it means none (``background``). ``overlap`` is their intersection over union.
    """

    outcome: Outcome
    detection: int | None
    truth: int | None
    overlap: float = 0.0


def find_errors(
    detections: Detections,
    truth: Objects,
    threshold: float = THRESHOLD,
    overlap: float = OVERLAP,
    background: float = BACKGROUND,
) -> list[Finding]:
    """Every detection's outcome, and the objects that were missed (Bolya et al., 2020, sec. 2.2).

    With ``t_f`` = ``overlap`` and ``t_b`` = ``background`` (of the least intersection over union of a detection with an
    object that it finds, or means), a detection of at least the score ``threshold`` that finds no object is of the type

    ==============  ========================================================================================
    ``location``    its overlap with an object of its class lies between ``t_b`` and ``t_f``
    ``class``       it overlaps by ``t_f`` with an object of another class
    ``duplicate``   it overlaps by ``t_f`` with an object of its class, which a surer detection has found
    ``background``  it overlaps with no object by more than ``t_b``
    ``both``        all that is left: between ``t_b`` and ``t_f`` with an object of another class
    ==============  ========================================================================================

    the first that applies, in this order. An object is ``missed`` if nothing finds it and no error of class or
    location is about it. A detection that lies by more than ``t_f`` in a crowd of its class has no outcome.

    Returns:
        The detections that count, surest first, then what was missed.
    """
    counted = (detections.scores.cpu() >= threshold).nonzero().flatten()
    chosen = detections.above(threshold)
    matched = match_objects(chosen, truth, overlap)
    overlaps = torch.where(truth.crowd.cpu(), 0.0, box_overlaps(chosen.boxes, truth.boxes))
    same = chosen.classes.cpu()[:, None] == truth.labels.cpu()
    ignored = _in_crowd(chosen, truth, overlap)
    findings = []
    for index in chosen.scores.argsort(descending=True, stable=True).tolist():
        if matched[index] >= 0:
            outcome, about = "correct", int(matched[index])
        elif ignored[index]:
            continue
        else:
            outcome, about = _error(overlaps[index], same[index], overlap, background)
        shared = 0.0 if about is None else float(overlaps[index, about])
        findings.append(Finding(outcome, int(counted[index]), about, shared))
    covered = {each.truth for each in findings if each.outcome in ("correct", "class", "location")}
    left = [index for index in (~truth.crowd).nonzero().flatten().tolist() if index not in covered]
    return findings + [Finding("missed", None, index) for index in left]


def _error(overlaps: Tensor, same: Tensor, overlap: float, background: float) -> tuple[Outcome, int | None]:
    """The type of one wrong detection and the object it means; ``overlaps`` and ``same`` (class) are ``n``."""
    if len(overlaps) == 0:
        return "background", None
    alike, alien = torch.where(same, overlaps, 0.0), torch.where(same, 0.0, overlaps)
    if background <= alike.max() < overlap:
        return "location", int(alike.argmax())
    if alien.max() >= overlap:
        return "class", int(alien.argmax())
    if alike.max() >= overlap:
        return "duplicate", int(alike.argmax())
    if overlaps.max() <= background:
        return "background", None
    return "both", int(overlaps.argmax())


def _in_crowd(detections: Detections, truth: Objects, overlap: float) -> Tensor:
    """``Q`` bool: whether more than ``overlap`` of a detection's own area lies in a crowd of its class."""
    boxes, crowds = detections.boxes.cpu(), truth.boxes.cpu()[truth.crowd.cpu()]
    low = torch.maximum(boxes[:, None, :2], crowds[:, :2])
    high = torch.minimum(boxes[:, None, 2:], crowds[:, 2:])
    areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
    inside = (high - low).clamp(min=0).prod(2) / areas.clamp(min=1e-9)[:, None]
    same = detections.classes.cpu()[:, None] == truth.labels.cpu()[truth.crowd.cpu()]
    return ((inside > overlap) & same).any(1)
