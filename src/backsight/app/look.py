"""Look: an image, what the model predicts, and what is left of it at every stage and layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from backsight.app.model_view import ForwardPass, ModelView
from backsight.app.rendering import View, annotated, describe, embed, reconstruction
from backsight.app.session import Session
from backsight.app.state import Look
from backsight.figures import grid, to_png


def passes(session: Session, state: Look) -> list[tuple[ModelView, ForwardPass]]:
    """The passes that the view shows: one image through one model or two.

    Raises:
        UserError: a model or image that is not there.
    """
    names = dict.fromkeys((state.model, state.also or state.model))
    models = [session.model(name) for name in names]
    return [(model, model.run(session.image(state.picture, model))) for model in models]


def look(session: Session, state: Look) -> View:
    """The view of ``state``.

    Raises:
        UserError: a model, image, layer or seed that is not there.
    """
    state = replace(state, model=session.model(state.model).name, picture=state.picture or session.examples[0])
    shown = passes(session, state)

    def numbers() -> dict[str, Any]:
        models = [describe(model, forward, state.threshold) for model, forward in shown]
        return {"picture": state.picture, "threshold": state.threshold, "models": models}

    context = {"models": [_one_model(model, forward, state) for model, forward in shown]}
    return View(state, context, numbers, lambda: _draw(shown, state))


def _one_model(model: ModelView, forward: ForwardPass, state: Look) -> dict[str, Any]:
    at = state.at if state.at in model.layers else model.stages[-1]
    layers = {name: reconstruction(model, forward, name, state.shows) for name in model.layers}
    return {
        "model": model,
        "answers": model.answers(forward, state.threshold),
        "annotated": embed(annotated(model, forward, state.threshold)),
        "original": embed(forward.without_padding(forward.image.cpu())),
        "layers": layers,
        "at": layers[at],
        "baseline": model.baseline(forward),
    }


def _draw(shown: list[tuple[ModelView, ForwardPass]], state: Look) -> bytes:
    columns = max((model.stages for model, _ in shown), key=len)
    rows: list[list[Tensor | None]] = []
    captions: list[list[str]] = []
    for model, forward in shown:
        found = [reconstruction(model, forward, name, state.shows) for name in model.stages]
        missing = len(columns) - len(found)
        card = model.card()
        weights = "random weights" if card["random"] else str(card["weights"])
        rows.append([annotated(model, forward, state.threshold), *(each.image for each in found), *[None] * missing])
        captions.append([weights, *(f"{each.name} {each.error:.4f}" for each in found), *[""] * missing])
    return to_png(grid(rows, ["picture", *columns], [model.name for model, _ in shown], captions))
