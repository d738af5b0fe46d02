"""Modular feature inversion (paper, eq. 1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from backsight.chain import InverseChain
from backsight.core import split_entry
from backsight.data import Batch, Target
from backsight.engine import StagedModel
from backsight.tasks.task import Task, entry_loss


class Modular(Task):
    """Modular feature inversion (paper, eq. 1): every inverse learns its own component, from its own loss alone.

    One pass of the frozen forward model feeds the inverses of all stages and seeds. The targets of a component are
    the true features of the stage before it, so that nothing one inverse gets wrong reaches another.
    """

    def __init__(self, model: StagedModel, chains: Sequence[InverseChain]) -> None:
        super().__init__(model, chains)
        self.covers = {name: (name,) for name in self.networks}
        sources = {name: split_entry(name.partition("/")[2])[0] for name in self.networks}
        self.features = model.features
        """Where the features come from, a drop-in for the forward model's own."""
        self.stages = list(dict.fromkeys([*sources.values(), *map(model.spec.before, sources.values())]))

    def losses(
        self, images: Tensor, valid: Tensor | None = None, targets: Sequence[Target] = ()
    ) -> Iterator[tuple[str, Tensor]]:
        """``B 3 H W`` in [0, 1] -> (network, loss) one after the other, so that each graph is freed before the next.

        Of padded images, whose pictures are where ``valid`` (``B H W``, bool) says, only that part counts: the pixels
        of an image, the tokens on a grid that are at least partly under it, and all object queries. An inverse reads
        all tokens nevertheless, those of the padding too: what it makes of them there has no loss. ``targets`` are not
        looked at.
        """
        del targets
        features = {name: value.float() for name, value in self.features(images, self.stages, valid).items()}
        for name, network in self.networks.items():
            yield name, entry_loss(self.model, network, name.partition("/")[2], features, valid)

    def weights(self, batch: Batch) -> dict[str, Tensor | float]:
        """How much each loss counts: by the images of ``batch``, or the tokens (and pixels) of padded ones."""
        if self.model.pixels.fit != "pad":
            return super().weights(batch)
        valid = batch.shown
        targets = {name: self.model.spec.before(split_entry(name.partition("/")[2])[0]) for name in self.covers}
        under = {target: self.model.layout(target).under(valid) for target in targets.values()}
        everywhere = valid.new_full((), len(valid), dtype=torch.int64)
        counts = {target: everywhere if counted is None else counted.sum() for target, counted in under.items()}
        return {name: counts[target] * bool(batch.ids) for name, target in targets.items()}

    def stop(self, name: str) -> list[str]:
        """Change the network ``name`` no more: no other depends on it."""
        self.covers[name] = ()
        return [name]

    def errors(self, losses: Mapping[str, float]) -> dict[str, float]:
        """Every network is judged by its own loss: no other depends on it."""
        return dict(losses)
