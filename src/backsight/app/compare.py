"""Compare: two images, two models, or both, stage by stage and on one scale."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from backsight.app.rendering import (
    LARGEST_DIFFERENCE,
    FigureRow,
    View,
    annotated,
    describe,
    differences,
    embed,
    reconstructions,
)
from backsight.app.state import Compare
from backsight.app.workspace import Workspace

DIFFERENCE = "A − B"


def compare(workspace: Workspace, state: Compare) -> View:
    """Two passes; where neither another image nor another model is named, the next example is compared.

    Raises:
        UserError: a model, image or seed that is not there.
    """
    state = workspace.with_first_choices(state)
    if not state.other and state.also in ("", state.model):
        state = replace(state, other=workspace.other_example(state.picture))
    models = [workspace.model(name) for name in (state.model, state.also or state.model)]
    pictures = [state.picture, state.other or state.picture]
    passes = [(each, each.run(workspace.image(name, each))) for each, name in zip(models, pictures, strict=True)]
    sides = dict(zip("AB", passes, strict=True))
    names = dict(zip("AB", pictures, strict=True))

    def context() -> dict[str, Any]:
        rows = {letter: reconstructions(*side, state.shows) for letter, side in sides.items()}
        maps = differences(passes[0], passes[1], state.shows)
        return {
            "sides": {letter: (*side, names[letter], embed(annotated(*side))) for letter, side in sides.items()},
            "stages": list(dict.fromkeys(stage for model in models for stage in model.stages)),
            "rows": rows | ({DIFFERENCE: maps} if maps else {}),
            "baseline": max(model.baseline(forward) for model, forward in passes),
            "largest_difference": LARGEST_DIFFERENCE,
        }

    def numbers() -> dict[str, Any]:
        return {letter: {"picture": names[letter], **describe(*side)} for letter, side in sides.items()}

    def figure() -> list[FigureRow]:
        rows = []
        for letter, (model, forward) in sides.items():
            caption = "random weights" if model.card()["random"] else names[letter]
            cells = reconstructions(model, forward, state.shows)
            rows.append(FigureRow(f"{letter} {model.name}", annotated(model, forward), caption, cells))
        maps = differences(passes[0], passes[1], state.shows)
        return rows + ([FigureRow(DIFFERENCE, None, "", maps)] if maps else [])

    return View(state, passes, context, numbers, figure)
