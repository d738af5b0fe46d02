"""One run: from a model and a data set to trained chains, a card, and errors on images never seen."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from backsight.chain import ChainEnsemble, InverseChain, describe
from backsight.core import Key, UserError
from backsight.data import Batch, ImageData, Splits, mean_of, open_data
from backsight.devices import autocast, choose_precision, keep_memory, peak_memory
from backsight.engine import StagedModel
from backsight.io import write_bytes, write_text
from backsight.models import vocabulary
from backsight.options import TrainOptions
from backsight.tasks import Task, check_truth, make_task, settings_of
from backsight.training.batches import cache_images, count_batches, length, train_batches
from backsight.training.compiling import compile_task
from backsight.training.distributed import Processes
from backsight.training.evaluator import Evaluator
from backsight.training.feature_cache import FeatureCache, open_feature_cache
from backsight.training.folder import RunFolder
from backsight.training.loop import Budget, Loop, NotFinite, State, stopped_in_words
from backsight.training.memory import choose_micro_batch
from backsight.training.memory_format import choose_memory_format, freeze_biases
from backsight.training.norms import share_statistics
from backsight.training.outputs import measure, save_models, score_by_seed, task_in_words, versions, write_card

TASK = ("task", "trade_off", "update", "stage", "forward_learning_rate", "begins_with")

SAME_TO_RESUME = ("model", "data", *TASK, "inverses", "seeds", "batch_size", "budget", "precision")
"""What a resumed run has to share with the one that was started."""


EVALUATE_EVERY = 25
"""Batches between two evaluations, at the least: one costs several batches."""


@dataclass
class Run:
    """Everything that one run consists of."""

    model: StagedModel
    task: Task
    splits: Splits
    budget: Budget
    precision: str
    options: TrainOptions
    folder: RunFolder
    processes: Processes = field(default_factory=Processes)
    signals: list[int] = field(default_factory=list)
    """The signals to stop that have come."""
    cache: FeatureCache | None = None
    """The forward model's features of the training images, where they are cached."""
    frozen_performance: dict[str, list[float]] | None = None
    """What a forward model that is not trained does on the validation images: the same at every evaluation."""

    @classmethod
    def of(
        cls, model: StagedModel, options: TrainOptions, folder: RunFolder, processes: Processes | None = None
    ) -> Run:
        """Open the data, build the inverses, and choose what was left open. Writes nothing."""
        words = vocabulary(model)
        splits = open_data(options.data, model.pixels, seed=options.seed, strict=options.strict, vocabulary=words)
        splits = cache_images(splits, options, model.pixels)
        an_epoch = count_batches(splits.train, options.batch_size)
        budget = Budget.of(options.steps, options.epochs, options.minutes, an_epoch)
        if options.task == "joint":
            check_truth(model, splits.train)
        precision = choose_precision(options.precision, model.device)
        task, processes = make_task(model, options), processes or Processes()
        processes.same_weights([model.module, *task.networks.values()])
        keep_memory(model.device)
        freeze_biases(task.networks.values())
        choose_memory_format(task.networks.values(), model.device)
        for network in task.networks.values():
            share_statistics(network, processes)
        cache = open_feature_cache(task, options, splits.train, precision, processes.count)
        return cls(model, task, splits, budget, precision, options, folder, processes, cache=cache)

    @property
    def chains(self) -> list[InverseChain]:
        """The inverses, a chain for each seed."""
        return self.task.chains

    @property
    def device(self) -> torch.device:
        """Where everything is computed."""
        return self.model.device

    @property
    def batches_an_epoch(self) -> int:
        """How many batches the training images make."""
        return count_batches(self.splits.train, self.options.batch_size)

    def config(self) -> dict[str, Any]:
        """All that is needed to run it again, in YAML's own types."""
        data = {
            name: {"images": length(each), "fingerprint": each.fingerprint()}
            for name, each in vars(self.splits).items()
        }
        return _plain(
            {
                "command": command(),
                "model": describe(self.model),
                "data": {"spec": self.options.data, **data},
                **settings_of(self.model, self.options),
                "inverses": {entry: asdict(plan) for entry, plan in self.chains[0].plans.items()},
                "seeds": [chain.seed for chain in self.chains],
                "batch_size": self.options.batch_size,
                "budget": asdict(self.budget),
                "precision": self.precision,
                "options": asdict(self.options),
                "versions": versions(),
            }
        )

    def loop(self) -> Loop:
        """The training loop of this run."""
        options, an_epoch = self.options, self.batches_an_epoch
        every = max(
            EVALUATE_EVERY, min(an_epoch, self.budget.steps // 10 if self.budget.steps else 10 * EVALUATE_EVERY)
        )
        loop = Loop(
            self.task,
            self.epoch,
            an_epoch,
            self.validate,
            self.folder,
            self.budget,
            precision=self.precision,
            device=self.device,
            evaluate_every=options.evaluate_every or every,
            checkpoint_every=options.checkpoint_every,
            processes=self.processes,
            signals=self.signals,
        )
        batches, before = self.epoch(0, 0), {} if options.overwrite else self.folder.config()
        loop.micro_batch = choose_micro_batch(self.task, options, batches, self.precision, before)
        own = max(1, len(self.processes.part(range(options.batch_size))))
        compile_task(self.task, options.compile, loop.micro_batch or own, self.precision)
        return loop

    def begin(self, loop: Loop) -> None:
        """Write the configuration; on a resumed run, go back to the newest checkpoint."""
        config, folder = {**self.config(), "micro_batch": loop.micro_batch}, self.folder

        def saved() -> dict[str, Any] | None:
            if not folder.started:
                folder.write_config(config)
                return None
            folder.check_config(config, SAME_TO_RESUME)
            return folder.load_checkpoint()

        checkpoint = self.processes.from_main(saved)
        if checkpoint is not None:
            loop.load(checkpoint)
        folder.forget_after(loop.state.step)

    # ---- data

    def epoch(self, number: int, start: int) -> Iterator[Batch]:
        """This process's part of the batches of epoch ``number``, from batch ``start`` on.

        Where it has no image it gets one that does not count, so that all processes compute the same.
        """
        nothing = torch.zeros(1, 3, *self.model.pixels.size, device=self.device)
        found = train_batches(self.splits.train, self.options, self.processes, self.device, number, start)
        for batch in found if self.cache is None else self.cache.over(found):
            yield batch if batch.ids or self.processes.count == 1 else Batch(nothing, (), ())

    @property
    def evaluator(self) -> Evaluator:
        """What gives validation and test images, to every process its part."""
        return Evaluator(self.options.batch_size, self.device, self.processes, self.signals)

    @property
    def validation(self) -> tuple[ImageData, int]:
        """The images that the best weights are picked on, and how many of them at the most."""
        return self.splits.validation, self.options.max_validation

    @torch.no_grad()
    def validate(self) -> tuple[dict[Key, float], dict[str, list[float]]]:
        """Every loss on the validation images, as in training, and how well the forward models do their task there."""
        self.task.train(False)
        try:
            losses = self.evaluator.losses(self.task, *self.validation, self.precision)
            return losses, self.performance()
        finally:
            self.task.train()

    def performance(self) -> dict[str, list[float]]:
        """How well the forward models do their task on the validation images; computed once where they are frozen."""
        if self.frozen_performance is not None:
            return self.frozen_performance
        with autocast(self.precision, self.device):
            evaluator = self.evaluator
            found = score_by_seed(self.task, lambda: evaluator.batches(*self.validation), evaluator.gather)
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
        with autocast(self.precision, self.device):
            result = measure(self.task, self.test_batches, mean, self.evaluator.gather)
        facts = self.facts(state)
        data = {"data": self.options.data, "data_fingerprint": facts["data_fingerprint"]}
        card = {**result.subjects[0], **data, "training": facts}
        result = replace(result, subjects=[card], command=command())
        if self.processes.main:
            result.write(self.folder.path / "evaluation.json")
            write_text(self.folder.path / "card.md", write_card(result))
        self.processes.wait()
        if state.stopped:
            raise NotFinite(f"{self.folder.path} is done, but some stopped: {stopped_in_words(state.stopped)}")
        return ChainEnsemble(self.chains)

    def mean_image(self, state: State) -> Tensor:
        """The mean of all training images seen, ``3 H W``, which the main process knows."""
        if state.image_sum is None:
            raise UserError(f"none of the training images of {self.options.data} can be read")
        return mean_of(state.image_sum, state.pixel_counts).float().cpu()

    def test_batches(self) -> Iterator[Batch]:
        """The test images that figures are reported on."""
        return self.evaluator.batches(self.splits.test, self.options.max_test)

    def facts(self, state: State) -> dict[str, Any]:
        """What the card states of the run."""
        pixels, splits = self.model.pixels, self.splits
        unreadable = [set(getattr(data, "unreadable", ())) for data in vars(splits).values()]
        skipped = [set().union(*found) for found in zip(*self.evaluator.gather(unreadable), strict=True)]
        return {
            "model": self.model.name,
            "weights": self.model.weights,
            "data": self.options.data,
            "data_fingerprint": splits.test.fingerprint(),
            "images": f"{length(splits.train)} train, {len(splits.validation)} validation, {len(splits.test)} test",
            "unreadable_images_skipped": sum(map(len, skipped)),
            "image_size": f"{pixels.size[0]}x{pixels.size[1]} (H x W), {pixels.fit}, crop {pixels.crop_fraction:g}",
            "task": task_in_words(settings_of(self.model, self.options)),
            "seeds": ", ".join(str(chain.seed) for chain in self.chains),
            "steps": state.step,
            "images_seen": state.images,
            "images_per_second": round(state.images / max(state.seconds, 1e-9), 2),
            "device": _device_name(self.device),
            "processes": self.processes.count,
            "device_hours": round(self.processes.count * state.seconds / 3600, 4),
            "peak_memory_GiB": round(peak_memory(self.device) / 2**30, 2),
            "precision": self.precision,
            **({"stopped_early": stopped_in_words(state.stopped)} if state.stopped else {}),
            "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
            "command": command(),
        }


def command() -> str:
    """The command line of this process, as a user would type it."""
    program, *arguments = sys.argv or ["python"]
    name = program.rsplit("/", 1)[-1]
    return shlex.join([name if name != "__main__.py" else "backsight", *arguments])


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def _plain(value: Any) -> Any:
    """Only what YAML and JSON have: tuples become lists, paths text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
