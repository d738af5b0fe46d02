"""How new inverses begin: one pass over some true features, before any training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from backsight.core import Key, split_entry
from backsight.data import Batch
from backsight.distributed import Processes
from backsight.engine import StagedModel
from backsight.inverses import Inverse, Moments


@torch.no_grad()
def begin(
    model: StagedModel,
    networks: Mapping[Key, nn.Module],
    batches: Iterator[Batch],
    batch_size: int,
    processes: Processes,
    watch: Callable[[str, int, int], object],
) -> None:
    """Let every inverse among ``networks`` begin by the moments that it asks for (:meth:`Inverse.moments`), which all
    seeds share: computed ones are then done, and others give something like their target from the first step on. What
    is no inverse stays as it is.

    ``batches`` are this process's part of training batches, of ``batch_size`` in all processes together; ``watch`` is
    told how many images are through.

    Raises:
        UserError: no image can be read.
    """
    inverses = {key: each for key, each in networks.items() if isinstance(each, Inverse)}
    wanted: dict[str, Moments] = {}
    for key, inverse in inverses.items():
        moments = None if key.entry in wanted else inverse.moments()
        if moments is not None:
            wanted[key.entry] = moments
    if not wanted:
        return
    most = max(each.images for each in wanted.values())
    for number, batch in enumerate(batches):
        _add(model, {entry: each for entry, each in wanted.items() if number * batch_size < each.images}, batch)
        seen = (number + 1) * batch_size
        watch("beginning", min(seen, most), most)
        if seen >= most:
            break
    for moments in wanted.values():
        for total in moments.tensors():
            processes.add(total)
    for key, inverse in inverses.items():
        if key.entry in wanted:
            inverse.begin(wanted[key.entry])
    processes.same_weights(inverses.values())  # what is solved may differ by rounding from machine to machine


def _add(model: StagedModel, wanted: Mapping[str, Moments], batch: Batch) -> None:
    """Add a batch; an empty one, too, since all processes have to have sums of the same shape."""
    count = len(batch.ids)
    images = batch.images if count else batch.images.new_zeros(1, model.pixels.channels, *model.pixels.size)
    valid = batch.valid if count else None
    stages = {entry: split_entry(entry)[0] for entry in wanted}
    pairs = {entry: (stage, model.spec.before(stage)) for entry, stage in stages.items()}
    names = list(dict.fromkeys(name for pair in pairs.values() for name in pair))
    features = model.features(images, names, valid)
    for entry, (source, target) in pairs.items():
        counted = model.layout(source).under(valid)
        wanted[entry].add(features[source][:count].float(), features[target][:count].float(), counted)
