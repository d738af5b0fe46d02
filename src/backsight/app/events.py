"""What happens when something is set: the view is rendered again, for that visitor alone."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr
from starlette.requests import Request
from starlette.responses import JSONResponse

from backsight.app.change import colour_editor, token_editor
from backsight.app.edits import complete, regions
from backsight.app.page import Tab, build_tabs
from backsight.app.rendering import part
from backsight.app.security import replay
from backsight.app.state import LONGEST, Change, Diagnose, State, from_query, to_query
from backsight.app.views import error_message, reconstruct_ahead, render_html
from backsight.app.workspace import Workspace
from backsight.core import UserError

AT_ONCE = 2
"""Views that are rendered at the same time; other visitors wait in a queue."""

MOST_WAITING = 64
"""Events that wait; the rest is refused."""

MOST_STEPS = 50
"""Changes that can be undone."""

FOLLOWING = ("where", "stage")
"""Fields whose choices follow from the image and the model, and are set together with these."""

Updates = dict[Any, Any]


def build_page(workspace: Workspace) -> gr.Blocks:
    """The page for all visitors; what one of them sets lives in their own browser."""
    with gr.Blocks(title="backsight", analytics_enabled=False, fill_width=True) as blocks:
        tabs, every = build_tabs(workspace)
        events = [_wire(workspace, tab) for tab in every]
        loaded = _open_by_address(workspace, blocks, tabs, every)
        stopped = part("note", "Stopped. Set anything to go on.")
        for tab, event in zip(every, events, strict=True):
            if "stop" in tab.extra:
                tab.extra["stop"].click(
                    lambda: stopped, None, tab.body, cancels=[event, loaded], api_visibility="private"
                )
    blocks.queue(max_size=MOST_WAITING, default_concurrency_limit=AT_ONCE, api_open=False)
    return blocks


def _open_by_address(workspace: Workspace, blocks: gr.Blocks, tabs: gr.Tabs, every: Sequence[Tab]) -> Any:
    """Set all controls as the address has it when the page is opened; gives gradio's event."""

    def opened(request: gr.Request) -> Iterator[Updates]:
        try:
            state = workspace.with_first_choices(from_query(dict(request.query_params)))
        except UserError as error:
            yield {every[0].body: part("problem", error_message(error))}
            return
        tab = next(each for each in every if each.kind is type(state))
        known = {name: control for name, control in tab.controls.items() if name not in FOLLOWING}
        yield {tabs: gr.Tabs(selected=state.view), **{control: getattr(state, name) for name, control in known.items()}}
        yield from _with_progress(workspace, tab, state, lambda: _shown(workspace, tab, state))

    outputs = list(dict.fromkeys(each for tab in every for each in tab.outputs))
    return blocks.load(opened, None, [tabs, *outputs], show_progress="hidden", api_visibility="private")


def _wire(workspace: Workspace, tab: Tab) -> Any:
    """Render the view again whenever something is set, or its tab is opened; only the latest state counts.

    Returns gradio's event, which can be cancelled.
    """
    triggers = [control.input for control in tab.controls.values() if not isinstance(control, gr.HTML)]
    triggers.append(tab.opened.input)
    if tab.kind is Change:
        return _wire_change(workspace, tab, triggers)

    def update(*values: Any) -> Iterator[Updates]:
        state = tab.state(values)
        yield from _with_progress(workspace, tab, state, lambda: _shown(workspace, tab, state))

    if tab.kind is Diagnose:
        _wire_search(workspace, tab)
    return _on(triggers, update, list(tab.controls.values()), tab.outputs)


def _with_progress(workspace: Workspace, tab: Tab, state: State, show: Callable[[], Updates]) -> Iterator[Updates]:
    """What ``show`` gives, and before that how far long work has come."""
    with contextlib.suppress(Exception):  # what goes wrong here goes wrong in the view again, which shows it
        for done, total in reconstruct_ahead(workspace, state):
            words = f"{done} of {total} reconstructions"
            yield {tab.body: part("progress", done, total, words, "working")}
    yield show()


def _shown(workspace: Workspace, tab: Tab, state: State) -> Updates:
    """What the tab shows of ``state``: its view, and what goes with it."""
    if isinstance(state, Change):
        return _changed(workspace, tab, state, ())
    updates: Updates = {tab.body: render_html(workspace, state)}
    if isinstance(state, Diagnose) and state.model in workspace.detectors:
        diagnosis = workspace.diagnosis(state.model)
        words = f"{diagnosis.num_done} of {diagnosis.num_images} pictures looked at"
        updates[tab.extra["progress"]] = part("progress", diagnosis.num_done, diagnosis.num_images, words)
    return updates


# ---- Change: mask editors that follow, undo and reset


def _wire_change(workspace: Workspace, tab: Tab, triggers: Sequence[Any]) -> Any:
    history_value, controls = tab.extra["history"], list(tab.controls.values())

    def update(history: tuple[str, ...], *values: Any) -> Iterator[Updates]:
        state = tab.state(values)
        yield from _with_progress(workspace, tab, state, lambda: _changed(workspace, tab, state, history))

    def undo(history: tuple[str, ...]) -> Updates:
        if len(history) < 2:
            return {history_value: history}
        state = _as_change(history[-2])
        return {**_all_controls(tab, state), **_changed(workspace, tab, state, history[:-2], anew=True)}

    def reset(history: tuple[str, ...], *values: Any) -> Updates:
        state = tab.state(values)
        fresh = Change(model=state.model, shows=state.shows, picture=state.picture)
        return {**_all_controls(tab, fresh), **_changed(workspace, tab, fresh, history, anew=True)}

    _on([tab.extra["undo"].click], undo, [history_value], tab.outputs)
    _on([tab.extra["reset"].click], reset, [history_value, *controls], tab.outputs)
    return _on(triggers, update, [history_value, *controls], tab.outputs)


