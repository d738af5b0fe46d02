"""How new inverses begin: one pass over some true features, before any training; linear ones are done with that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import takewhile

import torch
from torch import nn

from backsight.chain import InverseChain, Plan, build_chain
from backsight.core import Key, UserError, split_entry
from backsight.data import Batch, ImageData, loader
from backsight.distributed import Processes
from backsight.engine import StagedModel
from backsight.inverses import Inverse, Moments, build_inverse

RIDGE = "ridge"


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


def why_not_linear(model: StagedModel, stage: str) -> str:
    """Why ``stage`` can have no ridge regression for its inverse; empty where it can."""
    try:
        build_inverse(RIDGE, model.layout(stage), model.layout(model.spec.before(stage)), {})
    except UserError as error:
        return str(error)
    return ""


def linear_chain(model: StagedModel, data: ImageData, batch_size: int = 50) -> InverseChain:
    """The chain of ridge regressions, solved for images of ``data`` in seconds: what a linear reading gives.

    It ends before the first stage that can have none.

    Raises:
        UserError: no image can be read, or not even the first stage can have one.
    """
    stages = list(takewhile(lambda stage: not why_not_linear(model, stage), model.stages))
    if not stages:
        raise UserError(why_not_linear(model, model.stages[0]))
    chain = build_chain(model, dict.fromkeys(stages, Plan(RIDGE)), seed=0).to(model.device)
    networks = {Key.of(0, stage): chain.inverses[stage] for stage in stages}
    batches = loader(data, batch_size, shuffle=True, device=model.device)
    begin(model, networks, batches, batch_size, Processes(), lambda *_: None)
    return chain.eval()
