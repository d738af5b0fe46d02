"""What users type becomes typed values, or an error of one line that says what would be right.

A field or a keyword argument has a type, as ``int``, ``Literal["a", "b"]`` or :data:`Share`; :func:`convert` makes a
value of it. Options of the command line, settings of experiments, specs in YAML and options of inverses all pass
through it. Nothing heavy is imported here, so that ``--help`` is quick.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import math
import multiprocessing
import os
import re
import reprlib
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

_OPTION = re.compile(r"`[^`]*`|(?<![\w-])--([a-z][a-z-]*)")


class UserError(Exception):
    """A mistake that the user can correct. The message is one line: what is wrong, what would be right.

    It names options as they are typed, ``--batch-size``. In Python, where these are arguments, it is shown with their
    names, ``batch_size``; commands in backticks stay as they are.
    """

    in_command: ClassVar[bool] = False
    """Whether the user typed a command, see ``cli.main``."""

    def __str__(self) -> str:
        message = " ".join(super().__str__().splitlines())  # names from files may have any letter in them
        if self.in_command:
            return message
        return _OPTION.sub(lambda found: found[1].replace("-", "_") if found[1] else found[0], message)


def first_line(error: BaseException) -> str:
    """What an error says first; its kind, if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@dataclass(frozen=True)
class Range:
    """The numbers that a value may be, both ends included; ``positive`` leaves out 0 and infinity."""

    least: float = 0
    most: float = math.inf
    positive: bool = False

    def __contains__(self, value: float) -> bool:
        return 0 < value < math.inf if self.positive else self.least <= value <= self.most

    def __str__(self) -> str:
        if self.positive:
            return "more than 0, and finite"
        return f"at least {self.least:g}" if self.most == math.inf else f"from {self.least:g} to {self.most:.10g}"


class Record:
    """A dataclass that is read from a file of ours: what else stands there, as a later version may have it, is left
    alone."""


AnyNumber = Annotated[int, Range(0)]
"""How many, and none will do."""

Number = Annotated[int, Range(1)]
"""How many, one at least."""

Share = Annotated[float, Range(0, 1)]
"""A part of the whole, or a probability."""

Positive = Annotated[float, Range(positive=True)]
"""More than 0, and finite."""

Finite = Annotated[float, Range(-1e12, 1e12)]
"""No infinity, and no NaN."""

Side = Annotated[int, Range(1, 2**16)]
"""A side of an image or a grid, or a width: more would fill every memory."""

Depth = Annotated[int, Range(0, 256)]
"""How many layers."""


# ---- one value


def convert(value: Any, kind: Any, name: str) -> Any:
    """``value``, which is called ``name``, as the type ``kind`` has it.

    A whole number becomes a float where one is wanted, text a path, a single value a sequence of one; ``list[...]`` and
    ``Sequence[...]`` give lists, ``tuple[...]`` tuples, names and values a dataclass (:func:`build`).

    >>> convert([1, 2.5], tuple[float, float], "size")
    (1.0, 2.5)
    >>> convert(0, Number | None, "--batch-size")
    Traceback (most recent call last):
    backsight.validation.UserError: batch_size is 0: it has to be at least 1

    Raises:
        UserError: it is of another type, or out of its :class:`Range`.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _in_range(convert(value, parts[0], name), parts[1:], name)
    if origin in (Union, UnionType):
        return _one_of(value, parts, kind, name)
    if origin in (tuple, list, Sequence, Mapping) or is_dataclass(kind):
        return _several(value, kind, name)
    if _is_a(value, kind):
        return value
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and (_is_a(value, int) or _is_a(value, str)):
        with contextlib.suppress(ValueError, OverflowError):
            return float(value)  # YAML reads 1e-3, without a point, as text
    raise _refusal(value, kind, name)


def _several(value: Any, kind: Any, name: str) -> Any:
    """``value`` as a sequence, a mapping or a dataclass, each part of it converted."""
    origin, parts = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        if isinstance(value, Mapping):
            return build(kind, value, name)
        if isinstance(value, kind):  # pyright: ignore[reportArgumentType]
            return value
    elif origin is Mapping:
        if isinstance(value, Mapping):
            names = {convert(each, parts[0], f"a name in {name}"): each for each in value}
            return {key: convert(value[each], parts[1], f"'{each}' of {name}") for key, each in names.items()}
    elif origin is tuple and Ellipsis not in parts:
        if isinstance(value, list | tuple) and len(value) == len(parts):
            return tuple(convert(item, part, name) for item, part in zip(value, parts, strict=True))
    else:
        items = [convert(item, parts[0], name) for item in (value if isinstance(value, list | tuple) else [value])]
        return tuple(items) if origin is tuple else items
    raise _refusal(value, kind, name)


def _refusal(value: Any, kind: Any, name: str) -> UserError:
    return UserError(f"{name} is {_SHORT.repr(value)}: it has to be {_description(kind)}")


_SHORT = reprlib.Repr()
"""Values for a message: of long ones the ends, of deep ones the top."""
_SHORT.maxstring = _SHORT.maxother = 100


def _is_a(value: Any, kind: Any) -> bool:
    """Whether ``value`` is of the type already; true and false are no numbers."""
    if get_origin(kind) is Literal:
        return any(value == each and type(value) is type(each) for each in get_args(kind))
    return kind is Any or (
        isinstance(value, get_origin(kind) or kind) and (kind is bool or not isinstance(value, bool))
    )


def _in_range(value: Any, allowed: Sequence[Any], name: str) -> Any:
    for each in allowed:
        if isinstance(each, Range) and value not in each:
            raise UserError(f"{name} is {value}: it has to be {each}")
    return value


def _one_of(value: Any, kinds: Sequence[Any], union: Any, name: str) -> Any:
    """``value`` as the first of ``kinds`` that it fits."""
    if value is None and NoneType in kinds:
        return None
    kinds = [kind for kind in kinds if kind is not NoneType]
    if len(kinds) == 1:  # whose own message says more
        return convert(value, kinds[0], name)
    for kind in kinds:
        try:
            return convert(value, kind, name)
        except UserError:
            continue
    raise _refusal(value, union, name)


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}


def _description(kind: Any) -> str:
    """``a whole number``, ``one of a, b``, ``a list, each a number``."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _description(parts[0])
    if origin in (Union, UnionType):
        return " or ".join(_description(part) for part in parts if part is not NoneType)
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin is tuple and Ellipsis not in parts:
        return f"a list of {len(parts)}, each {_description(parts[0])}"
    if origin in (tuple, list, Sequence):
        return f"a list, each {_description(parts[0])}"
    return _WORDS.get(kind, "names and values")


