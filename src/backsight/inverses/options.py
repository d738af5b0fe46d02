"""The options of an inverse: keyword arguments of its class, whose types say what they may be."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from backsight.inverses.base import Inverse


def check_options(kind: type[Inverse], options: Mapping[str, Any]) -> None:
    """Refuse options that an inverse does not have, and values of another type.

    Raises:
        ValueError: one of them, and what there is.
    """
    known = {name: each for name, each in inspect.signature(kind).parameters.items() if each.kind == each.KEYWORD_ONLY}
    types = get_type_hints(kind.__init__) if options else {}
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"it has no option '{name}', it has {', '.join(known) or 'none'}")
        hint = types[name]
        if not _is_a(value, hint):
            raise ValueError(f"{name}={value} is to be {_told(hint)}, as {name}={_example(known[name].default, hint)}")


def expect_positive(name: str, value: float) -> None:
    """Refuse a number that is not more than 0, or not finite.

    Raises:
        ValueError: it is not.
    """
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value} has to be more than 0, and finite")


def _kinds(hint: Any) -> list[Any]:
    """The types that a value may have: lists stand for every kind of sequence, as in YAML and JSON."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return [list if get_origin(part) in (tuple, Sequence) else part for part in parts]


def _is_a(value: Any, hint: Any) -> bool:
    kinds = _kinds(hint)
    if isinstance(value, list | tuple):
        return list in kinds and all(type(each) is int for each in value)
    return type(value) in kinds or (type(value) is int and float in kinds)


def _told(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", list: "a list of whole numbers"}
    return " or ".join(words[kind] for kind in _kinds(hint) if kind in words)


def _example(default: Any, hint: Any) -> str:
    """The default as a user writes it; where the layouts decide on that, an example."""
    return str(default).lower() if default is not None else "[64,16]" if list in _kinds(hint) else "1"
