"""The page Diagnose: which errors to show, and the work that finds them, which can be watched and stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from backsight.app.markup import tag, text
from backsight.app.observatory import Observatory
from backsight.app.pages.controls import Page, model_choice
from backsight.app.state import Diagnose
from backsight.app.views.diagnose import WORDS, diagnosis_of
from backsight.metrics import OUTCOMES

PAUSE = 0.2
"""Seconds between two parts of the work, in which others have their turn."""


def build(observatory: Observatory, shared: Mapping[str, gr.HTML], _: Mapping[str, str]) -> Page:
    """The controls of Diagnose on the left, the gallery on the right."""
    with gr.Tab("Diagnose", id=Diagnose.view), gr.Row(elem_classes="page"):
        with gr.Column(elem_classes="controls", scale=0, min_width=280):
            model = model_choice(observatory, "Detector", observatory.detectors)
            kind = gr.Dropdown(_kinds(), value="", label="Type of error", filterable=False)
            label = gr.Dropdown(_labels(observatory, ""), value="", label="Class", filterable=False)
            progress = gr.HTML(apply_default_css=False)
            run, stop = gr.Button("Look through the pictures"), gr.Button("Stop", interactive=False)
        with gr.Column(elem_classes="stage"):
            timer = gr.Timer(PAUSE, active=False)
            body = gr.HTML(apply_default_css=False, elem_id="diagnose")
    controls: dict[str, Any] = {"model": model, "kind": kind, "label": label, "case": shared["case"]}
    return Page(Diagnose, controls, body, [progress, run, stop], timer=timer)


def _kinds() -> list[tuple[str, str]]:
    return [("all", ""), *((WORDS[kind], kind) for kind in OUTCOMES)]


def _labels(observatory: Observatory, model: str) -> list[tuple[str, str]]:
    if not observatory.detectors:
        return [("all", "")]
    names = diagnosis_of(observatory, Diagnose(model=model)).labels()
    return [("all", ""), *((name, name) for name in names)]


def progress_of(observatory: Observatory, state: Diagnose) -> str:
    """How many pictures were looked at, in words and as a bar."""
    diagnosis = diagnosis_of(observatory, state)
    words = f"{diagnosis.num_done} of {diagnosis.num_images} pictures looked at"
    meter = tag("progress", max=diagnosis.num_images, value=diagnosis.num_done, aria_label=words)
    return tag("div", meter, text("p", words, class_="soft", role="status"), class_="progress")
