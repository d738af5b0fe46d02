"""What a model says of a picture, in words and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from backsight.core import Classes, Detections

NUM_CLASSES = 5
"""How many classes of a classifier are told, the likeliest first."""


@dataclass(frozen=True)
class Line:
    """One thing that is said: a class, how sure of it the model is (0..1), and the ``box`` (x0, y0, x1, y1 in pixels
    of the model's input) of a detection."""

    name: str
    score: float
    box: tuple[float, ...] | None = None


def told(answer: Classes | Detections | None, threshold: float = 0.5) -> list[Line]:
    """The answer for one picture, surest first: detections of at least ``threshold``, or the likeliest classes."""
    if isinstance(answer, Detections):
        sure = answer.above(threshold)
        rows = zip(sure.classes.tolist(), sure.scores.tolist(), sure.boxes.tolist(), strict=True)
        lines = [Line(_name(answer.labels, label), score, tuple(box)) for label, score, box in rows]
        return sorted(lines, key=lambda line: -line.score)
    if isinstance(answer, Classes):
        scores, labels = answer.logits[0].softmax(-1).topk(min(NUM_CLASSES, answer.logits.shape[-1]))
        rows = zip(labels.tolist(), scores.tolist(), strict=True)
        return [Line(_name(answer.labels, label), score) for label, score in rows]
    return []


def as_json(lines: list[Line]) -> list[dict[str, Any]]:
    """The same for a file, rounded."""
    return [
        {
            **asdict(line),
            "score": round(line.score, 4),
            "box": None if line.box is None else [round(corner, 2) for corner in line.box],
        }
        for line in lines
    ]


def _name(labels: Mapping[int, str], label: int) -> str:
    return labels.get(label, f"class {label}")
