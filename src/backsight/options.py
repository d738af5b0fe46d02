"""What a user may set, with the defaults. Imports nothing heavy, so that ``--help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

Precision = Literal["auto", "fp32", "bf16"]
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
    """Images to train on: coco:DIR[:SPLIT], folder:DIR, hf:NAME, parquet:PATH, or world, the synthetic one."""
    out: Path = Path("runs/backsight")
    """The run's folder."""
    steps: int | None = None
    """Stop after this many batches."""
    epochs: float | None = None
    """Stop after this many passes over the training images."""
    minutes: float | None = None
    """Stop after this many minutes of training."""
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
    workers: int = 2
    """Processes that read images; 0 reads them in the training process."""
    evaluate_every: int | None = None
    """Batches between two looks at the validation images; default: ten looks a run, at least 25 batches apart."""
    checkpoint_every: float = 5.0
    """Minutes between two checkpoints; one is always written at a look at the validation images."""
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
