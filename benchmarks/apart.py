"""A side in a process of its own, so that nothing that the measuring process has set for itself helps or hinders it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Self

import torch

from backsight.core import UserError
from benchmarks.measure import Side, Spent, spend


class Apart:
    """An object that lives in another process, whose methods are sides.

    Args:
        make: builds the object, there.
        args: what it is built from; they have to survive pickling, as ``make`` has.
        device: where it computes.
    """

    def __init__(self, make: Callable[..., object], *args: Any, device: torch.device | str = "cpu") -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit threads, and how memory is handled
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, str(device), make, args), daemon=True)
        self._process.start()
        there.close()

    def side(self, method: str, *args: Any) -> Side:
        """A side that calls ``method`` with ``args`` over there, where it is also timed.

        It raises what the method raises, and a ``UserError`` if the process is gone.
        """

        def run() -> Spent:
            try:
                self._here.send((method, args))
                found = self._here.recv()
            except (EOFError, OSError) as error:
                raise UserError("a process that is measured was ended, perhaps for want of memory") from error
            if isinstance(found, Exception):
                raise found
            return found

        return run

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):
            self._here.send(None)  # closing is not enough: processes forked since then hold the pipe open
        self._process.join()


def _serve(there: Connection, device: str, make: Callable[..., object], args: tuple) -> None:
    """Build the object, then do what is asked for until nobody asks any more, or nobody is left."""
    made: object = None
    with suppress(EOFError, BrokenPipeError):
        for method, given in iter(there.recv, None):
            try:
                made = make(*args) if made is None else made
                answer = spend(partial(getattr(made, method), *given), device)
            except Exception as error:  # it is raised where somebody waits
                answer = error
            there.send(answer)
