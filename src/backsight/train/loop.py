"""The one training loop, for every task."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from backsight.core import UserError
from backsight.data import Batch, sum_images
from backsight.devices import autocast
from backsight.train.budget import Budget
from backsight.train.run_folder import RunFolder
from backsight.train.updates import Updates

LOG_EVERY = 10
"""Batches between two readings of the losses: reading one waits for the device."""
LOG_AFTER = 5.0
"""Seconds after which they are read all the same."""


class Task(Protocol):
    """A forward pass and a loss for each of several networks."""

    networks: dict[str, nn.Module]
    learning_rates: dict[str, float]

    def losses(self, images: Tensor, valid: Tensor | None = None) -> Iterator[tuple[str, Tensor]]:
        """Images ``B 3 H W`` in [0, 1], pictures where they are ``valid`` -> (network, its loss), one by one."""
        ...


@dataclass
class State:
    """Where a run is: all that a checkpoint holds beside networks and optimisers."""

    step: int = 0
    seconds: float = 0.0
    images: int = 0
    image_sum: Tensor | None = None
    pixel_counts: Tensor | int = 0
    best: dict[str, dict[str, Any]] = field(default_factory=dict)


class Interrupted(Exception):
    """The run was asked to stop; its checkpoint is written."""


class Loop:
    """Trains the networks of a task, each with its own optimiser and from its own loss.

    Args:
        task: what is optimised.
        epoch: (number, first batch) -> the batches of an epoch from there on.
        batches_an_epoch: how many there are.
        validate: -> the error of every network on the validation images.
        folder: where metrics and checkpoints go.
        budget: when to stop.
        evaluate_every, checkpoint_every: batches, minutes.

    Attributes:
        watchers: told of every batch: (state, losses of the last reading, share of the run that is over).
    """

    def __init__(
        self,
        task: Task,
        epoch: Callable[[int, int], Iterator[Batch]],
        batches_an_epoch: int,
        validate: Callable[[], Mapping[str, float]],
        folder: RunFolder,
        budget: Budget,
        *,
        precision: str,
        device: torch.device,
        evaluate_every: int,
        checkpoint_every: float,
    ) -> None:
        self.task, self.epoch, self.batches_an_epoch = task, epoch, batches_an_epoch
        self.validate, self.folder, self.budget = validate, folder, budget
        self.precision, self.device = precision, device
        self.evaluate_every, self.checkpoint_every = evaluate_every, checkpoint_every
        self.watchers: list[Callable[[State, Mapping[str, float], float], None]] = []
        self.state = State()
        self.updates = Updates(task.networks, task.learning_rates)
        self._unread: list[tuple[int, dict[str, Tensor]]] = []
        self._losses: dict[str, float] = {}
        self._saved, self._read = 0.0, 0.0

    def run(self) -> State:
        """Train to the end of the budget.

        Raises:
            UserError: a loss is no longer finite.
            Interrupted: Ctrl-C or a signal to terminate; a checkpoint was written.
        """
        state = self.state
        with _asked_to_stop() as asked:
            while self.budget.share(state.step, state.seconds) < 1:
                start = time.monotonic()
                for batch in self.epoch(*divmod(state.step, self.batches_an_epoch)):
                    self.step(batch)
                    state.seconds += time.monotonic() - start
                    self._look(asked)
                    if self.budget.share(state.step, state.seconds) >= 1:
                        break
                    start = time.monotonic()
        return state

    def step(self, batch: Batch) -> None:
        """One batch: every network's loss, backward pass and update, one network after the other."""
        state, losses = self.state, {}
        factor = self.budget.learning_rate(state.step, self.budget.share(state.step, state.seconds))
        if batch.ids:
            for name, loss in self._in_precision(self.task.losses(batch.images, batch.valid)):
                losses[name] = loss.detach()
                self.updates.apply(name, loss, factor)
            total, counts = sum_images(batch)
            state.image_sum = total if state.image_sum is None else state.image_sum + total
            state.pixel_counts = state.pixel_counts + counts
        state.step += 1
        state.images += len(batch.ids)
        if losses:
            self._unread.append((state.step, losses))

    def _in_precision(self, losses: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The same losses, their forward passes under autocast; backward passes follow their own rules."""
        while True:
            with autocast(self.precision, self.device):
                found = next(losses, None)
            if found is None:
                return
            yield found

    def _look(self, asked: list[int]) -> None:
        """Between two batches: read losses, validate, write checkpoints, stop if asked to."""
        state = self.state
        share = self.budget.share(state.step, state.seconds)
        if state.step % LOG_EVERY == 0 or share >= 1 or time.monotonic() - self._read > LOG_AFTER:
            self._read_losses()
        for watch in self.watchers:
            watch(state, self._losses, share)
        due = state.step % self.evaluate_every == 0 or share >= 1
        if due:
            self._read_losses()
            self._keep_best(self.validate())
        if asked:
            self._read_losses()
        if due or asked or state.seconds - self._saved > 60 * self.checkpoint_every:
            self.save()
        if asked:
            raise Interrupted(
                f"interrupted after {state.step} steps: the same command with --resume goes on from there"
            )

    def _read_losses(self) -> None:
        """Bring the losses of the last batches to the host, all at once; stop at the first that is not finite."""
        unread, self._unread = self._unread, []
        self._read = time.monotonic()
        if not unread:
            return
        names = list(unread[0][1])
        values = torch.stack([torch.stack([losses[name].float() for name in names]) for _, losses in unread]).cpu()
        if not values.isfinite().all():
            row, column = (~values.isfinite()).nonzero()[0].tolist()
            self._stop_at(unread[row][0], names[column], values[row, column].item())
        self._losses = dict(zip(names, values.mean(0).tolist(), strict=True))
        state = self.state
        record = {"step": state.step, "images": state.images, "seconds": round(state.seconds, 3)}
        self.folder.log({**record, "losses": self._losses})

    def _stop_at(self, step: int, name: str, value: float) -> None:
        seed, _, entry = name.partition("/")
        good = self.folder.checkpoints()
        saved = f"the last good checkpoint is {good[-1]}" if good else "no checkpoint was written yet"
        raise UserError(
            f"the loss of '{entry}' (seed {seed}) is {value} at step {step}: {saved}; "
            f"lower its learning rate, as --inverse {entry}=NAME:learning_rate=1e-4, or use --precision fp32"
        )

    def _keep_best(self, errors: Mapping[str, float]) -> None:
        """Remember the weights of every network that has never been better on the validation images."""
        state = self.state
        self.folder.log({"step": state.step, "images": state.images, "validation": dict(errors)})
        for name, error in errors.items():
            if name not in state.best or error < state.best[name]["error"]:
                weights = {key: value.detach().cpu().clone() for key, value in self._weights(name).items()}
                state.best[name] = {"error": error, "step": state.step, "weights": weights}

    def _weights(self, name: str) -> dict[str, Tensor]:
        return self.task.networks[name].state_dict()

    # ---- checkpoints

    def save(self) -> None:
        """Write all that is needed to go on exactly from here."""
        self._read_losses()
        self._saved = self.state.seconds
        self.folder.save_checkpoint(
            self.state.step,
            {
                "state": vars(self.state),
                "networks": {name: network.state_dict() for name, network in self.task.networks.items()},
                "optimisers": self.updates.state_dict(),
                "random": torch.get_rng_state(),
            },
        )

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Go back to where ``checkpoint`` was written."""
        state = checkpoint["state"]
        self.state = State(**{"pixel_counts": state["images"], **state})  # which older checkpoints do not have
        for name in ("image_sum", "pixel_counts"):
            value = getattr(self.state, name)
            if isinstance(value, Tensor):
                setattr(self.state, name, value.to(self.device))
        for name, network in self.task.networks.items():
            network.load_state_dict(checkpoint["networks"][name])
        self.updates.load_state_dict(checkpoint["optimisers"])
        torch.set_rng_state(checkpoint["random"])
        self._saved = self.state.seconds


@contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """A list that the first Ctrl-C or SIGTERM writes to: no batch is left half done. A second one stops at once."""
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        del frame

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever runs it there has to stop it
        before = {}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
