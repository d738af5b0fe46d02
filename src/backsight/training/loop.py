"""The one training loop, for every task: forward, backward, step, log, evaluate, checkpoint."""

from __future__ import annotations

import logging
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from backsight.core import Key, UserError
from backsight.data import Batch, sum_images
from backsight.data.loader import Position
from backsight.devices import autocast, give_back_memory, memory_in_use
from backsight.distributed import Processes
from backsight.options import TrainOptions
from backsight.tasks import FORWARD, Task
from backsight.tasks.task import Counts, Loss
from backsight.training.checkpoints import State, copied_aside, random_states, restore_random_states
from backsight.training.folder import RunFolder
from backsight.training.updates import CLIP, Updates, schedule

logger: logging.Logger = logging.getLogger(__name__)

EVALUATE_EVERY = 25
"""Batches between two evaluations, at the least: one costs several batches."""

LOG_EVERY = 10
"""Batches after which the losses are logged: to read one waits for the device."""
LOG_AFTER = 5.0
"""Seconds after which they are logged all the same."""


class NotFinite(UserError):
    """Some networks stopped before the end of a run, which is finished: their losses were not finite."""


@dataclass(frozen=True)
class Budget:
    """The end of a run: after ``steps`` batches, or after ``minutes`` of training."""

    steps: int | None = None
    minutes: float | None = None

    @classmethod
    def of(cls, steps: int | None, epochs: float | None, minutes: float | None, steps_an_epoch: int) -> Budget:
        """The budget that a user's options mean, one of them at the most; ten epochs where none is given."""
        if minutes is not None:
            return cls(minutes=minutes)
        return cls(steps=steps if steps is not None else math.ceil((epochs or 10) * steps_an_epoch))

    def share(self, step: int, seconds: float) -> float:
        """How much of the run is over after ``step`` batches and ``seconds`` of training, 0 to 1."""
        spent = step / self.steps if self.steps else seconds / (60 * (self.minutes or math.inf))
        return min(1.0, spent)


