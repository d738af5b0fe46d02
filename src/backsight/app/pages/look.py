"""The page Look."""

from __future__ import annotations

from collections.abc import Mapping

import gradio as gr

from backsight.app.observatory import Observatory
from backsight.app.pages.controls import (
    Page,
    model_choice,
    picture_panel,
    second_model_choice,
    seed_choice,
    stop_button,
)
from backsight.app.state import Look


def build(observatory: Observatory, shared: Mapping[str, gr.HTML], thumbnails: Mapping[str, str]) -> Page:
    """The controls of Look on the left, its view on the right."""
    with gr.Tab("Look", id=Look.view), gr.Row(elem_classes="page"):
        with gr.Column(elem_classes="controls", scale=0, min_width=280):
            picture_panel(thumbnails, "picture")
            model = model_choice(observatory)
            also = second_model_choice(observatory)
            shows = seed_choice(observatory)
            threshold = gr.Slider(0, 1, 0.5, step=0.05, label="Least score of a detection", buttons=[])
        with gr.Column(elem_classes="stage"):
            stop = stop_button()
            body = gr.HTML(apply_default_css=False, elem_id="look")
    controls = {
        "picture": shared["picture"],
        "model": model,
        "also": also,
        "shows": shows,
        "threshold": threshold,
        "at": shared["at"],
    }
    return Page(Look, controls, body, stop=stop)
