"""From a result to the parts of its figure: lines of measurements, tables of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from backsight.figures import Block, ErrorPoint
from backsight.results import MEAN_IMAGE, Label, Measurement, Result

FEWEST = 5
"""Images below which an interval is not drawn: it would be wider than the figure."""


def title_of(result: Result, model: str) -> str:
    """The model's name as figures show it: it says so where the weights are random."""
    random = any(subject.get("random") for subject in result.subjects if subject.get("model") == model)
    return f"{model}, random weights" if random else model


def models_of(result: Result) -> list[str]:
    """The models of a result, without controls."""
    controls = {card["model"] for card in result.subjects if card.get("control")}
    return [str(model) for model in result.values_of("model") if model not in controls]


def lines_of(result: Result, along: str = "stage", **labels: Label) -> dict[str, list[ErrorPoint]]:
    """For every model with an answer its line, controls left out: the measurements that carry ``labels``, a point for
    each ``along``."""
    models = {title_of(result, model): {"model": model} for model in models_of(result)}
    return named_lines(result, models, along, None, **labels)


def named_lines(
    result: Result,
    lines: Mapping[str, Mapping[str, Label]],
    along: str = "stage",
    names: Mapping[str, str] | None = None,
    **labels: Label,
) -> dict[str, list[ErrorPoint]]:
    """Lines of the measurements that carry ``labels``, and the labels of the line's own; :func:`points` has the other
    arguments. A line without an answer is left out."""
    found = {name: points(result.select(**labels, **own), along, names) for name, own in lines.items()}
    return {name: line for name, line in found.items() if line}


def points(measurements: Sequence[Measurement], along: str, names: Mapping[str, str] | None = None) -> list[ErrorPoint]:
    """A point for each measurement that has an answer, its place named by the label ``along``; that of the mean image
    is no place.

    Args:
        measurements: of one line.
        along: the label that differs between them.
        names: what to write for values of this label, where it is not the value itself.
    """
    answered = [each for each in measurements if each.known().numel() and each.labels.get("stage") != MEAN_IMAGE]
    values = [str(each.labels[along]) for each in answered]
    sure = [each.stated is not None or each.known().shape[1] >= FEWEST for each in answered]
    return [
        ErrorPoint((names or {}).get(value, value), each.known().mean(1).tolist(), each.interval() if known else None)
        for value, each, known in zip(values, answered, sure, strict=True)
    ]


def pictures_of(result: Result, model: str, down: str, across: str = "stage", **labels: Label) -> Block:
    """The pictures of a model that carry ``labels``: a row for each value of the label ``down``, a column for each of
    ``across``, in order of appearance."""
    places = {(each.labels[down], each.labels[across]): each.image for each in result.shown(model=model, **labels)}
    rows, columns = (list(dict.fromkeys(place[axis] for place in places)) for axis in (0, 1))
    names = [f"image {row + 1}" if isinstance(row, int) else str(row) for row in rows]
    table = [[places.get((row, column)) for column in columns] for row in rows]
    return Block(title_of(result, model), [str(column) for column in columns], names, table)