class Loop:
    """Trains the networks of a task, each with its own optimiser and from its own loss.

    Args:
        task: what is optimised.
        options: those of the run.
        budget: when to stop.
        folder: where metrics and checkpoints go.
        epoch: (number, first batch) -> this process's part of the batches of an epoch from there on.
        batches_an_epoch: how many there are.
        validate: -> the mean of every loss on the validation images; how well the forward model of each seed does its
            task, a number a seed.
        precision: ``fp32`` or ``bf16``.
        micro_batch: how many images pass the networks at once; None: the whole batch.
        memory: the bytes that this process may hold; None: nobody knows.
        processes: those that share the run.
        positions: where the readers of a stream are, which goes on from there.
        signals: the signals to stop that have come; see :func:`stop_signals`.

    Attributes:
        watchers: called after every batch: (state, losses last logged, share of the run that is over).
    """

    def __init__(
        self,
        task: Task,
        options: TrainOptions,
        budget: Budget,
        folder: RunFolder,
        epoch: Callable[[int, int], Iterator[Batch]],
        batches_an_epoch: int,
        validate: Callable[[], tuple[Mapping[Key, float], Mapping[str, list[float]]]],
        *,
        precision: str,
        micro_batch: int | None,
        memory: int | None,
        processes: Processes,
        positions: dict[tuple[int, int], Position],
        signals: list[int],
    ) -> None:
        self.task: Task = task
        self.options: TrainOptions = options
        self.budget: Budget = budget
        self.folder: RunFolder = folder
        self.epoch: Callable[[int, int], Iterator[Batch]] = epoch
        self.batches_an_epoch: int = batches_an_epoch
        self.validate: Callable[[], tuple[Mapping[Key, float], Mapping[str, list[float]]]] = validate
        self.precision: str = precision
        self.micro_batch: int | None = micro_batch
        self.memory: int | None = memory
        self.device: torch.device = task.model.device
        self.processes: Processes = processes
        self.positions: dict[tuple[int, int], Position] = positions
        self.signals: list[int] = signals
        self.state: State = State()
        tenth = budget.steps // 10 if budget.steps else 10 * EVALUATE_EVERY
        self.evaluate_every: int = options.evaluate_every or max(EVALUATE_EVERY, min(batches_an_epoch, tenth))
        self.watchers: list[Callable[[State, Mapping[Key, float], float], None]] = []
        self.parallel: list[DistributedDataParallel] = distribute(task, processes, options.gradient_compression)
        self.updates: dict[Key, Updates] = {
            key: Updates(network, options.recipe, task.learning_rates[key], task.clips.get(key, CLIP))
            for key, network in task.networks.items()
        }
        self.losses: dict[Key, float] = {}
        """The means that were logged last."""
        self._unlogged: list[tuple[int, dict[Key, Tensor]]] = []
        self._logged_at, self._saved_at = 0.0, 0.0

    @property
    def progress(self) -> float:
        """How much of the run is over, 0 to 1."""
        return self.budget.share(self.state.step, self.state.seconds)

    def run(self) -> State:
        """Train to the end of the budget.

        Raises:
            UserError: no loss is finite any longer.
            Interrupted: Ctrl-C or a signal to terminate; a checkpoint was written.
        """
        state = self.state
        if state.evaluation_due or not state.step:  # a signal cut it short; or the run is new: is there room to save?
            self.pause(0)
            self.folder.checkpoints.wait()
        while self.progress < 1:
            start = time.monotonic()
            for batch in self.epoch(*divmod(state.step, self.batches_an_epoch)):
                self.step(batch)
                state.seconds += time.monotonic() - start
                # Processes decide alike: by the slowest one's clock, and by a signal to any of them.
                state.seconds, unlogged_for, number = self.processes.highest(
                    state.seconds, time.monotonic() - self._logged_at, self.signals[0] if self.signals else 0
                )
                if state.step % LOG_EVERY == 0 or unlogged_for > LOG_AFTER or self._pause_is_due(number):
                    self.log_losses()  # before anything else: the clock goes on while it waits, and may end the run
                for watch in self.watchers:
                    watch(state, self.losses, self.progress)
                state.evaluation_due = state.step % self.evaluate_every == 0 or self.progress >= 1
                if self._pause_is_due(number):
                    self.pause(int(number))
                self.folder.checkpoints.check()
                if self.progress >= 1:
                    break
                start = time.monotonic()
        return state

    def step(self, batch: Batch) -> None:
        """One pass forward; then for each loss backward, and a step of the networks that it trains."""
        state, losses = self.state, dict[Key, Tensor]()
        factor = schedule(self.options.recipe, state.step, self.progress)
        num_images, parts = split(batch, self.micro_batch, self.task, self.processes)
        for number, (part, counts) in enumerate(parts, 1):
            last = number == len(parts)
            # Without an image this process computes with one that does not count, so that all do the same; the
            # statistics of a BatchNorm do not follow that one.
            self.task.train(bool(part.ids))
            with ExitStack() as stack:
                for each in () if last else self.parallel:  # gradients of the other parts are only added up
                    stack.enter_context(each.no_sync())
                for key, loss, networks in self._forward(part, counts):
                    losses[key] = losses[key] + loss.detach() if key in losses else loss.detach()
                    if networks:
                        loss.backward(torch.full_like(loss, self.processes.count))  # DDP gives the mean of processes
                    for network in networks if last else ():  # at once, so that one loss at a time has gradients
                        self.updates[network].step(factor)
                    self._hold_no_more()
            self.task.train()
        if batch.ids:
            state.add_images(*sum_images(batch))
        state.step += 1
        state.images += num_images
        if losses:
            self._unlogged.append((state.step, losses))

    def _hold_no_more(self) -> None:
        """Give what was freed back to the kernel, where a CPU's memory is short: kept, it grows from batch to batch, as
        large blocks are taken from it in another order."""
        if self.memory is not None and self.device.type == "cpu" and memory_in_use(self.device) > self.memory:
            give_back_memory()

    def _forward(self, part: Batch, counts: Counts | None) -> Iterator[Loss]:
        """The losses of ``part``, computed one after the other under autocast, which backward passes are not to be."""
        losses = self.task.losses(part.images, part.valid, part.targets, counts)
        while True:
            with autocast(self.precision, self.device):
                loss = next(losses, None)
            if loss is None:
                return
            yield loss

    # ---- log

    def log_losses(self) -> None:
        """Bring the losses of the last batches to the host, all at once, and log their means; stop those not finite.

        A GPU is waited for here, with all the work that the batches have left it: that is time of training.
        """
        unlogged, self._unlogged = self._unlogged, []
        self._logged_at = time.monotonic()
        if not unlogged:
            return
        state, keys = self.state, list(unlogged[0][1])
        values = torch.stack([torch.stack([losses[key].float() for key in keys]) for _, losses in unlogged])
        values = self.processes.add(values).cpu()
        (waited,) = self.processes.highest(time.monotonic() - self._logged_at)
        state.seconds += waited
        stopped = {each["loss"] for each in state.stopped.values()}
        means = zip(keys, values.mean(0).tolist(), strict=True)
        self.losses = {key: mean for key, mean in means if math.isfinite(mean) and key not in stopped}
        for row, column in (~values.isfinite()).nonzero().tolist():
            self.stop(keys[column], unlogged[row][0], values[row, column].item())
        record = {"step": state.step, "images": state.images, "seconds": round(state.seconds, 3)}
        self.folder.log({**record, "losses": _as_text(self.losses)})

    def stop(self, loss: Key, step: int, value: float) -> None:
        """Train the networks of ``loss`` no more: it was ``value``. The others go on as if they had never been.

        They get their best weights on the validation images so far; before there are such, those of the newest
        checkpoint.

        Raises:
            UserError: there are no such weights, or no network is left.
        """
        state = self.state
        if not self.task.covers[loss]:  # stopped already, or only logged
            return
        for key in self.task.stop(loss):
            if key not in state.best:  # the folder may be where the main process alone can read it
                state.best[key] = self.processes.from_main(partial(self._saved_weights, key))
            good = state.best[key]
            if not all(bool(each.isfinite().all()) for each in good["weights"].values()):
                raise UserError(f"{in_words(key)} has no finite weights to go back to: begin again with --overwrite")
            self.task.networks[key].load_state_dict(good["weights"])
            state.stopped[key] = {"step": step, "loss": loss, "value": str(value)}
            if self.processes.main:
                logger.warning(
                    "%s stops: its loss is %s at step %d. It goes back to its weights of step %d; the other networks "
                    "go on as before", in_words(key), value, step, good["step"],
                )  # fmt: skip
        if state.stopped.keys() == self.task.networks.keys():
            raise UserError(f"no loss is finite any longer: {stopped_in_words(state.stopped)}")

    def _saved_weights(self, key: Key) -> dict[str, Any]:
        checkpoint = self.folder.checkpoints.load()
        if checkpoint is None:
            raise UserError(f"{in_words(key)} has no weights to go back to: begin again with --overwrite")
        return {"error": math.inf, "step": checkpoint["state"]["step"], "weights": checkpoint["networks"][str(key)]}

    # ---- evaluate and checkpoint

    def _pause_is_due(self, number: float) -> bool:
        """Whether an evaluation, the end, the signal ``number`` (0: none) or a checkpoint is due now."""
        state = self.state
        over = state.step % self.evaluate_every == 0 or self.progress >= 1
        return bool(over or number or state.seconds - self._saved_at > 60 * self.options.checkpoint_every)

    def pause(self, number: int) -> None:
        """Evaluate if that is due, write a checkpoint, and stop if the signal ``number`` (0: none) asks for it.

        An evaluation that a signal cuts short stays due when the run goes on.

        Raises:
            Interrupted: there is a signal, or one came meanwhile.
        """
        state = self.state
        self.log_losses()
        self._share_statistics()
        if state.evaluation_due and not number:
            try:
                self.keep_best(*self.validate())
                state.evaluation_due = False
            except StopRequested as stop:
                number = stop.number
        self.save()
        if number:
            self.folder.checkpoints.wait()
            raise Interrupted(number, state.step)

    def keep_best(self, losses: Mapping[Key, float], task_metrics: Mapping[str, list[float]]) -> None:
        """Log an evaluation, and keep the weights of every network that was never better on the validation images."""
        state = self.state
        finite = {key: loss for key, loss in losses.items() if math.isfinite(loss)}
        for key in losses.keys() - finite.keys():
            self.stop(key, state.step, losses[key])
        record = {"step": state.step, "images": state.images, "validation": _as_text(finite)}
        self.folder.log({**record, **({"task_metrics": dict(task_metrics)} if task_metrics else {})})
        for key, error in self.task.errors(losses).items():
            if key not in state.stopped and (key not in state.best or error < state.best[key]["error"]):
                network = self.task.networks[key]
                weights = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
                state.best[key] = {"error": error, "step": state.step, "weights": weights}

    def save(self) -> None:
        """Write a checkpoint: all that is needed to go on exactly from here."""
        self.log_losses()
        self._saved_at = self.state.seconds
        self._gather_image_sums()
        states = self.processes.gather(random_states())
        positions = self.processes.gather([tuple(each) for each in self.positions.values()])
        if not self.processes.main:
            return
        networks = {str(key): dict(network.state_dict()) for key, network in self._saved_networks().items()}
        optimisers = {str(key): updates.state_dict() for key, updates in self.updates.items()}
        # The best weights, and sums of images, are made anew: nobody changes them in their place.
        checkpoint = {
            "state": self.state.state_dict(),
            "networks": copied_aside(networks),
            "optimisers": copied_aside(optimisers),
            "random": states,
            "positions": sorted({each for own in positions for each in own}),
        }
        self.folder.checkpoints.save(self.state.step, checkpoint)

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Go back to where ``checkpoint`` was written."""
        self.state = State.from_dict(checkpoint["state"], self.device)
        if not self.processes.main:  # which has the sum of all
            self.state.image_sum, self.state.pixel_counts = None, 0
        for each in self.state.stopped.values():
            self.task.stop(each["loss"])
        for key, network in self._saved_networks().items():
            network.load_state_dict(checkpoint["networks"][str(key)])
        for key, updates in self.updates.items():
            updates.load_state_dict(checkpoint["optimisers"][str(key)])
        states = checkpoint["random"]
        restore_random_states(states[self.processes.rank % len(states)])
        for each in checkpoint.get("positions", ()):  # sorted: of one reader the last counts
            self.positions[each[:2]] = Position(*each)
        self._saved_at = self.state.seconds

    def _saved_networks(self) -> dict[Key, nn.Module]:
        return {**self.task.networks, **self.task.computed}

    def _gather_image_sums(self) -> None:
        """Add up the sums of all processes' images in the main one."""
        state = self.state
        if self.processes.count == 1:
            return
        # From the host: a tensor arrives on the device that it was sent from, whoever receives it.
        own = None if state.image_sum is None else state.image_sum.cpu()
        counts = state.pixel_counts.cpu() if isinstance(state.pixel_counts, Tensor) else state.pixel_counts
        sums = self.processes.gather((own, counts))
        state.image_sum, state.pixel_counts = None, 0
        for total, counts in sums if self.processes.main else ():
            if total is not None:
                state.add_images(total.to(self.device), counts)

    def _share_statistics(self) -> None:
        """Give every BatchNorm that is trained the mean of its running statistics over all processes."""
        norms = [each for network in self.task.networks.values() for each in network.modules() if each.training]
        for name in ("running_mean", "running_var") if self.processes.count > 1 else ():
            for tensor in (getattr(norm, name, None) for norm in norms):
                if tensor is not None:
                    self.processes.add(tensor).div_(self.processes.count)


