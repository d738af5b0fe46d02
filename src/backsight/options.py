"""What a user may set, with the defaults, and what he may not. Imports nothing heavy, so that ``--help`` is quick."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from backsight.validation import (
    AnyNumber,
    Number,
    Positive,
    Range,
    Share,
    Side,
    UserError,
    check_folder,
    check_main_guard,
    convert,
    convert_fields,
    option,
)

Precision = Literal["auto", "fp32", "bf16"]
TaskName = Literal["modular", "classic", "joint"]
Recipe = Literal["fast", "paper", "ridge"]
Update = Literal["chain", "sum", "isolated", "backwards-only"]
TrackerName = Literal["none", "tensorboard", "trackio", "wandb"]
ModelName = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
Size = Annotated[str | None, tyro.conf.arg(metavar="HxW")]


@dataclass(frozen=True)
class ModelOptions:
    """How a forward model is loaded."""

    size: Size = None
    """Image size in pixels other than the model's own, as 384x512."""
    weights: Path | None = None
    """A file of weights for the model: .safetensors, or .pth/.bin (never unpickled); FILE:ema: its averages."""
    random_weights: bool = False
    """Build the true-size model with random weights, to try things out; every output says so."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps."""
    spec: Path | None = None
    """Where the stages of a model of your own (FILE.py:FUNCTION) are: a YAML file."""
    fit: Literal["stretch", "crop", "pad"] | None = None
    """How pictures come to the model's size, if not as its library has it: stretch, crop (the centre), or pad (the
    whole picture, its aspect kept; for detectors that take a mask)."""

    def __post_init__(self) -> None:
        convert_fields(self)
        parse_size(self.size)


ALTERNATIVES = (
    ("steps", "epochs", "minutes"),
    ("micro_batch", "memory"),
    ("chain", "inverse"),
    ("resume", "overwrite"),
)
"""Options that say the same in different ways, or opposites."""


@dataclass(frozen=True)
class RunOptions:
    """How inverses are trained, whatever the task."""

    data: str = "world"
    """Images to train on: coco:DIR, voc:DIR, yolo:DIR (each with :SPLIT), folder:DIR, hf:NAME, parquet:PATH,
    wds:PATTERN, world (the synthetic one), or stream:NAME, which has no epochs."""
    out: Path = Path("runs/backsight")
    """The run's folder."""
    steps: Number | None = None
    """Stop after this many batches."""
    epochs: Positive | None = None
    """Stop after this many passes over the training images."""
    minutes: Positive | None = None
    """Stop after this many minutes of training."""
    update: Update | None = None
    """Joint training's reconstruction loss: chain (of the image, through all inverses), sum (of all components),
    isolated (only the first stage's reaches the forward model), backwards-only (the forward model stays as it is);
    chain if not given."""
    stage: str | None = None
    """The stage that classic and joint training reconstruct from; default: the last one that is no prediction."""
    forward_learning_rate: Positive | None = None
    """Joint training's learning rate of the forward model; 1e-5 if not given."""
    learning_rate: Positive | None = None
    """The learning rate of all inverses, in place of the recipe's: a lower one, where they begin well trained."""
    chain: str | None = None
    """Begin with the inverses of a run, of zoo/... or of a name on the hub, instead of new ones."""
    seeds: Number = 3
    """How many instances of every inverse to train, side by side."""
    seed: Annotated[int, Range(0, 2**32)] = 0
    """The first of these seeds; also of the order of the images."""
    batch_size: Number = 32
    """Images in a batch."""
    inverse: tuple[str, ...] = ()
    """Another inverse for a stage (backbone=local), one more beside it (backbone@local=local), options after a
    colon (backbone=deconvolution:expansion=2,learning_rate=1e-3), or none (prediction@onehot=none)."""
    recipe: Recipe = "fast"
    """fast (Muon for matrices, outputs that begin with the mean and spread of what they have to give), paper (Adam at a
    constant rate), or ridge (every inverse a linear one in closed form: no training)."""
    precision: Precision = "auto"
    """bf16 autocast, or plain fp32; auto takes bf16 where the machine is quick at it."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile for the forward model's blocks and the inverses; auto compiles on a GPU alone."""
    micro_batch: Number | None = None
    """How many images of a batch pass the networks at once; their gradients are added up. Default: see --memory."""
    memory: str = "auto"
    """The memory to stay within, as 8GiB: batches that do not fit pass in parts. auto: what the device has free."""
    feature_cache: Path | None = None
    """A folder to keep the forward model's features in, for later epochs and runs (modular training)."""
    feature_cache_gb: Positive = 50.0
    """The most that is written there, in GB."""
    image_cache: Path | None = None
    """A folder to keep decoded and resized images in, for later epochs and runs."""
    image_cache_gb: Positive = 50.0
    """The most that is written there, in GB."""
    workers: AnyNumber = 2
    """Processes that read images; 0 reads them in the training process."""
    evaluate_every: Number | None = None
    """Batches between two evaluations on the validation images; default: ten a run, at least 25 batches apart."""
    checkpoint_every: Annotated[float, Range(0)] = 5.0
    """Minutes between two checkpoints; each evaluation writes one too."""
    keep_checkpoints: Number | None = None
    """How many checkpoints to keep, the newest ones, also once the run is done; default: two, until it is."""
    mirror: str | None = None
    """Another place for checkpoints, as s3://bucket/run or a folder: --resume goes on from the newest of both."""
    sync_batch_norm: bool = False
    """On several GPUs: BatchNorm over the whole batch, not over the part of each."""
    gradient_compression: Literal["bf16"] | None = None
    """On several GPUs: how gradients travel between them; as they are, if not given."""
    max_validation: Number = 512
    """How many validation images to use at the most."""
    max_test: Number = 2000
    """How many test images to use at the most."""
    strict: bool = False
    """Fail at the first image that cannot be read, instead of skipping and counting it."""
    resume: bool = False
    """Go on with the unfinished run in the folder, exactly where it stopped."""
    overwrite: bool = False
    """Replace the run in the folder."""
    tracker: TrackerName = "none"
    """Where to send the curves, beside metrics.jsonl."""

    def __post_init__(self) -> None:
        convert_fields(self)
        defaults = {each.name: each.default for each in fields(self)}
        for names in ALTERNATIVES:
            given = [option(name) for name in names if getattr(self, name) != defaults[name]]
            if len(given) > 1:
                raise UserError(f"{' and '.join(given)} do not go together: give one of them")
        if self.memory != "auto":
            parse_bytes(self.memory)
        for name in ("feature_cache", "image_cache"):
            if getattr(self, name) is not None:
                check_folder(getattr(self, name), option(name))
        if is_stream(self.data):
            self._check_stream()
        if self.workers:
            check_main_guard()

    def _check_stream(self) -> None:
        """A stream has no length, and its images cannot be told apart or read in another order."""
        if self.steps is None and self.minutes is None:
            raise UserError(f"{self.data} is a stream, which has no epochs: give --steps or --minutes")
        for name in ("image_cache", "feature_cache"):
            if getattr(self, name) is not None:
                raise UserError(f"{option(name)} keeps images that come again: leave it out with a stream, {self.data}")


