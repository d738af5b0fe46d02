"""Change: the same image before and after it was recoloured, or its tokens replaced, and what the model predicts."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from backsight.app.edits import BRUSH, BRUSHED, EVERYWHERE, Edited, apply, complete, region_of, regions
from backsight.app.model_view import ForwardPass, ModelView
from backsight.app.rendering import (
    LARGEST_DIFFERENCE,
    DifferenceMap,
    View,
    annotated,
    describe,
    difference_map,
    embed,
    part,
    reconstruction,
    unless_spread,
)
from backsight.app.session import Session
from backsight.app.state import Change, read_cells
from backsight.figures import grid, to_png
from backsight.figures.outlines import outline

MARK = "#e69f00"
"""Of the outline of what is recoloured."""


def passes(session: Session, state: Change) -> list[tuple[ModelView, ForwardPass]]:
    """The passes that the view shows.

    Raises:
        UserError: it names what is not there.
    """
    edited = apply(session, complete(session, state))
    return [(session.model(state.model), forward) for forward in (edited.before, edited.after)]


def change(session: Session, state: Change) -> View:
    """The view of ``state``.

    Raises:
        UserError: it names what is not there.
    """
    state = complete(session, state)
    model, edited = session.model(state.model), apply(session, state)
    changes = changes_in_words(session, state)

    def numbers() -> dict[str, Any]:
        after = describe(model, edited.after, reference=edited.before)
        return {"picture": state.picture, "changes": changes, "before": describe(model, edited.before), "after": after}

    both = [(forward, embed(annotated(model, forward))) for forward in (edited.before, edited.after)]
    context = {
        "model": model,
        "changes": "; ".join(changes),
        "images": [image for _, image in both],
        "answers": [model.answers(forward) for forward, _ in both],
        "rows": _rows(model, edited, state.shows),
        "largest_difference": LARGEST_DIFFERENCE,
    }
    return View(state, context, numbers, lambda: _draw(model, edited, state.shows))


def changes_in_words(session: Session, state: Change) -> list[str]:
    """What was changed, in words; nothing if nothing was."""
    model = session.model(state.model)
    words = []
    if state.colour != "none":
        known = dict(regions(model, session.image(state.picture, model)))
        words.append(f"{state.colour}: {known[state.where]}")
    if state.tokens:
        count = int(read_cells(state.tokens, model.grids[state.stage]).sum())
        words.append(f"{state.noise} at {state.stage}: {count} token{'s' if count > 1 else ''}")
    return words


def _rows(model: ModelView, edited: Edited, shows: str) -> dict[str, dict[str, Any]]:
    """What stands in each row, by stage."""
    before = {name: reconstruction(model, edited.before, name, shows) for name in model.stages}
    if edited.after is edited.before:
        return {"now": before}
    after = {name: reconstruction(model, edited.after, name, shows, edited.before) for name in model.stages}
    return {"before": before, "after": after, "difference": _differences(model, edited, shows)}


def _differences(model: ModelView, edited: Edited, shows: str) -> dict[str, DifferenceMap | None]:
    def shown(forward: ForwardPass, name: str) -> Tensor:
        return forward.without_padding(model.show_seeds(forward, name, unless_spread(shows)))

    return {name: difference_map(shown(edited.before, name), shown(edited.after, name)) for name in model.stages}


def _draw(model: ModelView, edited: Edited, shows: str) -> bytes:
    rows: list[list[Tensor | None]] = []
    captions = []
    for forward in (edited.before, edited.after):
        found = [reconstruction(model, forward, name, shows, edited.before) for name in model.stages]
        rows.append([annotated(model, forward), *(each.image for each in found)])
        captions.append(["", *(f"{each.error:.4f}" for each in found)])
    originals = [each.without_padding(each.image.cpu()) for each in (edited.before, edited.after)]
    maps = [difference_map(*originals), *_differences(model, edited, shows).values()]
    rows.append([each and each.image for each in maps])
    captions.append([f"{each.strength:.3f}" if each else "" for each in maps])
    weights = "random weights" if model.card()["random"] else ""
    titles = [" ".join(filter(None, [model.name, weights])), *model.stages]
    return to_png(grid(rows, titles, ["before", "after", "difference"], captions))


# ---- the mask editors: an image under a grid whose cells are chosen


def token_editor(session: Session, state: Change) -> str:
    """The image under the grid of tokens of a stage; what is chosen goes to the hidden value ``tokens``."""
    model = session.model(state.model)
    image = embed(session.image(state.picture, model).pixels)
    rows, columns = model.grids[state.stage]
    words = f"Tokens of {state.stage}: {rows} rows, {columns} columns"
    return part("mask_editor", "tokens", image, (rows, columns), state.tokens, words, ["All", "None", "Invert"])


def colour_editor(session: Session, state: Change) -> str:
    """The image with what is recoloured outlined; under the brush, a grid that is painted on."""
    model = session.model(state.model)
    source = session.image(state.picture, model)
    if state.where == BRUSHED:
        words, buttons = "Where to recolour: paint", ["None", "Invert"]
        return part("mask_editor", "brush", embed(source.pixels), BRUSH, state.brush, words, buttons)
    image, words = source.pixels, "all of it is recoloured"
    if state.where != EVERYWHERE:
        image = outline(image, region_of(model, source, state), MARK, width=max(1, source.size[1] // 96))
        words = "what is recoloured is outlined"
    return part("recoloured_region", embed(model.run(source).without_padding(image)), words)