def split(
    batch: Batch, size: int | None, task: Task, processes: Processes
) -> tuple[int, list[tuple[Batch, Counts | None]]]:
    """How many images a batch of all ``processes`` has; this one's part of it in micro-batches of at most ``size``
    images, as many as the others have, and what their losses are means over.

    Gradients are added up. The result is that of the whole batch, to rounding, since its loss is the weighted mean of
    theirs. The exception is BatchNorm, as everywhere: it normalises each by that one's own mean and variance.
    """
    own = len(batch.ids)
    numbers = [int(number) for (number,) in processes.every(own)]
    size = size or max(numbers)
    if processes.count == 1 and own <= size:
        return own, [(batch, None)] if own else []
    nothing = Batch(torch.zeros(1, 3, *task.model.pixels.size, device=task.model.device), (), ())
    starts = range(0, max(numbers), size or 1)
    parts = [batch.part(start, min(start + size, own)) if start < own else nothing for start in starts]
    counts = [task.weights(part) for part in parts]
    together = processes.sums(counts)
    whole = {name: sum(table[name] for table in together) for name in (together[0] if together else ())}
    given = zip(parts, counts, together, strict=True)
    return sum(numbers), [(part, Counts(mine, all_, whole, processes.count)) for part, mine, all_ in given]