def _as_change(query: str) -> Change:
    state = from_query(dict(parse_qsl(query)))
    assert isinstance(state, Change)
    return state


def _all_controls(tab: Tab, state: State) -> Updates:
    return {control: getattr(state, name) for name, control in tab.controls.items()}


def _changed(workspace: Workspace, tab: Tab, state: Change, history: tuple[str, ...], anew: bool = False) -> Updates:
    """The view of ``state``, its mask editors where they differ from those shown last, and the history with it."""
    try:
        last = _as_change(history[-1]) if history and not anew else None
        fixed = complete(workspace, state)
        updates = _followers(workspace, tab, state, fixed, last)
    except UserError as error:
        return {tab.body: part("problem", error_message(error))}
    query = to_query(fixed)
    kept = history if history and history[-1] == query else (*history, query)[-MOST_STEPS:]
    return {**updates, tab.body: render_html(workspace, fixed), tab.extra["history"]: kept}


def _followers(workspace: Workspace, tab: Tab, state: Change, fixed: Change, last: Change | None) -> Updates:
    """What the controls and mask editors are to show, where that differs from ``last``.

    What is as the visitor set it is left alone: they may have gone on meanwhile, and an editor keeps the keyboard's
    place.
    """

    def differs(*names: str) -> bool:
        return last is None or any(getattr(last, name) != getattr(fixed, name) for name in names)

    updates: Updates = {tab.extra["other"]: gr.Column(visible=fixed.noise == "swap")}
    if differs("picture", "model"):
        model = workspace.model(fixed.model)
        choices = [(words, name) for name, words in regions(model, workspace.image(fixed.picture, model))]
        updates[tab.controls["where"]] = gr.Dropdown(choices, value=fixed.where)
        updates[tab.controls["stage"]] = gr.Dropdown(list(model.grids), value=fixed.stage)
    if fixed.tokens != state.tokens:
        updates[tab.controls["tokens"]] = fixed.tokens
    if differs("picture", "model", "where"):
        updates[tab.extra["colour_editor"]] = colour_editor(workspace, fixed)
    if differs("picture", "model", "stage") or fixed.tokens != state.tokens:
        updates[tab.extra["token_editor"]] = token_editor(workspace, fixed)
    return updates


# ---- Diagnose: a search that is watched, and can be stopped


def _wire_search(workspace: Workspace, tab: Tab) -> None:
    timer, run, stop = (tab.extra[name] for name in ("timer", "run", "stop_search"))

    def search(*values: Any) -> Updates:
        state = tab.state(values)
        diagnosis = workspace.diagnosis(state.model)
        diagnosis.step()
        return {**_shown(workspace, tab, state), **(searching(False) if diagnosis.is_done else {})}

    def searching(active: bool) -> Updates:
        return {
            timer: gr.Timer(active=active),
            run: gr.Button(interactive=not active),
            stop: gr.Button(interactive=active),
        }

    _on([timer.tick], search, list(tab.controls.values()), tab.outputs, mode="once")
    _on([run.click], lambda: searching(True), [], [run, stop, timer])
    _on([stop.click], lambda: searching(False), [], [run, stop, timer])


def _on(
    triggers: Sequence[Any], act: Callable[..., Any], inputs: Sequence[Any], outputs: Any, mode: Any = "always_last"
) -> Any:
    return gr.on(
        triggers,
        act,
        list(inputs),
        outputs,
        show_progress="hidden",
        trigger_mode=mode,
        concurrency_id="views",
        concurrency_limit=AT_ONCE,
        api_visibility="private",
    )


# ---- events that no page of ours sends


class EventCheck:
    """An ASGI application before gradio's: an event that no page of ours sends is answered with 422."""

    def __init__(self, app: Any, blocks: gr.Blocks) -> None:
        self.app: Any = app
        self.blocks: gr.Blocks = blocks

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] == "http" and scope["path"].endswith("/gradio_api/queue/join"):
            request = Request(scope, receive)
            content = await request.body()
            try:
                check_event(self.blocks, content)
            except UserError as error:
                await JSONResponse({"error": str(error)}, 422)(scope, receive, send)
                return
            receive = replay(content, receive)
        await self.app(scope, receive, send)


def check_event(blocks: gr.Blocks, content: bytes) -> None:
    """Refuse an event whose function does not exist, or whose values are of other types or out of range: gradio would
    write a traceback into the log for each.

    Raises:
        UserError: it is such an event.
    """
    try:
        event = json.loads(content)
        json.dumps(event, ensure_ascii=False, allow_nan=False).encode()  # half a character, or no number
    except (ValueError, RecursionError):
        raise UserError("this event is no JSON") from None
    index = event.get("fn_index") if isinstance(event, dict) else None
    function = blocks.fns.get(index) if type(index) is int else None
    if function is None or function.fn is None:
        raise UserError("this event names no function of the page")
    components, values = function.inputs, event.get("data")
    if not isinstance(values, list) or len(values) != len(components):
        raise UserError(f"this event needs {len(components)} values")
    for component, value in zip(components, values, strict=True):
        if not _is_value_of(component, value):
            label = getattr(component, "label", None) or component.elem_id
            raise UserError(f"this event has no value that '{label}' can have")


def _is_value_of(component: Any, value: Any) -> bool:
    if value is None or isinstance(component, gr.State):  # kept by the server: what comes is not read
        return True
    if isinstance(component, gr.Slider):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value) and component.minimum <= value <= component.maximum
    if not isinstance(value, str) or len(value) > LONGEST:
        return False
    if isinstance(component, gr.Radio | gr.Dropdown) and component.elem_id not in FOLLOWING:
        return value in [choice for _, choice in component.choices]
    return True
