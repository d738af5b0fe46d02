"""What a run saves: work, by keeping images and features on disk; memory, by passing fewer images at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from backsight.core import Pixels, UserError
from backsight.data import Batch, ImageData, Splits
from backsight.data.cache import Kept
from backsight.data.loader import MadeInBatches
from backsight.options import TrainOptions, parse_bytes
from backsight.tasks import Modular, Task
from backsight.training.feature_cache import FeatureCache
from backsight.training.memory import images_that_fit

GB = 10**9


def keep_images(splits: Splits, options: TrainOptions, pixels: Pixels) -> Splits:
    """The same data, read from ``--image-cache`` once it has been decoded. Drawn scenes are quicker to draw again."""
    folder = options.image_cache
    if folder is None:
        return splits

    def kept(data: ImageData, share: float) -> ImageData:
        limit = share * options.image_cache_gb * GB
        return data if isinstance(data, MadeInBatches) else Kept(data, pixels, folder, limit)

    return replace(splits, train=kept(splits.train, 0.9), validation=kept(splits.validation, 0.1))


def keep_features(
    task: Task, options: TrainOptions, data: ImageData, precision: str, processes: int
) -> FeatureCache | None:
    """Let ``task`` take its features from ``--feature-cache``, where it has them."""
    if options.feature_cache is None or not isinstance(task, Modular):
        return None
    limit, own = options.feature_cache_gb * GB, {"precision": precision, "processes": processes}
    cache = FeatureCache(task.model, options.feature_cache, task.stages, data.fingerprint(), limit, **own)
    task.features = cache.features
    return cache


def settle_micro_batch(
    task: Task, options: TrainOptions, batches: Iterator[Batch], precision: str, before: Mapping[str, Any]
) -> int | None:
    """How many images pass the networks at once: as many as was asked for, or as fit into the memory that was.

    None stands for the whole batch. ``batches`` are looked at for an image to try, if one is needed. A run that goes on
    keeps to what it began with (``before``, its configuration): what is in use is never the same twice, and BatchNorm
    heeds the number.
    """
    if options.memory is None:
        return options.micro_batch
    if "micro_batch" in before and before["options"]["memory"] == options.memory:
        return before["micro_batch"]
    limit = parse_bytes(options.memory)
    batch = next((batch for batch in batches if batch.ids), None)
    if batch is None:
        raise UserError(f"none of the training images of {options.data} can be read")
    fitting = images_that_fit(task, batch, limit, precision)
    return fitting if fitting < options.batch_size else None
