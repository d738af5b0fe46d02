"""A line for every model: what most figures of experiments are made of."""

from __future__ import annotations

from backsight.experiments.shown import points
from backsight.figures import ErrorPoint
from backsight.results import Label, Result


def title_of(result: Result, model: str) -> str:
    """The model's name as figures show it: it says so where the weights are random."""
    random = any(subject.get("random") for subject in result.subjects if subject.get("model") == model)
    return f"{model}, random weights" if random else model


def lines_of(result: Result, along: str = "stage", **labels: Label) -> dict[str, list[ErrorPoint]]:
    """For every model with an answer its line: the measurements that carry ``labels``, a point for each ``along``."""
    found = {model: points(result.select(model=model, **labels), along) for model in result.values_of("model")}
    return {title_of(result, model): line for model, line in found.items() if line}
