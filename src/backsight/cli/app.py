"""What a command is, and how commands print."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro

Group = tyro.extras.SubcommandApp


def add(group: Group, name: str, function: Callable[..., None]) -> None:
    """Make a function a command. Parsing gives the call, not yet its effect, so that only parsing is listened to."""

    @functools.wraps(function)
    def bound(*positional: Any, **named: Any) -> Callable[[], None]:
        return functools.partial(function, *positional, **named)

    bound.__annotations__ = {**function.__annotations__, "return": Any}
    register: Any = group.command
    register(bound, name=name)


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
        from backsight.files import write_json

        write_json(path, value)
