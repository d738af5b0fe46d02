"""What a run saves: work, by keeping images and features on disk; memory, by passing fewer images at once."""

from __future__ import annotations

from backsight.core import UserError
from backsight.options import TrainOptions
from backsight.training.memory import read_bytes
from backsight.training.places import check_place


def check_saving(options: TrainOptions) -> None:
    """Refuse what cannot be meant, or done together.

    Raises:
        UserError: one of the options, in one line.
    """
    if options.micro_batch is not None and options.memory is not None:
        raise UserError("--memory finds the micro-batch that fits: give it or --micro-batch")
    if options.micro_batch is not None and options.micro_batch < 1:
        raise UserError(f"--micro-batch {options.micro_batch}: it has to be at least 1")
    if options.feature_cache is not None and options.task == "joint":
        raise UserError("--feature-cache keeps what a frozen forward model gives, and joint training changes it")
    if options.feature_cache is not None and options.task != "modular":
        raise UserError("--feature-cache is for --task modular: leave it out")
    for name in ("feature_cache_gb", "image_cache_gb"):
        if not getattr(options, name) > 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name):g}: it has to be more than 0")
    if options.memory is not None:
        read_bytes(options.memory)
    for option, cache in (("--feature-cache", options.feature_cache), ("--image-cache", options.image_cache)):
        if cache is not None:
            check_place(cache, option)
