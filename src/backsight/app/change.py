"""Change: the same image before and after it was recoloured, or its tokens replaced, and what the model predicts."""

from __future__ import annotations

from typing import Any

from backsight.app.edits import BRUSH, BRUSHED, EVERYWHERE, apply, complete, region_of, regions
from backsight.app.rendering import (
    LARGEST_DIFFERENCE,
    FigureRow,
    Row,
    View,
    annotated,
    describe,
    difference_cell,
    differences,
    embed,
    part,
    reconstructions,
    weights_in_words,
)
from backsight.app.state import Change, read_cells
from backsight.app.workspace import Workspace
from backsight.figures import outline

MARK = "#e69f00"
"""Of the outline of what is recoloured."""


def change(workspace: Workspace, state: Change) -> View:
    """The pass over an image before and after ``state`` is applied.

    Raises:
        UserError: it names what is not there.
    """
    state = complete(workspace, state)
    model, edited = workspace.model(state.model), apply(workspace, state)
    before, after = (model, edited.before), (model, edited.after)
    changes = changes_in_words(workspace, state)

    def rows() -> dict[str, Row]:
        first = reconstructions(*before, state.shows)
        if edited.after is edited.before:
            return {"now": first}
        second = reconstructions(*after, state.shows, reference=edited.before)
        return {"before": first, "after": second, "difference": differences(before, after, state.shows)}

    def context() -> dict[str, Any]:
        return {
            "model": model,
            "unlike": model.unlike(edited.before),
            "changes": "; ".join(changes) or "nothing is changed yet",
            "images": [embed(annotated(*each)) for each in (before, after)],
            "answers": [model.answers(each) for each in (edited.before, edited.after)],
            "rows": rows(),
            "largest_difference": LARGEST_DIFFERENCE,
        }

    def numbers() -> dict[str, Any]:
        described = {"before": describe(*before), "after": describe(*after, reference=edited.before)}
        return {"picture": state.picture, "changes": changes, **described}

    def figure() -> list[FigureRow]:
        images = [each.without_padding(each.image.cpu()) for each in (edited.before, edited.after)]
        moved = difference_cell("", *images)
        pictures = [(annotated(*before), weights_in_words(model)), (annotated(*after), ""), (moved.image, moved.text)]
        return [FigureRow(title, *each, row) for each, (title, row) in zip(pictures, rows().items(), strict=False)]

    return View(state, [before, after], context, numbers, figure)


def changes_in_words(workspace: Workspace, state: Change) -> list[str]:
    """What was changed, in words; nothing if nothing was."""
    model = workspace.model(state.model)
    words = []
    if state.colour != "none":
        known = dict(regions(model, workspace.image(state.picture, model)))
        words.append(f"{state.colour}: {known[state.where]}")
    if state.tokens:
        count = int(read_cells(state.tokens, model.grids[state.stage]).sum())
        words.append(f"{state.noise} at {state.stage}: {count} token{'s' if count > 1 else ''}")
    return words


# ---- the mask editors: an image under a grid whose cells are chosen


def token_editor(workspace: Workspace, state: Change) -> str:
    """The image under the grid of tokens of a stage; what is chosen goes to the hidden value ``tokens``."""
    model = workspace.model(state.model)
    image = embed(workspace.image(state.picture, model).pixels)
    rows, columns = model.grids[state.stage]
    words = f"Tokens of {state.stage}: {rows} rows, {columns} columns"
    return part("mask_editor", "tokens", image, (rows, columns), state.tokens, words, ["All", "None", "Invert"])


def colour_editor(workspace: Workspace, state: Change) -> str:
    """The image with what is recoloured outlined; under the brush, a grid that is painted on."""
    model = workspace.model(state.model)
    source = workspace.image(state.picture, model)
    if state.where == BRUSHED:
        words, buttons = "Where to recolour: paint", ["None", "Invert"]
        return part("mask_editor", "brush", embed(source.pixels), BRUSH, state.brush, words, buttons)
    image, words = source.pixels, "all of it is recoloured"
    if state.where != EVERYWHERE:
        image = outline(image, region_of(model, source, state), MARK, width=max(1, source.size[1] // 96))
        words = "what is recoloured is outlined"
    return part("recoloured_region", embed(model.run(source).without_padding(image)), words)
