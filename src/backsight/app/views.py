"""From a state to its view, and from whatever goes wrong on the way to one line that reveals no secret."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from backsight.app.change import change
from backsight.app.compare import compare
from backsight.app.diagnose import diagnose
from backsight.app.look import look
from backsight.app.rendering import View, part
from backsight.app.state import Change, Compare, Diagnose, Look, State
from backsight.app.workspace import Workspace
from backsight.core import UserError

RENDERERS: Mapping[str, Callable[[Workspace, Any], View]] = {
    Look.view: look,
    Change.view: change,
    Compare.view: compare,
    Diagnose.view: diagnose,
}
"""What makes the view of each state, by the view's name."""

OUR_FAILURE = "something went wrong here, and has been noted: try another picture, or the same again"
"""The message for a failure of ours."""

REPORT_INTERVAL = 0.8
"""Seconds of work before its progress is reported, and between two reports."""

_PATH = re.compile(r"(?<![\w.:/])(?:/[\w.@+-]+){2,}/?")
_log = logging.getLogger("backsight")


def render(workspace: Workspace, state: State) -> View:
    """The view of ``state``.

    Raises:
        UserError: it names what is not there.
    """
    return RENDERERS[state.view](workspace, state)


def render_html(workspace: Workspace, state: State) -> str:
    """The page's part for ``state``; if there is none, one line that states why."""
    try:
        return render(workspace, state).html()
    except Exception as error:
        return part("problem", error_message(error))


def error_message(error: Exception) -> str:
    """What a visitor reads: a mistake of theirs in its own words, without the folders of this machine; of a failure
    of ours only that there was one, and the rest goes to the log."""
    if isinstance(error, UserError):
        return without_paths(str(error))
    _log.error("a view failed", exc_info=error)
    return OUR_FAILURE


def without_paths(text: str) -> str:
    """A message without the folders of this machine: of every path only its last part is left.

    >>> without_paths("cannot read /srv/data/coco/a.jpg: broken")
    'cannot read a.jpg: broken'
    """
    return _PATH.sub(lambda found: found[0].rstrip("/").rpartition("/")[2], text)


def reconstruct_ahead(
    workspace: Workspace, state: State, clock: Callable[[], float] = time.monotonic
) -> Iterator[tuple[int, int]]:
    """Reconstruct all that the view of ``state`` shows, so that long work can be watched and stopped.

    Yields:
        How much is done of how much, each time that more than :data:`REPORT_INTERVAL` has passed since the last
        report; of quick work nothing.

    Raises:
        UserError: the state names what is not there.
    """
    reported, done = clock(), 0
    passes = render(workspace, state).passes
    total = sum(len(model.layers) for model, _ in passes)
    for model, forward in passes:
        for name in model.layers:
            model.reconstruct(forward, name)
            done += 1
            if clock() - reported > REPORT_INTERVAL and done < total:
                reported = clock()
                yield done, total
