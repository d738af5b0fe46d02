"""The page Compare."""

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
from backsight.app.state import Compare


def build(observatory: Observatory, shared: Mapping[str, gr.HTML], thumbnails: Mapping[str, str]) -> Page:
    """The controls of Compare on the left, both sides on the right."""
    with gr.Tab("Compare", id=Compare.view), gr.Row(elem_classes="page"):
        with gr.Column(elem_classes="controls", scale=0, min_width=280):
            picture_panel(thumbnails, "picture", "Picture A")
            model = model_choice(observatory, "Model A")
            picture_panel(thumbnails, "other", "Picture B")
            also = second_model_choice(observatory, "Model B", "the same model")
            shows = seed_choice(observatory)
        with gr.Column(elem_classes="stage"):
            stop = stop_button()
            body = gr.HTML(apply_default_css=False, elem_id="compare")
    pictures = {name: shared[name] for name in ("picture", "other")}
    return Page(Compare, {**pictures, "model": model, "also": also, "shows": shows}, body, stop=stop)
