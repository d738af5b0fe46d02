"""What a command is, and how commands print."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro

Group = tyro.extras.SubcommandApp

METAVARS = {
    "repository": "OWNER/NAME",
    "folder": "DIR",
    "images": "IMAGES...",
    "models": "[MODELS...]",
    "names": "[NAMES...]",
}
"""What stands for an argument without an option's name in the documentation, if not its own name in capitals."""


def metavar(name: str) -> str:
    """What the help and the messages call a positional argument."""
    return METAVARS.get(name, name.upper())


def add(group: Group, name: str, function: Callable[..., None]) -> None:
    """Make a function a command. Parsing gives the call, not yet its effect, so that only parsing is listened to."""

    @functools.wraps(function)
    def bound(*positional: Any, **named: Any) -> Callable[[], None]:
        return functools.partial(function, *positional, **named)

    hints = _named(get_type_hints(function, include_extras=True))
    del bound.__wrapped__  # whose own annotations tyro would take
    bound.__annotations__ = {**hints, "return": Any}
    parameters = inspect.signature(function).parameters.values()
    own = [each.replace(annotation=hints[each.name]) for each in parameters]
    bound.__dict__["__signature__"] = inspect.Signature(own, return_annotation=Any)
    register: Any = group.command
    register(bound, name=name)


def _named(hints: dict[str, Any]) -> dict[str, Any]:
    """Positional arguments by their own names: STR tells nobody what to type."""
    positional = get_args(tyro.conf.Positional[str])[1]
    return {
        name: Annotated[hint, tyro.conf.arg(metavar=metavar(name))]
        if get_origin(hint) is Annotated and positional in get_args(hint)
        else hint
        for name, hint in hints.items()
    }


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """Columns with a heading each, as wide as the terminal allows."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*map(escape, row))  # [logits] is a field here, not a style
    Console().print(table)


def save(path: Path | None, value: object) -> None:
    """Write ``value`` as JSON where the user asked for it."""
    if path is not None:
        from backsight.io import write_json

        write_json(path, value)
