"""Where the curves go beside ``metrics.jsonl``: tensorboard, trackio, wandb, or nowhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

from backsight.core import Key, UserError
from backsight.training.loop import LOG_EVERY, State

LIBRARIES = {"tensorboard": "torch.utils.tensorboard", "trackio": "trackio", "wandb": "wandb"}
"""What is imported for a tracker, and only for it."""

Send = Callable[[Mapping[str, float], int], Any]
"""(numbers by name, step) -> sent."""


class Tracker:
    """Sends the losses of a run to the tracker called ``name``, under the name of the run's ``folder``.

    Raises:
        UserError: on entering, if its package is missing.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self._library: Any = None
        self._send: Send | None = None
        self._close: Callable[[], Any] = lambda: None

    def __enter__(self) -> Tracker:
        if self.name == "none":
            return self
        try:
            self._library = import_module(LIBRARIES[self.name])
        except ImportError as error:
            raise UserError(
                f"--tracker {self.name} needs a package that is missing: pip install 'backsight[{self.name}]', "
                "or use --tracker none"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._close()

    def log(self, state: State, losses: Mapping[Key, float], share: float) -> None:
        """Send the losses of the last reading."""
        if self._library is None or not losses or (state.step % LOG_EVERY and share < 1):
            return
        if self._send is None:  # only now, since a resumed run has to know its step
            self._send = self._board(state.step) if self.name == "tensorboard" else self._service()
        self._send({f"loss/{key}": value for key, value in losses.items()}, state.step)

    def _board(self, step: int) -> Send:
        """Files below the run's folder; what they say of later steps, which are run again, is dropped."""
        writer = self._library.SummaryWriter(str(self.folder / "tensorboard"), purge_step=step)
        self._close = writer.close

        def send(values: Mapping[str, float], step: int) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        return send

    def _service(self) -> Send:
        """trackio and wandb have the same words for the same things."""
        self._library.init(project="backsight", name=self.folder.resolve().name, resume="allow")
        self._close = self._library.finish
        return lambda values, step: self._library.log(dict(values), step=step)