def distribute(task: Task, processes: Processes, compression: str | None = None) -> list[DistributedDataParallel]:
    """Wrap every network of ``task``, where there are several processes: torch then takes the mean of their gradients
    while it still goes backward.

    Raises:
        UserError: ``compression`` without GPUs that are connected by NCCL.
    """
    found = []
    for key in task.networks if processes.count > 1 else ():
        with warnings.catch_warnings():  # of another name that `broadcast_buffers` has in new versions
            warnings.simplefilter("ignore", FutureWarning)
            parallel = DistributedDataParallel(
                task.modules[key],
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                # Of a forward model some weights have no gradient, in ways that depend on the images.
                find_unused_parameters=key.stage == FORWARD,
            )
        if compression:
            try:
                parallel.register_comm_hook(None, bf16_compress_hook)
            except TypeError as error:
                raise UserError("--gradient-compression is for GPUs: leave it out") from error
        task.modules[key] = parallel
        found.append(parallel)
    return found


def _as_text(losses: Mapping[Key, float]) -> dict[str, float]:
    return {str(key): loss for key, loss in losses.items()}


def in_words(key: Key) -> str:
    """``'encoder' (seed 0)``."""
    return f"'{key.entry}' (seed {key.seed})"


def stopped_in_words(stopped: Mapping[Key, Mapping[str, Any]]) -> str:
    """The stopped networks in one line, and what may help."""
    networks = ", ".join(f"{in_words(key)} at step {each['step']}" for key, each in stopped.items())
    entry = next(iter(stopped)).entry
    return f"{networks}; lower the learning rate, as --inverse {entry}=NAME:learning_rate=1e-4, or use --precision fp32"


# ---- signals

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
