"""The page in gradio: a tab for each view, controls on one side and the view on the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from backsight.app.diagnose import KIND_NAMES
from backsight.app.rendering import part
from backsight.app.state import MEAN, SPREAD, VIEWS, Change, Compare, Diagnose, Look, State
from backsight.app.workspace import Workspace
from backsight.metrics import OUTCOMES
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
NOISES = [("noise", "uniform"), ("zero", "zero"), ("swap", "swap")]

SHARED = ("picture", "other", "at", "brush", "tokens", "case")
"""Values that the page's script writes, and that stay when the view changes."""

PAUSE = 0.2
"""Seconds between two steps of the search for errors, in which others have their turn."""


@dataclass
class Tab:
    """One tab: the ``kind`` of its state, the component that holds each field of it, where the view goes (``body``),
    and what else it has, by name.

    ``opened`` is a hidden value that the page's script writes when the visitor comes to the tab (gradio's own event
    comes when the page is loaded too, and would overtake what the address has), or when it has written one of the
    values that all tabs share: only the tab that is seen is rendered again.
    """

    kind: type[State]
    controls: dict[str, Any]
    body: gr.HTML
    opened: gr.HTML
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def outputs(self) -> list[Any]:
        """All that an event of this tab may set."""
        return [*self.controls.values(), self.body, *self.extra.values()]

    def state(self, values: Sequence[Any]) -> Any:
        """The state that the values of all controls, in their order, make."""
        given = {name: value for name, value in zip(self.controls, values, strict=True) if value is not None}
        return self.kind(**given)


def build_tabs(workspace: Workspace) -> tuple[gr.Tabs, list[Tab]]:
    """The whole page but for its events: the masthead, and a tab for each view."""
    _html(part("masthead"))
    shared = {name: _hidden(name) for name in SHARED}
    opened = {view: _hidden(f"open-{view}") for view in VIEWS}
    builders = {Look: _look_tab, Change: _change_tab, Compare: _compare_tab, Diagnose: _diagnose_tab}
    with gr.Tabs(selected=Look.view, elem_id="views") as tabs:
        built = [build(workspace, shared, opened[kind.view]) for kind, build in builders.items()]
    return tabs, built


def _look_tab(workspace: Workspace, shared: dict[str, gr.HTML], opened: gr.HTML) -> Tab:
    with _tab(Look):
        with _left():
            _chooser(workspace, "picture")
            model, also = _model_choice(workspace), _second_model(workspace, "Beside it", "no other model")
            shows = _seed_choice(workspace)
            threshold = gr.Slider(0, 1, 0.5, step=0.05, label="Least score of a detection", buttons=[])
        with _right():
            stop, body = _stop_button(), _html(elem_id=Look.view)
    controls = {"picture": shared["picture"], "model": model, "also": also, "shows": shows}
    controls |= {"threshold": threshold, "at": shared["at"]}
    return Tab(Look, controls, body, opened, {"stop": stop})


def _change_tab(workspace: Workspace, shared: dict[str, gr.HTML], opened: gr.HTML) -> Tab:
    with _tab(Change):
        with _left():
            _chooser(workspace, "picture")
            model, shows = _model_choice(workspace), _seed_choice(workspace)
            with gr.Row(elem_classes="undo"):
                undo, reset = gr.Button("Undo", size="md"), gr.Button("Reset", size="md")
        with _right():
            with gr.Row(elem_classes="tools"):
                history = gr.State(())
                with gr.Column(elem_classes="tool"):
                    _html("<h2>Recolour</h2>")
                    choices = [(words, name) for name, words in COLOURS.items() if name in FILTERS]
                    colour = gr.Radio(choices, value="none", label="Colour")
                    where = _following_choice("where", [("the whole picture", "all")], "Where")
                    colour_editor = _html()
                with gr.Column(elem_classes="tool"):
                    _html("<h2>Replace tokens</h2>")
                    noise = gr.Radio(NOISES, value="uniform", label="By")
                    stage = _following_choice("stage", [(each, each) for each in workspace.model("").grids], "At stage")
                    token_editor = _html()
            with gr.Column(visible=False, elem_classes="other") as other:
                _chooser(workspace, "other", "Swap with the tokens of")
            stop, body = _stop_button(), _html(elem_id=Change.view)
    controls = {"picture": shared["picture"], "other": shared["other"], "model": model, "shows": shows}
    controls |= {"colour": colour, "where": where, "brush": shared["brush"]}
    controls |= {"stage": stage, "noise": noise, "tokens": shared["tokens"]}
    extra = {"colour_editor": colour_editor, "token_editor": token_editor, "other": other, "history": history}
    return Tab(Change, controls, body, opened, {**extra, "stop": stop, "undo": undo, "reset": reset})


