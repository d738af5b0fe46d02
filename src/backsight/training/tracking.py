"""What shows how a run goes: a line on the terminal, and curves in tensorboard, trackio or wandb."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from backsight.core import Key, UserError
from backsight.training.checkpoints import State
from backsight.training.loop import LOG_EVERY

SECONDS_BETWEEN_LINES = 15.0
"""Where the output is no terminal."""

LIBRARIES = {"tensorboard": "torch.utils.tensorboard", "trackio": "trackio", "wandb": "wandb"}
"""What is imported for a tracker, and only for it."""


class ProgressLine:
    """Images a second, time left, and the loss of every stage (the mean over seeds), on standard error."""

    def __init__(self, losses: Iterable[Key]) -> None:
        self.entries: list[str] = list(dict.fromkeys(key.entry for key in losses))
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
        self._printed_at = 0.0

    def __enter__(self) -> ProgressLine:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, state: State, losses: Mapping[Key, float], share: float) -> None:
        """Bring the line up to date."""
        now = time.monotonic()
        if self._begun is None:
            self._begun = (now, state.images, share)
        facts = f"{self._speed(state, share, now)}  {self._losses(losses)}"
        self._bar.update(self._task, completed=share, step=state.step, facts=facts)
        if not self._console.is_terminal and (now - self._printed_at > SECONDS_BETWEEN_LINES or share >= 1):
            self._printed_at = now
            print(f"step {state.step}  {100 * share:.0f} %  {facts}", file=sys.stderr, flush=True)

    def show_images(self, what: str, done: int, total: int) -> None:
        """How far an evaluation is: as training, but by images."""
        now = time.monotonic()
        facts = f"{what} {done} of {total} images"
        self._bar.update(self._task, facts=facts)
        if not self._console.is_terminal and now - self._printed_at > SECONDS_BETWEEN_LINES:
            self._printed_at = now
            print(facts, file=sys.stderr, flush=True)

    def _speed(self, state: State, share: float, now: float) -> str:
        start, images, begun = self._begun or (now, state.images, share)
        seconds = now - start
        if seconds <= 0 or share <= begun:
            return "..."
        minutes, rest = divmod(round(seconds * (1 - share) / (share - begun)), 60)
        return f"{(state.images - images) / seconds:.1f} images/s  {minutes}:{rest:02d} left"

    def _losses(self, losses: Mapping[Key, float]) -> str:
        found = []
        for entry in self.entries:
            values = [value for key, value in losses.items() if key.entry == entry]
            if values:
                found.append(f"{entry} {sum(values) / len(values):.4f}")
        return "  ".join(found)


Send = Callable[[Mapping[str, float], int], Any]
"""(numbers by name, step) -> sent."""


class Tracker:
    """Sends the losses of a run to the tracker called ``name``, under the name of the run's ``folder``.

    Raises:
        UserError: on entering, if its package is missing.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name: str = name
        self.folder: Path = folder
        self._library: Any = None
        self._send: Send | None = None
        self._close: Callable[[], Any] = lambda: None

    def __enter__(self) -> Tracker:
        if self.name != "none":
            try:
                self._library = import_module(LIBRARIES[self.name])
            except ImportError as error:
                raise UserError(
                    f"--tracker {self.name} needs a package that is missing: pip install 'backsight[{self.name}]', "
                    "or use --tracker none"
                ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def log(self, state: State, losses: Mapping[Key, float], share: float) -> None:
        """Send the losses that were logged last."""
        if self._library is None or not losses or (state.step % LOG_EVERY and share < 1):
            return
        if self._send is None:  # only now, since a resumed run has to know its step
            self._send = self._open_tensorboard(state.step) if self.name == "tensorboard" else self._open_service()
        self._send({f"loss/{key}": value for key, value in losses.items()}, state.step)

    def _open_tensorboard(self, step: int) -> Send:
        """Files below the run's folder; what they have of later steps, which are run again, is dropped."""
        writer = self._library.SummaryWriter(str(self.folder / "tensorboard"), purge_step=step)
        self._close = writer.close

        def send(values: Mapping[str, float], step: int) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        return send

    def _open_service(self) -> Send:
        """trackio and wandb have the same words for the same things."""
        self._library.init(project="backsight", name=self.folder.resolve().name, resume="allow")
        self._close = self._library.finish
        return lambda values, step: self._library.log(dict(values), step=step)
