"""Compare: two images, two models, or both, stage by stage and on one scale."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from backsight.app.model_view import ForwardPass, ModelView
from backsight.app.rendering import (
    LARGEST_DIFFERENCE,
    DifferenceMap,
    View,
    annotated,
    describe,
    difference_map,
    embed,
    reconstruction,
    unless_spread,
)
from backsight.app.session import Session
from backsight.app.state import Compare
from backsight.figures import grid, to_png


@dataclass(frozen=True)
class Side:
    """A model, its pass over an image, and the letter by which the page names both."""

    letter: str
    model: ModelView
    forward: ForwardPass
    picture: str


def complete(session: Session, state: Compare) -> Compare:
    """The state with what was left open: the first model and example, and another example to compare with."""
    state = replace(state, model=session.model(state.model).name, picture=state.picture or session.examples[0])
    if state.other or state.also not in ("", state.model):
        return state
    return replace(state, other=session.other_example(state.picture))


def passes(session: Session, state: Compare) -> list[tuple[ModelView, ForwardPass]]:
    """The passes that the view shows.

    Raises:
        UserError: a model or image that is not there.
    """
    return [(side.model, side.forward) for side in _sides(session, complete(session, state))]


def compare(session: Session, state: Compare) -> View:
    """The view of ``state``; where neither another image nor another model is named, the next example is compared.

    Raises:
        UserError: a model, image or seed that is not there.
    """
    state = complete(session, state)
    sides = _sides(session, state)
    stages = list(dict.fromkeys(stage for side in sides for stage in side.model.stages))
    rows: dict[str, Any] = {side.letter: _reconstructions(side, state.shows) for side in sides}
    differences = _differences(sides, state.shows)
    context = {
        "sides": [(side, embed(annotated(side.model, side.forward))) for side in sides],
        "stages": stages,
        "rows": rows | ({"A − B": differences} if differences else {}),
        "baseline": max(side.model.baseline(side.forward) for side in sides),
        "largest_difference": LARGEST_DIFFERENCE,
    }
    return View(state, context, lambda: _numbers(sides), lambda: _draw(sides, stages, state.shows))


def _sides(session: Session, state: Compare) -> list[Side]:
    chosen = [("A", state.model, state.picture), ("B", state.also or state.model, state.other or state.picture)]
    sides = []
    for letter, name, picture in chosen:
        model = session.model(name)
        sides.append(Side(letter, model, model.run(session.image(picture, model)), picture))
    return sides


def _reconstructions(side: Side, shows: str) -> dict[str, Any]:
    return {name: reconstruction(side.model, side.forward, name, shows) for name in side.model.stages}


def _differences(sides: list[Side], shows: str) -> dict[str, DifferenceMap]:
    """Where the reconstructions of both differ, by stage: of stages that both have, at the same size."""
    one, other = (_reconstructions(side, unless_spread(shows)) for side in sides)
    found = {name: difference_map(one[name].image, other[name].image) for name in one if name in other}
    return {name: each for name, each in found.items() if each is not None}


def _numbers(sides: list[Side]) -> dict[str, Any]:
    return {side.letter: {"picture": side.picture, **describe(side.model, side.forward)} for side in sides}


def _draw(sides: list[Side], stages: list[str], shows: str) -> bytes:
    rows: list[list[Tensor | None]] = []
    captions = []
    for side in sides:
        found = _reconstructions(side, shows)
        images = [found[name].image if name in found else None for name in stages]
        rows.append([annotated(side.model, side.forward), *images])
        weights = "random weights" if side.model.card()["random"] else side.picture
        captions.append([weights, *(f"{found[name].error:.4f}" if name in found else "" for name in stages)])
    maps = _differences(sides, shows)
    if maps:
        rows.append([None, *(maps[name].image if name in maps else None for name in stages)])
        captions.append([""] * (1 + len(stages)))
    labels = [f"{side.letter} {side.model.name}" for side in sides] + ["A − B"] * bool(maps)
    return to_png(grid(rows, ["picture", *stages], labels, captions))