def parse(text: str, name: str) -> Any:
    """The value of ``text`` as in YAML: ``3``, ``true``, ``[0.1, 0.5]``, or words; nothing is the empty text.

    Raises:
        UserError: brackets or quotation marks that do not close.
    """
    import yaml

    try:
        return yaml.safe_load(text) if text else ""
    except yaml.YAMLError as error:
        raise UserError(f"{name} is {text!r}, which cannot be read: write it as in YAML, as [0.1, 0.5]") from error


# ---- several values by name


def convert_fields(instance: Any) -> None:
    """Convert every field of a frozen dataclass, in its ``__post_init__``; its fields are options of commands.

    Raises:
        UserError: one of them is of another type, or out of its range.
    """
    for name, kind in get_type_hints(type(instance), include_extras=True).items():
        object.__setattr__(instance, name, convert(getattr(instance, name), kind, option(name)))


def convert_arguments(function: Callable[..., Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Those arguments of ``function`` (or of a class) that are ``given``; they may be any that have a default.

    Raises:
        UserError: there is no such argument (the nearest is offered), or one cannot be converted.
    """
    parameters = inspect.signature(function).parameters.values()
    known = [each.name for each in parameters if each.default is not each.empty]
    check_names(given, known, where)
    typed = function.__init__ if inspect.isclass(function) else function
    hints = get_type_hints(typed, include_extras=True) if given else {}
    return {name: convert(value, hints[name], f"'{name}' of {where}") for name, value in given.items()}


def build(kind: Any, given: Any, where: str) -> Any:
    """The dataclass ``kind`` from names and values, as YAML has them; of a :class:`Record`, those that it has.

    Raises:
        UserError: a name is missing or unknown (the nearest is offered), or a value cannot be converted.
    """
    hints = get_type_hints(kind, include_extras=True)
    given = convert(given, Mapping, where)
    if Record in kind.__mro__:
        given = {name: given[name] for name in hints if name in given}
    check_names(given, hints, where)
    for each in fields(kind):
        if each.name not in given and each.default is MISSING and each.default_factory is MISSING:
            raise UserError(f"{where} has no '{each.name}'")
    return kind(**{name: convert(value, hints[name], f"'{name}' of {where}") for name, value in given.items()})


def check_names(given: Iterable[Any], known: Iterable[str], where: str) -> None:
    """Refuse a name that is unknown (``UserError``); the nearest of those that are known is offered."""
    known = list(known)
    for name in given:
        if name not in known:
            raise UserError(f"{where} has no '{name}': {nearest(str(name), known)}")


def nearest(word: str, known: Iterable[str]) -> str:
    """``did you mean 'this'?``, or what there is."""
    import difflib

    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"there is {', '.join(known) or 'nothing'}"


# ---- options and folders


def option(name: str) -> str:
    """An argument's name as it is typed: ``batch_size`` -> ``--batch-size``."""
    return f"--{name.replace('_', '-')}"


def check_folder(folder: Path, name: str) -> None:
    """Refuse a ``folder`` that nothing can be written to, where it is or where it would be made. Nothing is made.

    One that holds something already may be read-only: a cache that others have filled.

    Raises:
        UserError: a file is in its place or above it, or the system does not let this process write there.
    """
    there = next(each for each in (folder, *folder.parents) if os.path.lexists(each))  # a link to nothing, too
    if not there.is_dir():
        raise UserError(f"{name} {folder}: {'it' if there == folder else there} is a file, name a folder")
    try:
        tempfile.TemporaryFile(dir=there).close()  # permissions do not tell: root has them in /proc
    except OSError as error:
        if there != folder or not any(folder.iterdir()):
            raise UserError(f"{name} {folder}: nothing can be written to {there}, name another folder") from error


def check_main_guard() -> None:
    """Refuse to be called by a script without a guard, where processes do not fork: each would run it again.

    Raises:
        UserError: the call comes from the top level of such a script.
    """
    if (multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]) == "fork":
        return
    frame = inspect.currentframe()
    while frame and not (frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__main__"):
        frame = frame.f_back
    path = frame.f_globals.get("__file__") if frame else None
    if frame is None or not path or not Path(path).is_file():  # a notebook, say
        return
    for node in ast.parse(Path(path).read_bytes()).body:
        here = node.lineno <= frame.f_lineno <= (node.end_lineno or 0)
        if here and isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
            return
    raise UserError(
        f'processes that read images would run {path} again: put what it does under `if __name__ == "__main__":`, '
        "or give --workers 0"
    )