def is_stream(data: str) -> bool:
    """Whether data has no length and no epochs: ``stream:NAME``, and compressed tar files.

    >>> is_stream("wds:train-{000..127}.tar"), is_stream("wds:train.tar.gz")
    (False, True)
    """
    kind, _, rest = data.partition(":")
    return kind == "stream" or (kind == "wds" and not rest.endswith((".tar", "*")))


TASKS_OF: dict[str, tuple[TaskName, ...]] = {
    "trade_off": ("joint",),
    "update": ("joint",),
    "forward_learning_rate": ("joint",),
    "stage": ("classic", "joint"),
    "feature_cache": ("modular",),
}
"""The tasks that an option is for, where it is not for all of them."""


@dataclass(frozen=True)
class TrainOptions(RunOptions):
    """How inverses are trained."""

    task: TaskName = "modular"
    """What is optimised: modular (every inverse its own component), classic (one image loss through all inverses of a
    stage) or joint (the forward model is trained too, see --trade-off)."""
    trade_off: Share | None = None
    """Joint training's lambda: the weight of the reconstruction, 0 to 1; the rest is that of the model's own task."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, tasks in TASKS_OF.items():
            if getattr(self, name) is not None and self.task not in tasks:
                raise UserError(
                    f"{option(name)} is for --task {' or '.join(tasks)}: leave it out of {self.task} training"
                )
        if self.task == "joint" and self.trade_off is None:
            raise UserError("--task joint weighs reconstruction against the task: say how, as --trade-off 0.9 (0 to 1)")
        if self.task == "joint" and is_stream(self.data):
            raise UserError(f"--task joint reads images in any order: {self.data} is a stream, use data with a length")


@dataclass(frozen=True)
class SweepOptions(RunOptions):
    """How inverses are trained in every way, side by side."""

    trade_offs: tuple[Share, ...] = (0.0, 0.1, 0.9, 1.0)
    """The values of lambda (the paper's), one joint run each."""
    tasks: tuple[TaskName, ...] = ("modular", "classic", "joint")
    """Leave some out."""
    jobs: Literal["submitit"] | None = None
    """Each run as a job of its own, on Slurm or this machine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tasks or ("joint" in self.tasks and not self.trade_offs):
            raise UserError("nothing to train: give --trade-offs, as 0 0.1 0.9 1, or leave joint out of --tasks")
        if len(set(self.trade_offs)) < len(self.trade_offs):
            raise UserError(f"--trade-offs is {self.trade_offs}: each has to be there once")

    def runs(self) -> dict[str, TrainOptions]:
        """The options of every run by the name of its folder in ``out``; each gets those that are for its task."""
        common = {each.name: getattr(self, each.name) for each in fields(RunOptions)}
        plan: dict[str, tuple[TaskName, float | None]] = {}
        if "modular" in self.tasks:
            plan["modular"] = ("modular", None)
        if "classic" in self.tasks:
            plan["classic"] = ("classic", None)
        if "joint" in self.tasks:
            plan |= {f"joint-{each:g}": ("joint", each) for each in self.trade_offs}
        runs = {}
        for name, (task, trade_off) in plan.items():
            not_for_it = {each: None for each, tasks in TASKS_OF.items() if task not in tasks}
            own = {"out": self.out / name, "task": task, "trade_off": trade_off}
            runs[name] = TrainOptions(**{**common, **not_for_it, **own})
        return runs


def parse_size(size: str | None) -> tuple[int, int] | None:
    """``"384x512"`` -> (384, 512).

    Raises:
        UserError: not two positive whole numbers.
    """
    if size is None:
        return None
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", size.lower())
    if found is None:
        raise UserError(f"--size is '{size}': it has to be height x width in pixels, as 384x512")
    height, width = (convert(int(side), Side, f"a side of --size {size}") for side in found.groups())
    return height, width


UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def parse_bytes(memory: str) -> int:
    """``"8GiB"`` -> its number of bytes.

    Raises:
        UserError: it is no amount of memory.
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([a-z]*)\s*", memory.lower())
    if found is None or found[2] not in UNITS:
        raise UserError(f"--memory is '{memory}': it has to be an amount of memory, as 8GiB or 500MiB, or auto")
    return round(float(found[1]) * UNITS[found[2]])
