"""What the fields of an annotation may hold: read where the meaning is clear, else counted, one line for each kind."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from backsight.core import UserError
from backsight.io import printable

logger: logging.Logger = logging.getLogger(__name__)

MOST = 2**31 - 1
"""The largest label, and the most pixels of a side."""

UNREADABLE = (ValueError, TypeError, LookupError, OverflowError)
"""What a reader of a field says of what it cannot read."""

LEFT_OUT = "left out"
"""In what is counted: an object is lost, and not only one of its fields."""

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1."""


class Field(NamedTuple):
    """How a field is ``read`` (:data:`UNREADABLE` says that it cannot be), and what stands for one that
    is missing or null; an entry that lacks a ``required`` field is left out."""

    read: Callable[[Any], Any]
    otherwise: Any = None
    required: bool = False


class Tally:
    """What is left out of the annotations in ``where``, or read otherwise than it stands: counted by kind."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.found: dict[str, tuple[int, str]] = {}

    def count(self, kind: str, example: Any, number: int = 1) -> None:
        """One more of a kind, of which the first is shown."""
        before, first = self.found.get(kind, (0, str(example)))
        self.found[kind] = (before + number, first)

    def tell(self, *, nothing_left: bool = False) -> None:
        """One line in the log for each kind.

        Raises:
            UserError: nothing is left, because of what was left out.
        """
        found, self.found = self.found, {}
        for kind, (number, first) in found.items():
            shown = first if len(first) <= 100 else f"{first[:100]}..."
            line = f"{self.where}: {number} {kind} (the first: {printable(shown)})"
            if nothing_left and LEFT_OUT in kind:
                raise UserError(f"{line}, and no object is left: correct the annotations")
            logger.warning("%s", line)

    def entries(
        self, listed: Any, table: Mapping[str, Field], what: str
    ) -> Iterator[tuple[Mapping[str, Any], list[Any]]]:
        """Every entry of a list with the values of its fields in the order of the ``table``; ``what`` is their name."""
        if listed is not None and not isinstance(listed, list):
            self.count(f"list of {what} left out: it is none", listed)
            return
        for entry in listed or ():
            if not isinstance(entry, Mapping):
                self.count(f"of the {what} left out: no names and values", entry)
            elif (values := self._values(entry, table, what)) is not None:
                yield entry, values

    def _values(self, entry: Mapping[str, Any], table: Mapping[str, Field], what: str) -> list[Any] | None:
        values = []
        for name, field in table.items():
            value = entry.get(name)
            if value is None:
                if field.required:
                    self.count(f"of the {what} left out: without '{name}'", entry)
                    return None
                values.append(field.otherwise)
                continue
            try:
                values.append(field.read(value))
            except UNREADABLE:
                if field.required:
                    self.count(f"of the {what} left out: '{name}' cannot be read", value)
                    return None
                self.count(f"of the {what} with a '{name}' that cannot be read, and is not used", value)
                values.append(field.otherwise)
        return values


# ---- values


def number(value: Any) -> float:
    """A finite number, also one that is written as text.

    >>> number("64")
    64.0
    """
    if isinstance(value, bool) or not math.isfinite(found := float(value)):
        raise ValueError(value)
    return found


def identity(value: Any) -> int | str:
    """What an id is compared by: 7, "7" and 7.0 are the same."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isdecimal() and text.isascii() and len(text) < 19 else printable(value)
    if isinstance(value, bool) or value != int(value):
        raise ValueError(value)
    return int(value)


def text(value: Any) -> str:
    """Words that are not empty; a number is taken as its digits."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise ValueError(value)
    return printable(str(value))


def flag(value: Any) -> bool:
    """1, "1", true, "true", and their opposites."""
    return {"0": False, "1": True, "false": False, "true": True}[str(value).strip().lower()]


def length(value: Any) -> int:
    """A side in pixels; 0 for one that is not positive, by which tools mean that they do not know."""
    found = number(value)
    if found > MOST or found != int(found):
        raise ValueError(value)
    return max(0, int(found))


def corner_and_size(value: Any) -> Box:
    """COCO's box (x, y, width, height), with an area -> x0, y0, x1, y1."""
    x, y, width, height = map(number, value)
    return with_area((x, y, x + width, y + height))


def with_area(box: Iterable[float]) -> Box:
    """A box of four corners (x0, y0, x1, y1) that encloses something.

    Raises:
        ValueError: it does not.
    """
    x0, y0, x1, y1 = box
    if not (x1 > x0 and y1 > y0 and max(map(abs, (x0, y0, x1, y1))) <= MOST):
        raise ValueError("no area")
    return x0, y0, x1, y1


def numbered(names: Sequence[int | str]) -> dict[int | str, int]:
    """A label for each name of a class: itself where it is one, and the next that is free for words and for numbers
    that are none (negative, huge)."""
    own = {name: name for name in names if isinstance(name, int) and 0 <= name <= MOST}
    free = (label for label in range(len(names) + len(own)) if label not in own)
    return {name: own[name] if name in own else next(free) for name in dict.fromkeys(names)}
