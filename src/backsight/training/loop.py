"""The one training loop, for every task."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from backsight.core import UserError
from backsight.data import Batch, sum_images
from backsight.devices import autocast
from backsight.tasks import Task
from backsight.training import random_states, stopping
from backsight.training.budget import Budget
from backsight.training.pieces import cut
from backsight.training.processes import Processes
from backsight.training.run_folder import RunFolder
from backsight.training.signals import Asked, Interrupted
from backsight.training.updates import Updates

logger = logging.getLogger(__name__)

LOG_EVERY = 10
"""Batches between two readings of the losses: reading one waits for the device."""
LOG_AFTER = 5.0
"""Seconds after which they are read all the same."""


@dataclass
class State:
    """Where a run is: all that a checkpoint holds beside networks and optimisers."""

    step: int = 0
    seconds: float = 0.0
    images: int = 0
    image_sum: Tensor | None = None
    pixel_counts: Tensor | int = 0
    best: dict[str, dict[str, Any]] = field(default_factory=dict)
    stopped: dict[str, dict[str, Any]] = field(default_factory=dict)
    looking: bool = False


class Loop:
    """Trains the networks of a task, each with its own optimiser and from its own loss.

    Args:
        task: what is optimised.
        epoch: (number, first batch) -> the batches of an epoch from there on.
        batches_an_epoch: how many there are.
        validate: -> the mean of every loss on the validation images; how well the forward model of each seed does its
            task, a number a seed.
        folder: where metrics and checkpoints go.
        budget: when to stop.
        evaluate_every, checkpoint_every: batches, minutes.
        processes: those that share the run.
        asked: the signals to stop that have come; see :func:`~backsight.training.signals.asked_to_stop`.

    Attributes:
        micro_batch: how many images pass the networks at once; None: the whole batch.
        watchers: told of every batch: (state, losses of the last reading, share of the run that is over).
    """

    def __init__(
        self,
        task: Task,
        epoch: Callable[[int, int], Iterator[Batch]],
        batches_an_epoch: int,
        validate: Callable[[], tuple[Mapping[str, float], Mapping[str, list[float]]]],
        folder: RunFolder,
        budget: Budget,
        *,
        precision: str,
        device: torch.device,
        evaluate_every: int,
        checkpoint_every: float,
        processes: Processes | None = None,
        asked: list[int] | None = None,
    ) -> None:
        self.task, self.epoch, self.batches_an_epoch = task, epoch, batches_an_epoch
        self.validate, self.folder, self.budget = validate, folder, budget
        self.precision, self.device = precision, device
        self.evaluate_every, self.checkpoint_every = evaluate_every, checkpoint_every
        self.watchers: list[Callable[[State, Mapping[str, float], float], None]] = []
        self.micro_batch: int | None = None
        self.state = State()
        self.processes, self.asked = processes or Processes(), [] if asked is None else asked
        self.updates = Updates(task.networks, task.learning_rates, task.covers, task.clips, self.processes)
        self._unread: list[tuple[int, dict[str, Tensor]]] = []
        self._losses: dict[str, float] = {}
        self._saved, self._read = 0.0, 0.0

    def run(self) -> State:
        """Train to the end of the budget.

        Raises:
            UserError: no loss is finite any longer.
            Interrupted: Ctrl-C or a signal to terminate; a checkpoint was written.
        """
        state = self.state
        if state.looking or not state.step:  # a signal cut a look short; or nothing is there yet: is there room?
            self._pause(0)
        while self.budget.share(state.step, state.seconds) < 1:
            start = time.monotonic()
            for batch in self.epoch(*divmod(state.step, self.batches_an_epoch)):
                self.step(batch)
                state.seconds += time.monotonic() - start
                self._look()
                if self.budget.share(state.step, state.seconds) >= 1:
                    break
                start = time.monotonic()
        return state

    def step(self, batch: Batch) -> None:
        """One batch: every loss, its backward pass, and the update of the networks that it covers, one by one."""
        state, losses = self.state, {}
        factor = self.budget.learning_rate(state.step, self.budget.share(state.step, state.seconds))
        self.processes.standing_in = not batch.ids
        (num_images,) = self.processes.total(len(batch.ids))
        if num_images:
            shares = self.processes.shares(self.task.weights(batch))
            pieces = cut(batch, self.micro_batch, self.task)
            for number, (piece, own) in enumerate(pieces, 1):
                for name, loss in self._in_precision(self.task.losses(piece.images, piece.valid, piece.targets)):
                    part = loss * (shares[name] * own[name])
                    losses[name] = losses.get(name, 0) + part.detach()
                    self.updates.apply(name, part, factor, last=number == len(pieces))
        if batch.ids:
            self._add_images(*sum_images(batch))
        state.step += 1
        state.images += int(num_images)
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

    def _look(self) -> None:
        """Between two batches: read losses, validate, write checkpoints, stop if asked to; all processes the same."""
        state = self.state
        state.seconds, unread, number = self.processes.highest(
            state.seconds, time.monotonic() - self._read, self.asked[0] if self.asked else 0
        )
        if state.step % LOG_EVERY == 0 or unread > LOG_AFTER or self._due(number):
            self._read_losses()  # first of all: the clock goes on while it waits, and may end the run
        share = self.budget.share(state.step, state.seconds)
        for watch in self.watchers:
            watch(state, self._losses, share)
        state.looking = state.step % self.evaluate_every == 0 or share >= 1
        if self._due(number):
            self._pause(int(number))

    def _due(self, number: float) -> bool:
        """Whether to pause now: for a look, the end, the signal ``number`` (0: none) or a checkpoint."""
        state = self.state
        over = state.step % self.evaluate_every == 0 or self.budget.share(state.step, state.seconds) >= 1
        return bool(over or number or state.seconds - self._saved > 60 * self.checkpoint_every)

    def _pause(self, number: int) -> None:
        """Validate if that is due, write a checkpoint, and stop if the signal ``number`` (0: none) asks for it.

        A look that a signal cuts short is due again when the run goes on.
        """
        state = self.state
        self._read_losses()
        if state.looking and not number:
            try:
                self._keep_best(*self.validate())
                state.looking = False
            except Asked as asked:
                number = asked.number
        self.save()
        if number:
            raise Interrupted(number, state.step)

    def _read_losses(self) -> None:
        """Bring the losses of the last batches to the host, all at once; those that are not finite stop.

        A GPU is waited for here, with all the work that the batches have left it: that is time of training.
        """
        unread, self._unread = self._unread, []
        self._read = time.monotonic()
        if not unread:
            return
        state = self.state
        names = list(unread[0][1])
        values = torch.stack([torch.stack([losses[name].float() for name in names]) for _, losses in unread])
        values = self.processes.add(values).cpu()
        (waited,) = self.processes.highest(time.monotonic() - self._read)
        state.seconds += waited
        stopped = {each["loss"] for each in state.stopped.values()}
        means = zip(names, values.mean(0).tolist(), strict=True)
        self._losses = {name: mean for name, mean in means if math.isfinite(mean) and name not in stopped}
        for row, column in (~values.isfinite()).nonzero().tolist():
            self._stop(names[column], unread[row][0], values[row, column].item())
        record = {"step": state.step, "images": state.images, "seconds": round(state.seconds, 3)}
        self.folder.log({**record, "losses": self._losses})

    def _stop(self, name: str, step: int, value: float) -> None:
        """Go down the loss ``name`` no further: it was ``value``. The other networks are as if it had never been."""
        state = self.state
        if not self.task.covers[name]:  # stopped already, or a loss that is only told
            return
        for network in self.task.stop(name):
            # The folder may be where the main process alone can read it.
            kept = self.processes.from_main(partial(stopping.good_weights, network, state.best, self.folder))
            self.task.networks[network].load_state_dict(kept["weights"])
            state.best[network] = kept
            state.stopped[network] = {"step": step, "loss": name, "value": str(value)}
            if self.processes.main:
                logger.warning("%s", stopping.news(network, state.stopped[network], state.best[network]["step"]))
        if state.stopped.keys() == self.task.networks.keys():
            raise UserError(f"no loss is finite any longer: {stopping.summary(state.stopped)}")

    def _keep_best(self, losses: Mapping[str, float], task_metrics: Mapping[str, list[float]]) -> None:
        """Remember the weights of every network that has never been better on the validation images."""
        state = self.state
        told = {"task_metrics": dict(task_metrics)} if task_metrics else {}
        finite = {name: loss for name, loss in losses.items() if math.isfinite(loss)}
        for name in losses.keys() - finite.keys():
            self._stop(name, state.step, losses[name])
        self.folder.log({"step": state.step, "images": state.images, "validation": finite, **told})
        for name, error in self.task.errors(losses).items():
            if name not in state.stopped and (name not in state.best or error < state.best[name]["error"]):
                state.best[name] = stopping.snapshot(self.task.networks[name], error, state.step)

    # ---- checkpoints

    def save(self) -> None:
        """Write all that is needed to go on exactly from here."""
        self._read_losses()
        self._saved = self.state.seconds
        self._join_sums()
        self.folder.save_checkpoint(
            self.state.step,
            {
                "state": vars(self.state),
                "networks": {name: network.state_dict() for name, network in self.task.networks.items()},
                "optimisers": self.updates.state_dict(),
                "random": self.processes.gather(random_states.capture()),
            },
        )
        self.processes.wait()

    def _join_sums(self) -> None:
        """Bring the sums of all processes' images together in the main one."""
        state = self.state
        if self.processes.count > 1:
            # From the host: a tensor arrives on the device that it was sent from, whoever receives it.
            own = None if state.image_sum is None else state.image_sum.cpu()
            seen = state.pixel_counts.cpu() if isinstance(state.pixel_counts, Tensor) else state.pixel_counts
            sums = self.processes.gather((own, seen))
            state.image_sum, state.pixel_counts = None, 0
            for total, counts in sums if self.processes.main else ():
                if total is not None:
                    self._add_images(total.to(self.device), counts)

    def _add_images(self, total: Tensor, counts: Tensor | int) -> None:
        """Take up the sum of some images, and over how many it goes."""
        state = self.state
        state.image_sum = total if state.image_sum is None else state.image_sum + total
        state.pixel_counts = state.pixel_counts + (counts.to(total.device) if isinstance(counts, Tensor) else counts)

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Go back to where ``checkpoint`` was written."""
        state = checkpoint["state"]
        self.state = State(**state)
        if not self.processes.main:
            self.state.image_sum, self.state.pixel_counts = None, 0
        for name in self.state.stopped.values():
            self.task.stop(name["loss"])
        for name in ("image_sum", "pixel_counts"):
            value = getattr(self.state, name)
            if isinstance(value, Tensor):
                setattr(self.state, name, value.to(self.device))
        for name, network in self.task.networks.items():
            network.load_state_dict(checkpoint["networks"][name])
        self.updates.load_state_dict(checkpoint["optimisers"])
        states = checkpoint["random"]
        random_states.restore(states[self.processes.rank % len(states)])
        self._saved = self.state.seconds
