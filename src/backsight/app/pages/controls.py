"""What visitors set: gradio's controls, and the panel that a picture is chosen in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from backsight.app.markup import picture, tag, text
from backsight.app.observatory import Observatory
from backsight.app.pictures import picture_uri
from backsight.app.state import MEAN, SPREAD, State

THUMBNAIL = 60
"""Pixels on the page."""


@dataclass
class Page:
    """One tab: the ``kind`` of its state, the component that holds each field of it, and where the view goes.

    A field without a component (the layer under the slider, say) is kept by the browser in the address alone.
    """

    kind: type[State]
    controls: dict[str, Any]
    body: gr.HTML
    extra: list[Any] = field(default_factory=list)
    undo: gr.Button | None = None
    reset: gr.Button | None = None
    timer: gr.Timer | None = None
    history: gr.State | None = None
    stop: gr.Button | None = None

    @property
    def everything(self) -> list[Any]:
        """All that an event of this page may set."""
        others = [each for each in (self.history,) if each is not None]
        return [*self.controls.values(), self.body, *self.extra, *others]

    def state(self, values: Sequence[Any]) -> State:
        """The state that the values of all controls, in their order, make."""
        given: dict[str, Any] = {
            name: value for name, value in zip(self.controls, values, strict=True) if value is not None
        }
        return self.kind(**given)


_LISTENS = "element.addEventListener('put', (event) => { props.value = event.detail; trigger('input'); });"


def hidden(name: str) -> gr.HTML:
    """A value that the page's script writes, by an event ``put``: the user sees it in another way."""
    return gr.HTML(
        "", html_template="", js_on_load=_LISTENS, apply_default_css=False, elem_id=name, elem_classes="value"
    )


def stop_button() -> gr.Button:
    """Stops long work on a view; the style sheet shows it only while there is some."""
    return gr.Button("Stop", size="md", elem_classes="stop")


def model_choice(observatory: Observatory, label: str = "Model", among: Sequence[str] = ()) -> gr.Dropdown:
    """Which of the models to look through."""
    names = list(among or observatory.eyes)
    return gr.Dropdown(names, value=names[0], label=label, filterable=False)


def second_model_choice(
    observatory: Observatory, label: str = "Beside it", none: str = "no other model"
) -> gr.Dropdown:
    """Which other model to show beside the first; at first ``none``."""
    names = [(none, ""), *((name, name) for name in observatory.eyes)]
    return gr.Dropdown(names, value="", label=label, filterable=False)


def seed_choice(observatory: Observatory) -> gr.Radio:
    """Which seed's reconstruction to show, their mean, or where they disagree."""
    seeds = sorted({seed for eyes in observatory.eyes.values() for seed in eyes.seeds})
    many = any(len(eyes.seeds) > 1 for eyes in observatory.eyes.values())
    choices = [("mean", MEAN), *((str(seed), str(seed)) for seed in seeds), *([("spread", SPREAD)] if many else [])]
    return gr.Radio(choices, value=MEAN, label="Seed of the inverses")


def picture_panel(thumbnails: Mapping[str, str], target: str, title: str = "Picture") -> gr.HTML:
    """Where a picture is chosen, dropped, pasted or taken; its name goes to the hidden value ``target``."""
    buttons = [
        tag(
            "button", picture(address, "", (THUMBNAIL, THUMBNAIL)),
            type="button", aria_label=f"Example {name}", aria_pressed="false", data_picture=name,
        )
        for name, address in thumbnails.items()
    ]  # fmt: skip
    chooser = tag(
        "label",
        tag("b", "Choose a picture"),
        text("span", "or drop or paste one"),
        tag("input", type="file", accept="image/*", data_file_input=True),
        class_="drop",
    )
    camera = text("button", "Camera", type="button", data_camera=True, hidden=True)
    take = text("button", "Take it", type="button", data_shoot=True)
    close = text("button", "Close", type="button", data_close=True)
    video = tag("div", tag("video", playsinline=True, muted=True), take, close, class_="camera", hidden=True)
    said = text("p", "", class_="said", role="alert", hidden=True)
    parts = [text("h3", title), chooser, camera, video, said, tag("div", *buttons, class_="examples")]
    return gr.HTML(tag("div", *parts, class_="chooser", data_for=target), apply_default_css=False)


def thumbnails(observatory: Observatory) -> dict[str, str]:
    """The examples by name, each as its own address."""
    found = {}
    for name in observatory.examples:
        eyes = observatory.first(name.rpartition("/")[0])
        found[name] = picture_uri(observatory.source(name, eyes).image)
    return found
