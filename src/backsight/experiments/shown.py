"""From measurements to what figures show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from backsight.figures.lines import ErrorPoint
from backsight.results import Measurement


def points(measurements: Sequence[Measurement], along: str, names: Mapping[str, str] | None = None) -> list[ErrorPoint]:
    """A point for each measurement that has an answer, its place named by the label ``along``.

    Args:
        measurements: of one line.
        along: the label that differs between them.
        names: what to write for values of this label, where it is not the value itself.
    """
    answered = [each for each in measurements if each.known().numel()]
    values = [str(each.labels[along]) for each in answered]
    return [
        ErrorPoint((names or {}).get(value, value), each.known().mean(1).tolist(), each.interval())
        for value, each in zip(values, answered, strict=True)
    ]
