"""The page Change: what to recolour, which tokens to replace, undo and reset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from backsight.app.boards import colour_board, token_board
from backsight.app.changes import places, settled
from backsight.app.observatory import Observatory
from backsight.app.pages.controls import Page, model_choice, picture_panel, seed_choice, stop_button
from backsight.app.state import Change
from backsight.perturb import FILTERS

COLOURS = {
    "none": "as it is",
    "red": "red",
    "green": "green",
    "blue": "blue",
    "rotate120": "hue + 120°",
    "rotate240": "hue + 240°",
    "grey": "grey",
}
NOISE_WORDS = [("noise", "uniform"), ("zero", "zero"), ("swap", "swap")]


def build(observatory: Observatory, shared: Mapping[str, gr.HTML], thumbnails: Mapping[str, str]) -> Page:
    """The controls of Change: pictures on the left; what to change, and the view, on the right."""
    with gr.Tab("Change", id=Change.view), gr.Row(elem_classes="page"):
        with gr.Column(elem_classes="controls", scale=0, min_width=280):
            picture_panel(thumbnails, "picture")
            model = model_choice(observatory)
            shows = seed_choice(observatory)
            with gr.Row(elem_classes="undo"):
                undo, reset = gr.Button("Undo", size="md"), gr.Button("Reset", size="md")
        with gr.Column(elem_classes="stage"):
            with gr.Row(elem_classes="tools"):
                history = gr.State(())
                colour, where, colours = _colour_tools()
                stage, noise, tokens = _token_tools(observatory)
            with gr.Column(visible=False, elem_classes="other") as other:
                picture_panel(thumbnails, "other", "Swap with the tokens of")
            stop = stop_button()
            body = gr.HTML(apply_default_css=False, elem_id="change")
    controls: dict[str, Any] = {
        **{name: shared[name] for name in ("picture", "other")},
        **{"model": model, "shows": shows, "colour": colour, "where": where, "brush": shared["brush"]},
        **{"stage": stage, "noise": noise, "tokens": shared["tokens"]},
    }
    return Page(Change, controls, body, [colours, tokens, other], undo=undo, reset=reset, history=history, stop=stop)


def _colour_tools() -> tuple[gr.Radio, gr.Dropdown, gr.HTML]:
    with gr.Column(elem_classes="tool"):
        gr.HTML("<h2>Recolour</h2>", apply_default_css=False)
        choices = [(words, name) for name, words in COLOURS.items() if name in FILTERS]
        colour = gr.Radio(choices, value="none", label="Colour")
        where = gr.Dropdown([("the whole picture", "all")], value="all", label="Where", filterable=False)
        return colour, where, gr.HTML(apply_default_css=False)


def _token_tools(observatory: Observatory) -> tuple[gr.Dropdown, gr.Radio, gr.HTML]:
    with gr.Column(elem_classes="tool"):
        gr.HTML("<h2>Replace tokens</h2>", apply_default_css=False)
        noise = gr.Radio(NOISE_WORDS, value="uniform", label="By")
        stages = list(observatory.choose("").grids)
        stage = gr.Dropdown(stages, value=next(iter(stages), None), label="At stage", filterable=False)
        return stage, noise, gr.HTML(apply_default_css=False)


def follow(observatory: Observatory, page: Page, state: Change, shown: Change | None) -> tuple[Change, dict[Any, Any]]:
    """The state made consistent, and what its controls and boards are to show, where that is other than in ``shown``.

    What is as the visitor set it is left alone: they may have gone on meanwhile, and a board keeps the keyboard's
    place.
    """
    fixed = settled(observatory, state)
    updates: dict[Any, Any] = {page.extra[2]: gr.Column(visible=fixed.noise == "swap")}
    if _other(fixed, shown, "picture", "model"):
        eyes = observatory.choose(fixed.model)
        choices = [(words, name) for name, words in places(eyes, observatory.source(fixed.picture, eyes))]
        updates[page.controls["where"]] = gr.Dropdown(choices, value=fixed.where)
        updates[page.controls["stage"]] = gr.Dropdown(list(eyes.grids), value=fixed.stage)
    if fixed.tokens != state.tokens:
        updates[page.controls["tokens"]] = fixed.tokens
    if _other(fixed, shown, "picture", "model", "where"):
        updates[page.extra[0]] = colour_board(observatory, fixed)
    if _other(fixed, shown, "picture", "model", "stage") or fixed.tokens != state.tokens:
        updates[page.extra[1]] = token_board(observatory, fixed)
    return fixed, updates


def _other(state: Change, shown: Change | None, *names: str) -> bool:
    return shown is None or any(getattr(shown, name) != getattr(state, name) for name in names)
