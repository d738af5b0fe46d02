"""What happens when something is set: the view is made anew, for that visitor alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

from backsight.app.ahead import work_ahead
from backsight.app.markup import text, trouble, working
from backsight.app.observatory import Observatory
from backsight.app.pages.change import follow
from backsight.app.pages.controls import Page
from backsight.app.pages.diagnose import progress_of
from backsight.app.render import message_of, render_html
from backsight.app.state import Change, Diagnose, State, from_query, to_query
from backsight.core import UserError

AT_ONCE = 2
"""Views that are made at the same time; other visitors wait in a queue."""

MOST_STEPS = 50
"""Changes that can be undone."""

Updates = dict[Any, Any]


def wire(observatory: Observatory, page: Page, opened: gr.HTML) -> Any:
    """Make the view anew whenever something is set, or its tab is opened; only the latest wish counts.

    Returns gradio's event, which can be cancelled.

    ``opened`` is a hidden value that the page's script writes when the visitor comes to the tab (gradio's own event
    comes when the page is loaded too, and would overtake what the address says), or when it has written one of the
    values that all tabs share: only the tab that is seen is made anew.
    """
    watched = [control.input for control in page.controls.values() if not isinstance(control, gr.HTML)]
    inputs = list(page.controls.values())
    if page.kind is Change:
        return _wire_change(observatory, page, [*watched, opened.input], inputs)

    def update(*values: Any) -> Iterator[Updates]:
        state = page.state(values)
        yield from watched_work(observatory, page, state, lambda: shown_for(observatory, page, state))

    event = _on([*watched, opened.input], update, inputs, [page.body, *page.extra])
    if page.kind is Diagnose:
        _wire_work(observatory, page, inputs)
    return event


def watched_work(observatory: Observatory, page: Page, state: State, show: Callable[[], Updates]) -> Iterator[Updates]:
    """What ``show`` gives, and before that how far long work has come."""
    with contextlib.suppress(Exception):  # what goes wrong here goes wrong in the view again, which tells it
        for done, total in work_ahead(observatory, state):
            yield {page.body: working(done, total)}
    yield show()


def let_stop(page: Page, events: Sequence[Any]) -> None:
    """Let the visitor stop long work on a view; what is done is kept, so the next wish comes quicker."""
    if page.stop is not None:
        words = text("p", "Stopped. Set anything to go on.", class_="soft", role="status")
        page.stop.click(lambda: words, None, page.body, cancels=list(events), api_visibility="private")


def shown_for(observatory: Observatory, page: Page, state: State) -> Updates:
    """What the page shows of ``state``: its view, and what goes with it."""
    if isinstance(state, Change):
        return _changed(observatory, page, state, ())
    updates: Updates = {page.body: render_html(observatory, state)}
    if isinstance(state, Diagnose) and observatory.detectors:
        updates[page.extra[0]] = progress_of(observatory, state)
    return updates


# ---- Change: boards that follow, undo and reset


def _wire_change(observatory: Observatory, page: Page, triggers: Sequence[Any], inputs: Sequence[Any]) -> Any:
    outputs = page.everything

    def update(history: tuple[str, ...], *values: Any) -> Iterator[Updates]:
        state = _as_change(page.state(values))
        yield from watched_work(observatory, page, state, lambda: _changed(observatory, page, state, history))

    def undo(history: tuple[str, ...]) -> Updates:
        return _back(observatory, page, history)

    def reset(history: tuple[str, ...], *values: Any) -> Updates:
        state = _as_change(page.state(values))
        fresh = Change(model=state.model, shows=state.shows, picture=state.picture)
        return {**_set(page, fresh), **_changed(observatory, page, fresh, history, anew=True)}

    event = _on(triggers, update, [page.history, *inputs], outputs)
    assert page.undo is not None
    assert page.reset is not None
    _on([page.undo.click], undo, [page.history], outputs)
    _on([page.reset.click], reset, [page.history, *inputs], outputs)
    return event


def _as_change(state: State) -> Change:
    assert isinstance(state, Change)
    return state


def _set(page: Page, state: State) -> Updates:
    return {control: getattr(state, name) for name, control in page.controls.items()}


def _changed(
    observatory: Observatory, page: Page, state: Change, history: tuple[str, ...], anew: bool = False
) -> Updates:
    """The view of ``state``, its boards where they are other than those shown last, and the history with it."""
    try:
        last = _as_change(from_query(_parsed(history[-1]))) if history and not anew else None
        fixed, updates = follow(observatory, page, state, last)
    except UserError as error:
        return {page.body: trouble(message_of(error))}
    query = to_query(fixed)
    kept = history if history and history[-1] == query else (*history, query)[-MOST_STEPS:]
    return {**updates, page.body: render_html(observatory, fixed), page.history: kept}


def _back(observatory: Observatory, page: Page, history: tuple[str, ...]) -> Updates:
    if len(history) < 2:
        return {page.history: history}
    state = _as_change(from_query(_parsed(history[-2])))
    return {**_set(page, state), **_changed(observatory, page, state, history[:-2], anew=True)}


def _parsed(query: str) -> dict[str, str]:
    from urllib.parse import parse_qsl

    return dict(parse_qsl(query))


# ---- Diagnose: work that is watched, and can be stopped


def _wire_work(observatory: Observatory, page: Page, inputs: Sequence[Any]) -> None:
    timer, (progress, run, stop) = page.timer, page.extra
    assert timer is not None

    def work(*values: Any) -> Updates:
        state = page.state(values)
        diagnosis = observatory.diagnosis(state.model)
        diagnosis.step()
        ended = _working(False) if diagnosis.is_done else {}
        return {**shown_for(observatory, page, state), **ended}

    def _working(is_on: bool) -> Updates:
        return {
            timer: gr.Timer(active=is_on),
            run: gr.Button(interactive=not is_on),
            stop: gr.Button(interactive=is_on),
        }

    outputs = [page.body, progress, run, stop, timer]
    _on([timer.tick], work, inputs, outputs, mode="once")
    _on([run.click], lambda: _working(True), [], [run, stop, timer])
    _on([stop.click], lambda: _working(False), [], [run, stop, timer])


def _on(
    triggers: Sequence[Any], act: Callable[..., Any], inputs: Sequence[Any], outputs: Any, mode: str = "always_last"
) -> Any:
    return gr.on(
        triggers,
        act,
        list(inputs),
        outputs,
        show_progress="hidden",
        trigger_mode=mode,  # type: ignore[arg-type]
        concurrency_id="views",
        concurrency_limit=AT_ONCE,
        api_visibility="private",
    )
