"""What a user may set, with the defaults. Imports nothing heavy, so that ``--help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

Precision = Literal["auto", "fp32", "bf16"]
TaskName = Literal["modular", "classic", "joint"]
Update = Literal["chain", "sum", "isolated", "backwards-only"]
Size = Annotated[str | None, tyro.conf.arg(metavar="HxW")]


@dataclass(frozen=True)
class ModelOptions:
    """How a forward model is loaded."""

    size: Size = None
    """Image size in pixels other than the model's own, as 384x512."""
    weights: Path | None = None
    """A file of weights for the model: .safetensors, or .pth/.bin (never unpickled)."""
    random_weights: bool = False
    """Build the true-size model with random weights, to try things out; every output says so."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps."""
    spec: Path | None = None
    """Where the stages of a model of your own (FILE.py:FUNCTION) are: a YAML file."""
    fit: Literal["stretch", "crop", "pad"] | None = None
    """How pictures come to the model's size, if not as its library has it: stretch, crop (the centre), or pad (the
    whole picture, its aspect kept; for detectors that take a mask)."""


@dataclass(frozen=True)
class TrainOptions:
    """How inverses are trained."""

    data: str = "world"
    """Images to train on: coco:DIR[:SPLIT], folder:DIR, hf:NAME, parquet:PATH, world (the synthetic one), or streams
    without epochs, stream:NAME and wds:PATTERN."""
    out: Path = Path("runs/backsight")
    """The run's folder."""
    steps: int | None = None
    """Stop after this many batches."""
    epochs: float | None = None
    """Stop after this many passes over the training images."""
    minutes: float | None = None
    """Stop after this many minutes of training."""
    task: TaskName = "modular"
    """What is optimised: modular (every inverse its own component), classic (one image loss through all inverses of a
    stage) or joint (the forward model is trained too, see --trade-off)."""
    trade_off: float | None = None
    """Joint training's lambda: how much the forward model is to heed the reconstruction (1), not its own task (0)."""
    update: Update | None = None
    """Joint training's reconstruction loss: chain (of the image, through all inverses), sum (of all components),
    isolated (only the first stage's reaches the forward model), backwards-only (the forward model stays as it is);
    chain if not given."""
    stage: str | None = None
    """The stage that classic and joint training reconstruct from; default: the last one that is no prediction."""
    forward_learning_rate: float | None = None
    """Joint training's learning rate of the forward model; 1e-5 if not given."""
    learning_rate: float | None = None
    """The learning rate of all inverses, in place of each one's own: a lower one, where they begin well trained."""
    chain: str | None = None
    """Begin with the inverses of a run, of zoo/... or of a name on the hub, instead of new ones."""
    seeds: int = 3
    """How many instances of every inverse to train, side by side."""
    seed: int = 0
    """The first of these seeds; also of the order of the images."""
    batch_size: int = 32
    """Images in a batch."""
    inverse: tuple[str, ...] = ()
    """Another inverse for a stage (backbone=local), one more beside it (backbone@local=local), options after a
    colon (backbone=deconvolution:expansion=2,learning_rate=1e-3), or none (prediction@onehot=none)."""
    precision: Precision = "auto"
    """bf16 autocast, or plain fp32; auto takes bf16 where the machine is quick at it."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile for the forward model's blocks and the inverses; auto compiles on a GPU alone."""
    micro_batch: int | None = None
    """How many images of a batch pass the networks at once; their gradients are added up. Default: all of them."""
    memory: str | None = None
    """The memory to stay within, as 8GiB: finds the micro-batch that does."""
    feature_cache: Path | None = None
    """A folder to keep the forward model's features in, for later epochs and runs (modular training)."""
    feature_cache_gb: float = 50.0
    """The most that is written there, in GB."""
    image_cache: Path | None = None
    """A folder to keep decoded and resized images in, for later epochs and runs."""
    image_cache_gb: float = 50.0
    """The most that is written there, in GB."""
    workers: int = 2
    """Processes that read images; 0 reads them in the training process."""
    evaluate_every: int | None = None
    """Batches between two looks at the validation images; default: ten looks a run, at least 25 batches apart."""
    checkpoint_every: float = 5.0
    """Minutes between two checkpoints; one is always written at a look at the validation images."""
    keep_checkpoints: int = 2
    """How many checkpoints to keep, the newest ones."""
    max_validation: int = 512
    """How many validation images to use at the most."""
    max_test: int = 2000
    """How many test images to use at the most."""
    strict: bool = False
    """Fail at the first image that cannot be read, instead of skipping and counting it."""
    resume: bool = False
    """Go on with the unfinished run in the folder, exactly where it stopped."""
    overwrite: bool = False
    """Replace the run in the folder."""
    tracker: Literal["tensorboard", "trackio", "wandb", "none"] = "tensorboard"
    """Where to send the curves, beside metrics.jsonl."""


def parse_size(size: str | None) -> tuple[int, int] | None:
    """``"384x512"`` -> (384, 512).

    Raises:
        ValueError: not two positive whole numbers.
    """
    if size is None:
        return None
    height, _, width = size.lower().partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise ValueError(f"'{size}' is not an image size: write height x width in pixels, as 384x512")
    return int(height), int(width)
