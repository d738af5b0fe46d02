"""From a state to its view, and from whatever goes wrong on the way to one line that tells no secret."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from backsight.app.markup import trouble
from backsight.app.observatory import Observatory, without_paths
from backsight.app.state import Change, Compare, Diagnose, Look, State
from backsight.app.views.base import View
from backsight.app.views.change import change
from backsight.app.views.compare import compare
from backsight.app.views.diagnose import diagnose
from backsight.app.views.look import look
from backsight.core import UserError

RENDERERS: Mapping[str, Callable[[Observatory, Any], View]] = {
    Look.view: look,
    Change.view: change,
    Compare.view: compare,
    Diagnose.view: diagnose,
}
"""What makes the view of each state, by the view's name."""

OURS = "something went wrong here, and has been noted: try another picture, or the same again"
"""What a visitor is told of a failure of ours."""

_log = logging.getLogger("backsight")


def render(observatory: Observatory, state: State) -> View:
    """The view of ``state``.

    Raises:
        UserError: it names what is not there.
    """
    return RENDERERS[state.view](observatory, state)


def render_html(observatory: Observatory, state: State) -> str:
    """The page's part for ``state``; if there is none, one line that says why."""
    try:
        return render(observatory, state).html()
    except Exception as error:
        return trouble(message_of(error))


def message_of(error: Exception) -> str:
    """What a visitor is told: a mistake of theirs in its own words, without the folders of this machine; of a failure
    of ours only that there was one, and the rest goes to the log."""
    if isinstance(error, UserError):
        return without_paths(str(error))
    _log.error("a view failed", exc_info=error)
    return OURS