def _compare_tab(workspace: Workspace, shared: dict[str, gr.HTML], opened: gr.HTML) -> Tab:
    with _tab(Compare):
        with _left():
            _chooser(workspace, "picture", "Picture A")
            model = _model_choice(workspace, "Model A")
            _chooser(workspace, "other", "Picture B")
            also = _second_model(workspace, "Model B", "the same model")
            shows = _seed_choice(workspace)
        with _right():
            stop, body = _stop_button(), _html(elem_id=Compare.view)
    controls = {"picture": shared["picture"], "other": shared["other"], "model": model, "also": also, "shows": shows}
    return Tab(Compare, controls, body, opened, {"stop": stop})


def _diagnose_tab(workspace: Workspace, shared: dict[str, gr.HTML], opened: gr.HTML) -> Tab:
    classes = workspace.diagnosis("").classes if workspace.detectors else []
    with _tab(Diagnose):
        with _left():
            model = _model_choice(workspace, "Detector", workspace.detectors)
            kinds = [("all", ""), *((KIND_NAMES[kind], kind) for kind in OUTCOMES)]
            kind = gr.Dropdown(kinds, value="", label="Type of error", filterable=False)
            choices = [("all", ""), *((name, name) for name in classes)]
            label = gr.Dropdown(choices, value="", label="Class", filterable=False)
            progress = _html()
            run, stop = gr.Button("Look through the pictures"), gr.Button("Stop", interactive=False)
        with _right():
            timer = gr.Timer(PAUSE, active=False)
            body = _html(elem_id=Diagnose.view)
    controls = {"model": model, "kind": kind, "label": label, "case": shared["case"]}
    extra = {"progress": progress, "run": run, "stop_search": stop, "timer": timer}
    return Tab(Diagnose, controls, body, opened, extra)


# ---- pieces


@contextmanager
def _tab(kind: type[State]) -> Iterator[None]:
    with gr.Tab(kind.view.capitalize(), id=kind.view), gr.Row(elem_classes="page"):
        yield


def _left() -> gr.Column:
    return gr.Column(elem_classes="controls", scale=0, min_width=280)


def _right() -> gr.Column:
    return gr.Column(elem_classes="stage")


def _html(content: str = "", **options: Any) -> gr.HTML:
    return gr.HTML(content, apply_default_css=False, **options)


def _hidden(name: str) -> gr.HTML:
    """A value that the page's script writes, by an event ``put``: the user sees it in another way."""
    listen = "element.addEventListener('put', (event) => { props.value = event.detail; trigger('input'); });"
    return _html(html_template="", js_on_load=listen, elem_id=name, elem_classes="value")


def _chooser(workspace: Workspace, target: str, title: str = "Picture") -> None:
    """Where a picture is chosen, dropped, pasted or taken; its name goes to the hidden value ``target``."""
    _html(part("chooser", workspace.examples, target, title))


def _stop_button() -> gr.Button:
    """Stops long work on a view; the style sheet shows it only while there is some."""
    return gr.Button("Stop", size="md", elem_classes="stop")


def _model_choice(workspace: Workspace, label: str = "Model", among: Sequence[str] | None = None) -> gr.Dropdown:
    names = list(among or workspace.models)
    return gr.Dropdown(names, value=names[0], label=label, filterable=False)


def _second_model(workspace: Workspace, label: str, none: str) -> gr.Dropdown:
    choices = [(none, ""), *((name, name) for name in workspace.models)]
    return gr.Dropdown(choices, value="", label=label, filterable=False)


def _following_choice(name: str, choices: list[tuple[str, str]], label: str) -> gr.Dropdown:
    """Choices that follow from the image and the model: a value that is not among them is set back, not refused."""
    value = choices[0][1] if choices else None
    choice = gr.Dropdown(choices, value=value, label=label, filterable=False, elem_id=name)
    choice.preprocess = lambda payload: payload
    return choice


def _seed_choice(workspace: Workspace) -> gr.Radio:
    """Which seed's reconstruction to show, their mean, or where they disagree."""
    seeds = sorted({seed for model in workspace.models.values() for seed in model.seeds})
    several = any(len(model.seeds) > 1 for model in workspace.models.values())
    choices = [("mean", MEAN), *((str(seed), str(seed)) for seed in seeds), *([("spread", SPREAD)] if several else [])]
    return gr.Radio(choices, value=MEAN, label="Seed of the inverses")
