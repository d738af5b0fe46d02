"""Long work, one layer after the other, so that it can be watched and stopped; what is done is kept for the view."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from backsight.app.changes import apply, settled
from backsight.app.eyes import Eyes, Seen
from backsight.app.observatory import Observatory
from backsight.app.state import Change, Compare, Look, State
from backsight.app.views.compare import filled

PATIENCE = 0.8
"""Seconds of work before a word is said about it, and between two words."""


def work_ahead(
    observatory: Observatory, state: State, clock: Callable[[], float] = time.monotonic
) -> Iterator[tuple[int, int]]:
    """Look at and reconstruct all that the view of ``state`` shows.

    Yields:
        How much is done of how much, each time that more than :data:`PATIENCE` has passed since the last word; of
        quick work nothing.

    Raises:
        UserError: the state names what is not there.
    """
    said, done = clock(), 0
    sights = list(_sights(observatory, state))
    total = sum(len(eyes.layers) for eyes, _ in sights)
    for eyes, seen in sights:
        for name in eyes.layers:
            eyes.reconstruct(seen, name)
            done += 1
            if clock() - said > PATIENCE and done < total:
                said = clock()
                yield done, total


def _sights(observatory: Observatory, state: State) -> Iterator[tuple[Eyes, Seen]]:
    """The passes that a view shows."""
    if isinstance(state, Change):
        changed = apply(observatory, settled(observatory, state))
        eyes = observatory.choose(state.model)
        yield from ((eyes, seen) for seen in (changed.before, changed.after))
    elif isinstance(state, Look):
        for model in dict.fromkeys((state.model, state.also or state.model)):
            eyes = observatory.choose(model)
            yield eyes, eyes.see(observatory.source(state.picture, eyes))
    elif isinstance(state, Compare):
        state = filled(observatory, state)
        for model, picture in ((state.model, state.picture), (state.also or state.model, state.other or state.picture)):
            eyes = observatory.choose(model)
            yield eyes, eyes.see(observatory.source(picture, eyes))
