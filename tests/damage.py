"""Contents of files as somebody else might have written them: valid ones, of which some values are others."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

ODD = st.one_of(
    st.sampled_from([None, True, -1, 0, 1, 2, 10**6, 10**20, -(10**400), 0.5, 1e308, float("nan"), float("inf")]),
    st.sampled_from(
        ["", "0", "1", "-1", "64", "nan", "1e999", "a", "../../x", "/etc/passwd", "C:\\x", "\ud800", "\0", "é"]
    ),
    st.integers(-5, 100),
    st.text(max_size=5),
)
VALUES = st.recursive(
    ODD, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=3))
)
"""What may stand anywhere."""


def places(content: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in nested lists and dictionaries."""
    keys = content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in keys:
        yield (*way, key)
        yield from places(content[key], (*way, key))


@st.composite
def damaged(draw: st.DrawFn, content: Any) -> Any:
    """``content`` with one to three values replaced, left out, or made several."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(list(places(content)) or [()])) or (None,)
        home = content
        for key in way:
            home = home[key]
        if last is None:
            return draw(VALUES)
        action = draw(st.sampled_from(["replace", "replace", "leave out", "repeat"]))
        if action == "replace":
            home[last] = draw(VALUES)
        elif action == "leave out":
            del home[last]
        elif isinstance(home, list):
            home.append(copy.deepcopy(home[last]))
        else:
            home[draw(st.text(max_size=4))] = copy.deepcopy(home[last])
    return content


def flip(path: Path) -> None:
    """Turn one bit, as a failing disk does."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


class Trap:
    """Pickled, it is a call to make a file: what unpickling it would do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)
