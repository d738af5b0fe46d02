"""What a run shows while it goes on: a line on the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from backsight.core import Key
from backsight.training.loop import State

QUIET = 15.0
"""Seconds between two lines where the output is no terminal."""


class ProgressLine:
    """Images a second, time left, and the loss of every stage (the mean over seeds), on standard error."""

    def __init__(self, losses: Iterable[Key]) -> None:
        self.entries = list(dict.fromkeys(key.entry for key in losses))
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("step {task.fields[step]}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:3.0f} %  {task.fields[facts]}"),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task("train", total=1.0, step=0, facts="")
        self._begun: tuple[float, int, float] | None = None
        self._told = 0.0

    def __enter__(self) -> ProgressLine:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, state: State, losses: Mapping[Key, float], share: float) -> None:
        """Bring the line up to date."""
        now = time.monotonic()
        if self._begun is None:
            self._begun = (now, state.images, share)
        facts = f"{self._speed(state, share, now)}  {self._losses(losses)}"
        self._bar.update(self._task, completed=share, step=state.step, facts=facts)
        if not self._console.is_terminal and (now - self._told > QUIET or share >= 1):
            self._told = now
            print(f"step {state.step}  {100 * share:.0f} %  {facts}", file=sys.stderr, flush=True)

    def _speed(self, state: State, share: float, now: float) -> str:
        start, images, begun = self._begun or (now, state.images, share)
        seconds = now - start
        if seconds <= 0 or share <= begun:
            return "..."
        left = seconds * (1 - share) / (share - begun)
        minutes, rest = divmod(round(left), 60)
        return f"{(state.images - images) / seconds:.1f} images/s  {minutes}:{rest:02d} left"

    def _losses(self, losses: Mapping[Key, float]) -> str:
        found = []
        for entry in self.entries:
            values = [value for key, value in losses.items() if key.entry == entry]
            if values:
                found.append(f"{entry} {sum(values) / len(values):.4f}")
        return "  ".join(found)
