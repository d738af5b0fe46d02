"""One run: from a model and a data set to trained chains, a card, and errors on images never seen."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor, nn

from backsight.chain import ChainEnsemble, InverseChain, describe
from backsight.core import Fit, Key, UserError
from backsight.data import READ_ONCE, Batch, ImageData, Splits, check_data, mean_of, open_data
from backsight.data.loader import worker_lost
from backsight.devices import autocast, choose_device, choose_precision, gain_of_bf16, keep_memory, peak_memory
from backsight.distributed import Processes, joined, restarted
from backsight.engine import StagedModel
from backsight.io import plain, write_bytes, write_text
from backsight.metrics import expect_measurable
from backsight.models import load_model, vocabulary
from backsight.options import ModelOptions, Precision, Recipe, TaskName, TrackerName, TrainOptions, Update, parse_size
from backsight.tasks import Task, begin, check_truth, make_task, settings_of
from backsight.training.batches import HeldOut, cache_images, count_batches, length, train_batches
from backsight.training.checkpoints import State, from_main, step_of
from backsight.training.feature_cache import FeatureCache, open_feature_cache
from backsight.training.folder import RunFolder, files_of_run
from backsight.training.kernels import choose_memory_format, compile_task, freeze_biases
from backsight.training.loop import Budget, Interrupted, Loop, NotFinite, StopRequested, stop_signals, stopped_in_words
from backsight.training.memory import Need, choose_micro_batch, in_units, memory_limit
from backsight.training.outputs import measure, save_models, score_by_seed, task_in_words, versions, write_card
from backsight.training.tracking import ProgressLine, Tracker
from backsight.weak_inverses import no_better, still_falling, weak_in_words

logger: logging.Logger = logging.getLogger(__name__)

TASK = ("task", "trade_off", "update", "stage", "forward_learning_rate", "begins_with")

SAME_TO_RESUME = ("model", "data", *TASK, "recipe", "inverses", "seeds", "batch_size", "budget", "precision")
"""What a resumed run has to share with the one that was started."""


KEPT = 2
"""Checkpoints of a run that goes on."""


def train(
    model: StagedModel | str,
    *,
    data: str = "world",
    out: str | Path = "runs/backsight",
    steps: int | None = None,
    epochs: float | None = None,
    minutes: float | None = None,
    task: TaskName = "modular",
    trade_off: float | None = None,
    update: Update | None = None,
    stage: str | None = None,
    forward_learning_rate: float | None = None,
    learning_rate: float | None = None,
    chain: str | None = None,
    seeds: int = 3,
    seed: int = 0,
    batch_size: int = 32,
    inverse: Sequence[str] = (),
    recipe: Recipe = "fast",
    precision: Precision = "auto",
    compile: Literal["auto", "on", "off"] = "auto",
    micro_batch: int | None = None,
    memory: str = "auto",
    feature_cache: str | Path | None = None,
    feature_cache_gb: float = 50.0,
    image_cache: str | Path | None = None,
    image_cache_gb: float = 50.0,
    workers: int = 2,
    evaluate_every: int | None = None,
    checkpoint_every: float = 5.0,
    keep_checkpoints: int | None = None,
    mirror: str | None = None,
    sync_batch_norm: bool = False,
    gradient_compression: Literal["bf16"] | None = None,
    max_validation: int = 512,
    max_test: int = 2000,
    strict: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    tracker: TrackerName = "none",
    size: str | None = None,
    weights: str | Path | None = None,
    random_weights: bool = False,
    device: str = "auto",
    spec: str | Path | None = None,
    fit: Fit | None = None,
) -> ChainEnsemble:
    """Train every inverse of ``model`` (a staged one, or what :func:`~backsight.load_model` takes), all stages and
    seeds in one pass of the forward model over the images. The arguments are the fields of
    :class:`~backsight.options.TrainOptions`, and of :class:`~backsight.options.ModelOptions` for a model that is named.

    Returns the chains with their best weights on the validation images; ``out`` holds the same.

    Raises:
        UserError: a mistake of the user; Interrupted: Ctrl-C or SIGTERM, and the run can be resumed.
    """
    given = locals()
    options = TrainOptions(**{each.name: given[each.name] for each in fields(TrainOptions)})
    return train_run(model, options, ModelOptions(**{each.name: given[each.name] for each in fields(ModelOptions)}))


def train_run(
    model: StagedModel | str, options: TrainOptions, model_options: ModelOptions | None = None
) -> ChainEnsemble:
    """:func:`train` with its options in two objects, as the command line has them.

    Processes that torchrun has started again go on from the last checkpoint.
    """
    model_options = model_options or ModelOptions()
    if restarted():
        options = replace(options, resume=True, overwrite=False)
    with torch.enable_grad(), joined(model_options.device) as processes:
        check_data(options.data)
        keep = options.keep_checkpoints or KEPT
        folder = RunFolder(options.out, keep=keep, writes=processes.main, mirror=options.mirror)
        processes.from_main(partial(_check_folder, folder, options))
        device = choose_device(model_options.device)
        if options.sync_batch_norm and device.type != "cuda":
            raise UserError("--sync-batch-norm is for GPUs: leave it out")
        model = (open_model(model, model_options) if isinstance(model, str) else model).to(device)
        expect_measurable(model.pixels.size)
        with stop_signals() as signals:
            try:
                return _train(Run(model, options, folder, processes, signals))
            except RuntimeError as error:
                raise worker_lost(error) or error from error


def _check_folder(folder: RunFolder, options: TrainOptions) -> None:
    folder.check_free()
    if folder.mirror is not None and options.resume and not folder.finished:
        folder.mirror.fetch(than=max(map(step_of, folder.checkpoints.paths()), default=-1))
    folder.check(resume=options.resume, overwrite=options.overwrite)


def _train(run: Run) -> ChainEnsemble:
    """From the first batch to the card, in the process that shows and tracks it or in one beside it."""
    options = run.options
    tracker = options.tracker if run.processes.main else "none"
    progress, curves = ProgressLine(run.task.covers), Tracker(tracker, run.folder.path)
    with ExitStack() as stack, progress, curves:
        loop = run.loop()
        claimed = run.folder.claimed(resume=options.resume, overwrite=options.overwrite)
        run.processes.from_main(lambda: (stack.enter_context(claimed), None)[1])
        if run.processes.main:
            loop.watchers = [progress.show, curves.log, run.check_memory]
            run.held_out.watch = progress.show_images
        run.begin(loop)
        state = loop.run() if run.task.networks else loop.state
        try:
            return run.finish(state)
        except StopRequested as stop:
            raise Interrupted(stop.number, state.step) from None


def open_model(name: str, options: ModelOptions) -> StagedModel:
    """The model that a user names, with the options of a command."""
    size, device = parse_size(options.size), choose_device(options.device)
    given = {"weights": options.weights, "random_weights": options.random_weights, "spec": options.spec}
    return load_model(name, size=size, device=device, **given).fitting(options.fit)


class Run:
    """Everything that one run consists of: the data opened, the inverses built, what was left open chosen. Nothing is
    written yet.

    Attributes:
        fingerprints: of the three parts of the data: the main process finds them.
        need: the memory that was estimated, if it was.
        cache: the forward model's features of the training images, where they are cached.
        held_out: what gives validation and test images, to every process its part.
        frozen_performance: what a forward model that is not trained does on the validation images: always the same.
    """

    def __init__(
        self,
        model: StagedModel,
        options: TrainOptions,
        folder: RunFolder,
        processes: Processes | None = None,
        signals: list[int] | None = None,
    ) -> None:
        self.model: StagedModel = model
        self.options: TrainOptions = options
        self.folder: RunFolder = folder
        processes = processes or Processes()
        self.processes: Processes = processes
        self.signals: list[int] = [] if signals is None else signals

        def opened() -> Splits:
            given = {"seed": options.seed, "strict": options.strict, "vocabulary": vocabulary(model)}
            return open_data(options.data, model.pixels, **given)

        if options.data.partition(":")[0] in READ_ONCE:
            splits = processes.from_main(opened)
        else:
            with processes.main_first():  # others find in a cache what it has fetched
                splits = opened()
        prints = processes.from_main(lambda: {part: data.fingerprint() for part, data in vars(splits).items()})
        self.splits: Splits = cache_images(splits, options, model.pixels, prints)
        self.fingerprints: dict[str, Any] = prints
        self.batches_an_epoch: int = count_batches(self.splits.train, options.batch_size)
        self.budget: Budget = Budget.of(options.steps, options.epochs, options.minutes, self.batches_an_epoch)
        if options.task == "joint":
            check_truth(model, self.splits.train)
        task = make_task(model, options)
        self.task: Task = task
        processes.same_weights([model.module, *task.networks.values()])
        before = processes.from_main(lambda: {} if options.overwrite else folder.config())
        self.precision: str = processes.from_main(lambda: _precision(options, task, before))
        keep_memory(model.device)
        freeze_biases(task.networks.values())
        choose_memory_format(task.networks.values(), model.device)
        if options.sync_batch_norm and processes.count > 1:
            for network in task.networks.values():
                nn.SyncBatchNorm.convert_sync_batchnorm(network)
        self.micro_batch: int | None
        self.need: Need | None
        self.memory: int | None = memory_limit(options.memory, model.device)
        self.micro_batch, self.need = choose_micro_batch(task, options, self.precision, before, processes)
        self.cache: FeatureCache | None = open_feature_cache(
            task, options, prints["train"], self.precision, processes.count
        )
        own = (self.micro_batch, options.workers)
        self.held_out: HeldOut = HeldOut(options.batch_size, model.device, processes, self.signals, *own)
        self.frozen_performance: dict[str, list[float]] | None = None

    @property
    def chains(self) -> list[InverseChain]:
        """The inverses, a chain for each seed."""
        return self.task.chains

    @property
    def device(self) -> torch.device:
        """Where everything is computed."""
        return self.model.device

    def config(self) -> dict[str, Any]:
        """All that is needed to run it again, in YAML's own types."""
        data = {
            name: {"images": length(each), "fingerprint": self.fingerprints[name]}
            for name, each in vars(self.splits).items()
        }
        config = {
            "command": command(),
            "model": describe(self.model),
            "data": {"spec": self.options.data, **data},
            **settings_of(self.model, self.options),
            "inverses": {entry: asdict(plan) for entry, plan in self.chains[0].plans.items()},
            "seeds": [chain.seed for chain in self.chains],
            "batch_size": self.options.batch_size,
            "budget": asdict(self.budget),
            "recipe": self.options.recipe,
            "precision": self.precision,
            "options": asdict(self.options),
            "versions": versions(),
        }
        return plain(config, "the configuration")

    def loop(self) -> Loop:
        """The training loop of this run."""
        loop = Loop(
            self.task,
            self.options,
            self.budget,
            self.folder,
            self.epoch,
            self.batches_an_epoch,
            self.validate,
            precision=self.precision,
            micro_batch=self.micro_batch,
            memory=self.memory,
            processes=self.processes,
            positions=getattr(self.splits.train, "positions", {}),
            signals=self.signals,
        )
        own = max(1, len(self.processes.part(range(self.options.batch_size))))
        compile_task(self.task, self.options.compile, self.micro_batch or own, self.precision)
        return loop

    def begin(self, loop: Loop) -> None:
        """Go back to the newest checkpoint of a resumed run; on a new one, let the inverses begin, then write the
        configuration: a run that is replaced is there until this one has read its first images."""
        config, folder = {**self.config(), "micro_batch": loop.micro_batch}, self.folder

        def saved() -> dict[str, Any] | None:
            if not folder.started or self.options.overwrite:
                return None
            folder.check_config(config, SAME_TO_RESUME)
            return folder.checkpoints.load()

        def written() -> None:
            if folder.started and not self.options.overwrite:
                return
            folder.write_config(config)
            size = sum(4 * each.nbytes for network in self.task.networks.values() for each in network.parameters())
            logger.info("a checkpoint has about %s, and the last %d stay until the run is done", in_units(size), KEPT)

        checkpoint = from_main(self.processes, saved)
        if checkpoint is not None:
            loop.load(checkpoint)
        else:
            torch.manual_seed(self.options.seed + self.processes.rank)  # of the noise of flows, and of dropout
            if self.options.chain is None:
                self.begin_inverses(loop.state)
        self.processes.from_main(written)
        folder.forget_after(loop.state.step)

    def begin_inverses(self, state: State) -> None:
        """Let new inverses begin by what the first training images tell (:func:`begin`). Without any to train, the mean
        image is that of those."""
        task, options = self.task, self.options
        quick = options.recipe != "paper"  # a flow has units in any recipe
        begun = {key: each for key, each in task.networks.items() if quick or getattr(each, "samples", False)}
        inverses = {**task.computed, **begun}
        batches = train_batches(self.splits.train, options, self.processes, self.device, 0, 0)
        if not task.networks:
            batches = state.counting(batches)
        begin(self.model, inverses, batches, options.batch_size, self.processes, self.held_out.watch)

    # ---- data

    def epoch(self, number: int, start: int) -> Iterator[Batch]:
        """This process's part of the batches of epoch ``number``, from batch ``start`` on."""
        found = train_batches(self.splits.train, self.options, self.processes, self.device, number, start)
        return iter(found if self.cache is None else self.cache.over(found))

    @property
    def validation(self) -> tuple[ImageData, int]:
        """The images that the best weights are picked on, and how many of them at the most."""
        return self.splits.validation, self.options.max_validation

    @torch.no_grad()
    def validate(self) -> tuple[dict[Key, float], dict[str, list[float]]]:
        """Every loss on the validation images, as in training, and how well the forward models do their task there."""
        self.task.train(False)
        try:
            losses = self.held_out.losses(self.task, *self.validation, self.precision)
            return losses, self.performance()
        finally:
            self.task.train()

    def performance(self) -> dict[str, list[float]]:
        """How well the forward models do their task on the validation images; computed once where they are frozen."""
        if self.frozen_performance is not None:
            return self.frozen_performance
        images = partial(self.held_out.batches, *self.validation)
        with autocast(self.precision, self.device):
            found = score_by_seed(self.task, images, self.held_out.gather)
        if self.options.task != "joint":
            self.frozen_performance = found
        return found

    # ---- the end

    def finish(self, state: State) -> ChainEnsemble:
        """Take the best weights, save the chains, measure them on the test images; the card is written last.

        Raises:
            NotFinite: some networks stopped early; all else is done and written.
            StopRequested: a signal to stop came; the newest checkpoint is that of the end.
        """
        mean = self.processes.from_main(lambda: self.mean_image(state)).to(self.device)
        for name, network in self.task.networks.items():
            if name in state.best:
                network.load_state_dict(state.best[name]["weights"])
        self.task.train(False)
        if self.processes.main:
            save_models(self.task, self.folder.path)
            write_bytes(self.folder.path / "mean_image.safetensors", save({"mean_image": mean.cpu()}))
        tested = partial(self.held_out.batches, self.splits.test, self.options.max_test, "testing")
        with autocast(self.precision, self.device):
            result, known = measure(self.task, tested, mean, self.held_out.gather)
        weak = {**still_falling(self.folder.metrics()), **no_better(result)}
        for sentence in weak_in_words(weak) if self.processes.main else ():
            logger.warning(sentence)
        facts = self.facts(state)
        facts |= {"says_little": "; ".join(f"{entry}: {why}" for entry, why in weak.items())} if weak else {}
        data = {"data": self.options.data, "data_fingerprint": facts["data_fingerprint"]}
        card = {**result.subjects[0], **data, "training": facts}
        result = replace(result, subjects=[card], command=command())
        if self.processes.main:
            if known is not None:
                known.save(self.folder.path)
            result.write(self.folder.path / "evaluation.json")
            write_text(self.folder.path / "card.md", write_card(result))
            if self.options.keep_checkpoints is None:
                self.folder.checkpoints.remove()
            if self.folder.mirror is not None:
                paths = files_of_run(self.folder.path)
                self.folder.mirror.put_result(paths, remove=self.options.keep_checkpoints is None)
        self.processes.wait()
        if state.stopped:
            raise NotFinite(f"{self.folder.path} is done, but some stopped: {stopped_in_words(state.stopped)}")
        return ChainEnsemble(self.chains)

    def mean_image(self, state: State) -> Tensor:
        """The mean of all training images seen, ``3 H W``, which the main process knows."""
        if state.image_sum is None:
            raise UserError(f"none of the training images of {self.options.data} can be read")
        return mean_of(state.image_sum, state.pixel_counts).float().cpu()

    def check_memory(self, state: State, losses: Mapping[Key, float], share: float) -> None:
        """After the first batch: say so where it took more than was estimated."""
        del losses, share
        peak = peak_memory(self.device)
        if state.step == 1 and self.need is not None and peak > self.need.of(self.at_once):
            found = in_units(peak), in_units(self.need.of(self.at_once))
            logger.warning("the first batch took %s, and %s were estimated: a smaller --micro-batch is safer", *found)

    @property
    def at_once(self) -> int:
        """How many images pass the networks of this process at the same time."""
        return min(self.micro_batch or sys.maxsize, -(-self.options.batch_size // self.processes.count))

    def _memory(self) -> dict[str, Any]:
        """What the card says of memory: the estimate, and in how many images a batch passes."""
        estimate = {} if self.need is None else {"estimated_memory_GiB": round(self.need.of(self.at_once) / 2**30, 2)}
        return {**estimate, **({} if self.micro_batch is None else {"micro_batch": self.micro_batch})}

    def _precision_in_words(self) -> str:
        if self.options.precision != "auto" or self.device.type == "mps":
            return self.precision
        gain = gain_of_bf16(self.device, convolutions=has_convolutions(self.task))
        return f"{self.precision} (measured here: bf16 {gain:.1f} times as fast as fp32)"

    def facts(self, state: State) -> dict[str, Any]:
        """What the card states of the run."""
        pixels, splits = self.model.pixels, self.splits
        device = f"{self.device.type}, {torch.get_num_threads()} threads"
        if self.device.type == "cuda":
            device = torch.cuda.get_device_name(self.device)
        unreadable = [set(getattr(data, "unreadable", ())) for data in vars(splits).values()]
        skipped = [set().union(*found) for found in zip(*self.held_out.gather(unreadable), strict=True)]
        return {
            "model": self.model.name,
            "weights": self.model.weights,
            "data": self.options.data,
            "data_fingerprint": self.fingerprints["test"],
            "images": f"{length(splits.train)} train, {len(splits.validation)} validation, {len(splits.test)} test",
            "unreadable_images_skipped": sum(map(len, skipped)),
            "image_size": f"{pixels.size[0]}x{pixels.size[1]} (H x W), {pixels.fit}, crop {pixels.crop_fraction:g}",
            **({"channels": f"{pixels.channels}: {pixels.conversion}"} if pixels.conversion else {}),
            "task": task_in_words(settings_of(self.model, self.options)),
            "seeds": ", ".join(str(chain.seed) for chain in self.chains),
            "recipe": self.options.recipe,
            "steps": state.step,
            "images_seen": state.images,
            "images_per_second": round(state.images / max(state.seconds, 1e-9), 2),
            "device": device,
            "processes": self.processes.count,
            "device_hours": round(self.processes.count * state.seconds / 3600, 4),
            "peak_memory_GiB": round(peak_memory(self.device) / 2**30, 2),
            **self._memory(),
            "precision": self._precision_in_words(),
            **({"stopped_early": stopped_in_words(state.stopped)} if state.stopped else {}),
            "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
            "command": command(),
        }


def _precision(options: TrainOptions, task: Task, before: Mapping[str, Any]) -> str:
    """What is asked for or, by ``auto``, measured; a run that goes on keeps to what was measured when it began."""
    if options.precision == "auto" and before.get("options", {}).get("precision") == "auto":
        return before["precision"]
    return choose_precision(options.precision, task.model.device, convolutions=has_convolutions(task))


def has_convolutions(task: Task) -> bool:
    """Whether a network that is trained has convolutions larger than a patch's projection."""
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    return any(isinstance(each, kinds) for network in task.networks.values() for each in network.modules())


def command() -> str:
    """The command line of this process, as a user would type it."""
    program, *arguments = sys.argv or ["python"]
    name = program.rsplit("/", 1)[-1]
    return shlex.join([name if name != "__main__.py" else "backsight", *arguments])
