"""Look: an image, what the model predicts, and what is left of it at every stage and layer."""

from __future__ import annotations

from typing import Any

from backsight.app.model_view import ForwardPass, ModelView
from backsight.app.rendering import FigureRow, View, annotated, describe, embed, reconstructions, weights_in_words
from backsight.app.state import Look
from backsight.app.workspace import Workspace


def look(workspace: Workspace, state: Look) -> View:
    """One image through one model or two.

    Raises:
        UserError: a model, image, layer or seed that is not there.
    """
    state = workspace.with_first_choices(state)
    models = [workspace.model(name) for name in dict.fromkeys((state.model, state.also or state.model))]
    passes = [(model, model.run(workspace.image(state.picture, model))) for model in models]

    def numbers() -> dict[str, Any]:
        described = [describe(model, forward, state.threshold) for model, forward in passes]
        return {"picture": state.picture, "threshold": state.threshold, "models": described}

    def figure() -> list[FigureRow]:
        return [
            FigureRow(
                model.name,
                annotated(model, forward, state.threshold),
                weights_in_words(model),
                reconstructions(model, forward, state.shows),
            )
            for model, forward in passes
        ]

    return View(state, passes, lambda: {"models": [_context(*each, state) for each in passes]}, numbers, figure)


def _context(model: ModelView, forward: ForwardPass, state: Look) -> dict[str, Any]:
    layers = reconstructions(model, forward, state.shows, model.layers)
    return {
        "model": model,
        "forward": forward,
        "answers": model.answers(forward, state.threshold),
        "annotated": embed(annotated(model, forward, state.threshold)),
        "original": embed(forward.without_padding(forward.image.cpu())),
        "layers": layers,
        "at": layers[state.at if state.at in layers else model.stages[-1]],
        "baseline": model.baseline(forward),
    }
