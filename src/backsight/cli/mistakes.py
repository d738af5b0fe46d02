"""What is wrong with a command line, in one line: tyro's own words are a box, with the options of other commands."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from tyro.conf import Positional

from backsight.cli.app import metavar
from backsight.cli.commands import COMMANDS, GROUPS

POSITIONAL = get_args(Positional[str])[1]
"""What marks an argument without an option's name."""

NUMBERS = {int: "a whole number", float: "a number"}


@dataclass
class Typed:
    """A command line taken apart: words without an option, and of each option its values and how often it was typed."""

    words: list[str] = field(default_factory=list)
    values: dict[str, list[str]] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Typed:
        """``--batch_size=4`` is ``--batch-size 4``."""
        typed, name = cls(), ""
        for argument in arguments:
            if argument.startswith("--"):
                name, equals, value = argument.partition("=")
                name = name.replace("_", "-")
                typed.values.setdefault(name, []).extend([value] if equals else [])
                typed.times[name] = typed.times.get(name, 0) + 1
            else:
                (typed.values[name] if name else typed.words).append(argument)
        return typed


@dataclass(frozen=True)
class Argument:
    """One that a command takes: its name as it is typed, its type, whether it must be given."""

    name: str
    kind: Any
    required: bool

    @property
    def many(self) -> bool:
        """Whether it takes any number of values."""
        return any(get_origin(each) is tuple for each in _kinds(self.kind))

    @property
    def flag(self) -> bool:
        """Whether it takes no value."""
        return self.kind is bool


def explain(arguments: Sequence[str], said: str) -> str:
    """What is wrong with ``arguments``, and what would be right; what tyro ``said``, if nothing better is known."""
    typed = Typed.of(arguments)
    known, path = {**COMMANDS, **{name: functions for name, (_, functions) in GROUPS.items()}}, "backsight"
    while isinstance(known, dict):
        there = f"{path} has the commands {', '.join(known)}"
        if not typed.words:
            option = next(iter(typed.values), "")
            return f"a command is missing{f' before {option}' if option else ''}: {there}"
        word = typed.words.pop(0)
        if word not in known:
            return f"there is no command '{word}': {_near(word, known) or there}"
        known, path = known[word], f"{path} {word}"
    return next(_mistakes(list(_arguments(known)), typed, path), None) or _in_one_line(said)


def _mistakes(known: list[Argument], typed: Typed, path: str) -> Iterator[str]:
    """Each mistake in what was typed for the command at ``path``."""
    options = {each.name: each for each in known if each.name.startswith("--")}
    for name, values in typed.values.items():
        if name not in options:
            yield f"unknown option {name}: {_near(name, options) or f'{path} --help shows those there are'}"
            return
        yield from _of_values(options[name], values, typed)
    strange = [word for word in typed.words if re.match(r"-[^\d.]", word)]
    yield from (f"unknown option {word}: {path} --help shows those there are" for word in strange)
    positional = [each for each in known if not each.name.startswith("--")]
    missing = [each.name for each in positional[len(typed.words) :] if each.required]
    missing += [each.name for each in options.values() if each.required and each.name not in typed.values]
    if missing:
        yield f"{' and '.join(missing)} missing: {path} --help tells what to give"
    if len(typed.words) > len(positional) and not any(each.many for each in positional):
        takes = f"takes {' and '.join(each.name for each in positional)} alone" if positional else "takes options alone"
        yield f"'{typed.words[len(positional)]}' is one too many: {path} {takes}"


def _of_values(option: Argument, values: list[str], typed: Typed) -> Iterator[str]:
    """The mistakes in an option's values; those that it does not take are words again, as tyro has it."""
    name, takes = option.name, len(values) if option.many else 0 if option.flag else 1
    if len(values) > takes > 0 and typed.times[name] > 1:
        yield f"{name} is given {_times(typed.times[name])} ({', '.join(values)}): it takes one value, give it once"
    if takes > len(values):
        yield f"{name} has no value: {_wanted(option.kind) or 'give one behind it'}"
    typed.words += values[takes:]
    yield from (f"{name} {value}: {_wanted(option.kind)}" for value in values[:takes] if not _fits(value, option.kind))


def _arguments(command: Callable[..., None]) -> Iterator[Argument]:
    """Whatever a command takes: its positional arguments, and its options, those in dataclasses among them."""
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        required, hint = parameter.default is parameter.empty, hints[name]
        extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        kind = get_args(hint)[0] if extras else hint
        if POSITIONAL in extras:
            yield Argument(metavar(name), kind, required)
        elif hasattr(kind, "__dataclass_fields__"):
            yield from (Argument(_option(each), its, False) for each, its in get_type_hints(kind).items())
        else:
            yield Argument(_option(name), kind, required)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _kinds(kind: Any) -> list[Any]:
    """What a union is of, without None; the type itself, if it is none."""
    return [each for each in get_args(kind) if each is not NoneType] if _is_union(kind) else [kind]


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType)


def _single(kind: Any) -> Any:
    """The type of one value."""
    first = _kinds(kind)[0]
    return get_args(first)[0] if get_origin(first) is tuple else first


def _fits(value: str, kind: Any) -> bool:
    """Whether tyro can read ``value``, as far as numbers and choices go."""
    single = _single(kind)
    if get_origin(single) is Literal:
        return value in get_args(single)
    if single not in NUMBERS or (_is_union(kind) and value == "None"):
        return True
    try:
        single(value)
    except ValueError:
        return False
    return True


def _wanted(kind: Any) -> str:
    """What value an option takes; empty where any will do."""
    single = _single(kind)
    if get_origin(single) is Literal:
        return f"one of {', '.join(get_args(single))} is wanted"
    return f"{NUMBERS[single]} is wanted" if single in NUMBERS else ""


def _near(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else ""


def _times(number: int) -> str:
    return "twice" if number == 2 else f"{number} times"


def _in_one_line(box: str) -> str:
    """The words in tyro's box of several lines, without its heading."""
    words = re.sub(r"\x1b\[[0-9;]*m", " ", box)
    lines = [re.sub("[\u2500-\u257f]", " ", line) for line in words.splitlines() if "\u256d" not in line]
    return " ".join(" ".join(lines).split())
