"""The whole page: a head, a tab for each view, and the state of all of them as the address says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from backsight.app.markup import tag, text, trouble
from backsight.app.observatory import Observatory
from backsight.app.pages import change, compare, diagnose, look
from backsight.app.pages.controls import Page, hidden, thumbnails
from backsight.app.pages.wiring import AT_ONCE, Updates, let_stop, shown_for, watched_work, wire
from backsight.app.render import message_of
from backsight.app.state import VIEWS, Look, State, from_query
from backsight.core import UserError

SHARED = ("picture", "other", "at", "brush", "tokens", "case")
"""Values that the page's script writes, and that stay when the view changes."""


CHOSEN_LATER = ("where", "stage")
"""Fields whose choices follow from the picture and the model, and are set together with these."""


def build_page(observatory: Observatory) -> gr.Blocks:
    """The page for all visitors; what one of them sets lives in their own browser."""
    with gr.Blocks(title="backsight", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(_head(), apply_default_css=False)
        shared = {name: hidden(name) for name in SHARED}
        opened = {view: hidden(f"open-{view}") for view in VIEWS}
        examples = thumbnails(observatory)
        with gr.Tabs(selected=Look.view, elem_id="views") as tabs:
            pages = [each.build(observatory, shared, examples) for each in (look, change, compare, diagnose)]
        events = [wire(observatory, page, opened[page.kind.view]) for page in pages]
        coming = _open_by_address(observatory, blocks, tabs, pages)
        for page, event in zip(pages, events, strict=True):
            let_stop(page, [event, coming])
    blocks.queue(max_size=64, default_concurrency_limit=AT_ONCE, api_open=False)
    return blocks


def _head() -> str:
    name = text("p", "backsight", class_="wordmark", role="heading", aria_level=1)
    says = text("p", "What a vision model still knows about a picture, stage by stage", class_="soft")
    words = {"type": "button", "aria_label": "Change between light and dark", "data_theme": True}
    return tag("header", tag("div", name, says), text("button", "Theme", **words), class_="masthead")


def _open_by_address(observatory: Observatory, blocks: gr.Blocks, tabs: gr.Tabs, pages: Sequence[Page]) -> Any:
    """Set all controls as the address says when the page is opened; gives gradio's event."""

    def opened(request: gr.Request) -> Iterator[Updates]:
        try:
            state = with_first_choices(observatory, from_query(dict(request.query_params)))
            page = next(each for each in pages if each.kind is type(state))
            known = {name: control for name, control in page.controls.items() if name not in CHOSEN_LATER}
            values = {control: getattr(state, name) for name, control in known.items()}
            yield {tabs: gr.Tabs(selected=state.view), **values}
            yield from watched_work(observatory, page, state, lambda: shown_for(observatory, page, state))
        except UserError as error:
            yield {pages[0].body: trouble(message_of(error))}

    every = list(dict.fromkeys(each for page in pages for each in page.everything))
    return blocks.load(opened, None, [tabs, *every], show_progress="hidden", api_visibility="private")


def with_first_choices(observatory: Observatory, state: State) -> State:
    """The state with the first picture and model where the address names none, so that the controls can show them."""
    values: dict[str, Any] = {} if state.model else {"model": observatory.choose("").name}
    if getattr(state, "picture", None) == "":
        values["picture"] = observatory.examples[0]
    return replace(state, **values)
