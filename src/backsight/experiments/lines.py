"""From the measurements of a result to the lines of a figure: a line for each model, a point for each measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from backsight.figures import ErrorPoint
from backsight.results import Label, Measurement, Result


def title_of(result: Result, model: str) -> str:
    """The model's name as figures show it: it says so where the weights are random."""
    random = any(subject.get("random") for subject in result.subjects if subject.get("model") == model)
    return f"{model}, random weights" if random else model


def lines_of(result: Result, along: str = "stage", **labels: Label) -> dict[str, list[ErrorPoint]]:
    """For every model with an answer its line: the measurements that carry ``labels``, a point for each ``along``."""
    found = {model: points(result.select(model=model, **labels), along) for model in result.values_of("model")}
    return {title_of(result, model): line for model, line in found.items() if line}


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
