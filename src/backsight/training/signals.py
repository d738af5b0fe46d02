"""Signals that stop a run: it finishes its batch, writes a checkpoint, and reports how to go on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Ctrl-C; what Kubernetes and Slurm send before they take a machine away; what Slurm sends on request."""


class Interrupted(Exception):
    """A signal stopped the run; its checkpoint is written.

    Attributes:
        status: the command line's exit status: 130 for Ctrl-C, 0 for a scheduler's signal, who may start it again.
    """

    def __init__(self, number: int, steps: int) -> None:
        name = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
        super().__init__(f"{name} after {steps} steps: the same command with --resume goes on from there")
        self.status = 130 if number == signal.SIGINT else 0


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list to which the first signal to stop is written: no batch is left half done. A second Ctrl-C stops at once.

    Schedulers send theirs several times, and to several processes that pass them on: once is as good as often.
    """
    found: list[int] = []

    def note(number: int, frame: Any) -> None:
        del frame
        if found and number == signal.SIGINT:
            raise KeyboardInterrupt
        found.append(number)

    try:
        before = {number: signal.signal(number, note) for number in STOPPING}
    except ValueError:  # not in the main thread: whoever runs it there has to stop it
        before = {}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopRequested(Exception):
    """A signal to stop came during something that can be done again, as an evaluation."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number
