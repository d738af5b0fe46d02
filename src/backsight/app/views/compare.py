"""Compare: two pictures, two models, or both, stage by stage and on one scale."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from backsight.app.answers import told
from backsight.app.eyes import Eyes, Seen
from backsight.app.frames import frame
from backsight.app.markup import answer_list, card_line, picture, sheet, tag, text
from backsight.app.observatory import Observatory
from backsight.app.pictures import answered, picture_uri
from backsight.app.state import MEAN, SPREAD, Compare
from backsight.app.views.base import View, describe
from backsight.app.views.change import LARGEST_DIFFERENCE, difference_cell
from backsight.figures import colour_map, difference, grid, to_png


@dataclass(frozen=True)
class Side:
    """A model, what it looks at, and the letter by which the page names both."""

    letter: str
    eyes: Eyes
    seen: Seen
    picture: str


def compare(observatory: Observatory, state: Compare) -> View:
    """The view of ``state``; where neither another picture nor another model is named, the next example is compared.

    Raises:
        UserError: a model, picture or seed that is not there.
    """
    state = filled(observatory, state)
    chosen = [("A", state.model, state.picture), ("B", state.also or state.model, state.other or state.picture)]
    sides = [_side(observatory, *each) for each in chosen]
    heads = tag("div", *(_head(side) for side in sides), class_="pair")
    stages = tag("div", text("h3", "Every stage, on one scale"), _stages(sides, state.shows), _legend(sides))
    body = tag("article", heads, stages, class_="eyes")
    return View(state, body, lambda: _numbers(sides), lambda: _plate(sides, state.shows))


def filled(observatory: Observatory, state: Compare) -> Compare:
    """The state with what was left open: the first model and example, and another example to compare with."""
    state = replace(state, model=state.model or observatory.choose("").name)
    state = replace(state, picture=state.picture or observatory.examples[0])
    if state.other or state.also not in ("", state.model):
        return state
    return replace(state, other=next((each for each in observatory.examples if each != state.picture), state.picture))


def _side(observatory: Observatory, letter: str, model: str, name: str) -> Side:
    eyes = observatory.choose(model)
    return Side(letter, eyes, eyes.see(observatory.source(name, eyes)), name)


def _numbers(sides: list[Side]) -> dict[str, Any]:
    return {side.letter: {"picture": side.picture, **describe(side.eyes, side.seen)} for side in sides}


def _head(side: Side) -> str:
    image = answered(side.eyes, side.seen)
    lines = told(side.eyes.answer(side.seen))
    shown = picture(picture_uri(image), f"Picture {side.picture}", (image.shape[-2], image.shape[-1]))
    words = tag("figcaption", text("b", side.letter), text("span", f" {side.picture}"))
    says = "It detects" if side.eyes.model.spec.task == "detect" else "It says"
    facts = [text("h2", side.eyes.name), card_line(side.eyes.card()), text("h3", says), answer_list(lines)]
    return tag("figure", shown, words) + tag("div", *facts, class_="facts")


def _stages(sides: list[Side], shows: str) -> str:
    columns = list(dict.fromkeys(stage for side in sides for stage in side.eyes.stages))
    rows = {
        side.letter: {name: frame(side.eyes, side.seen, name, shows).cell(" ") for name in side.eyes.stages}
        for side in sides
    }
    rows["A − B"] = {name: difference_cell(values) for name, values in _differences(sides, shows).items()}
    return sheet(
        {title: row for title, row in rows.items() if row}, columns, "Reconstructions from every stage, A and B"
    )


def _differences(sides: list[Side], shows: str) -> dict[str, Tensor]:
    """Where the reconstructions of both differ, ``H W`` by stage: of stages that both have, at the same size."""
    one, other = sides
    shown = MEAN if shows == SPREAD else shows
    found = {}
    for name in one.eyes.stages:
        if name in other.eyes.stages:
            images = [frame(side.eyes, side.seen, name, shown).image for side in sides]
            if images[0].shape == images[1].shape:
                found[name] = difference(*images)
    return found


def _legend(sides: list[Side]) -> str:
    worst = max(side.eyes.baseline(side.seen) for side in sides)
    words = (
        "Under each picture: its mean squared error; the bar is full where an inverse that knows nothing would be "
        f"({worst:.4f} at most). Under each map: the root mean square of the difference; its scale ends at "
        f"{LARGEST_DIFFERENCE}."
    )
    return text("p", words, class_="soft legend")


def _plate(sides: list[Side], shows: str) -> bytes:
    columns = list(dict.fromkeys(stage for side in sides for stage in side.eyes.stages))
    rows: list[list[Tensor | None]] = []
    captions = []
    for side in sides:
        found = {name: frame(side.eyes, side.seen, name, shows) for name in side.eyes.stages}
        images = [found[name].image if name in found else None for name in columns]
        rows.append([answered(side.eyes, side.seen), *images])
        weights = "random weights" if side.eyes.card()["random"] else side.picture
        captions.append([weights, *(f"{found[name].error:.4f}" if name in found else "" for name in columns)])
    maps = _differences(sides, shows)
    if maps:
        rows.append([None, *(colour_map(maps[name], LARGEST_DIFFERENCE) if name in maps else None for name in columns)])
        captions.append([""] * (1 + len(columns)))
    labels = [f"{side.letter} {side.eyes.name}" for side in sides] + ["A − B"] * bool(maps)
    return to_png(grid(rows, ["picture", *columns], labels, captions))
