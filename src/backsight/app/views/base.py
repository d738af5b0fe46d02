"""What a view is: the page's part, the same as a file for people, and as one for programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from backsight.app.answers import as_json, told
from backsight.app.eyes import Eyes, Seen
from backsight.app.markup import share_bar, tag
from backsight.app.state import State, to_query

FORMAT = "backsight.view/1"
"""Of the JSON; changes when a reader of the old schema would misread the new one."""


@dataclass(frozen=True)
class View:
    """One view of a state: its ``body`` for the page, what gives its numbers, and what draws it as a PNG file."""

    state: State
    body: str
    numbers: Callable[[], Mapping[str, Any]]
    plate: Callable[[], bytes]

    def html(self) -> str:
        """The page's part, with its link and its downloads."""
        query = to_query(self.state)
        return tag("section", self.body, share_bar(query, self.state.view), class_="view", data_query=query)

    def json(self) -> dict[str, Any]:
        """The same as a file for programs."""
        return {"format": FORMAT, "address": f"?{to_query(self.state)}", **self.numbers()}


def describe(eyes: Eyes, seen: Seen, threshold: float = 0.5, picture_of: Seen | None = None) -> dict[str, Any]:
    """What one model makes of one picture, in numbers: its card, its answer, the error at every layer and seed.

    The errors are from the picture of ``seen``, or from that of ``picture_of``.
    """
    errors = {name: [round(value, 6) for value in eyes.errors(seen, name, picture_of).tolist()] for name in eyes.layers}
    return {
        **eyes.card(),
        "answer": as_json(told(eyes.answer(seen), threshold)),
        "mse": errors,
        "mse of the mean image": round(eyes.baseline(picture_of or seen), 6),
    }
