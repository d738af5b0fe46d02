"""Modular feature inversion (paper, eq. 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from backsight.chain import InverseChain
from backsight.core import Key
from backsight.data import Target
from backsight.engine import StagedModel
from backsight.tasks.task import Counts, Loss, Task, stage_loss


class Modular(Task):
    """Modular feature inversion (paper, eq. 1): every inverse learns its own component, from its own loss alone.

    One pass of the frozen forward model feeds the inverses of all stages and seeds. The targets of a component are
    the true features of the stage before it, so that nothing one inverse gets wrong reaches another.
    """

    def __init__(self, model: StagedModel, chains: Sequence[InverseChain]) -> None:
        super().__init__(model, chains)
        self.covers: dict[Key, tuple[Key, ...]] = {key: (key,) for key in self.networks}
        self.over: dict[Key, str] = {key: model.spec.before(key.stage) for key in self.networks}
        """The stage whose features each inverse has to give."""
        self.stages: list[str] = list(dict.fromkeys([*(key.stage for key in self.networks), *self.over.values()]))
        self.features: Callable[..., dict[str, Tensor]] = model.features
        """Where the features come from, a drop-in for the forward model's own."""

    def losses(
        self,
        images: Tensor,
        valid: Tensor | None = None,
        targets: Sequence[Target] = (),
        counts: Counts | None = None,
    ) -> Iterator[Loss]:
        """``B 3 H W`` in [0, 1] -> the loss of every inverse, each named after its network.

        Of padded images, whose pictures are where ``valid`` (``B H W``, bool) says, only that part counts: the pixels
        of an image, the tokens on a grid that are at least partly under it, and all object queries. An inverse reads
        all tokens nevertheless, those of the padding too: what it makes of them there has no loss.
        """
        del targets
        features = {name: value.float() for name, value in self.features(images, self.stages, valid).items()}
        for key, network in self.networks.items():
            noise = self.chains[0].plans[key.entry].input_noise if network.training else 0
            given = {**features, key.stage: noised(features[key.stage], noise)} if noise else features
            loss = stage_loss(self.model, self.modules[key], key.stage, given, valid, samples=bool(network.samples))
            yield key, loss if counts is None else loss * counts.share(key), self.covers[key]

    def stop(self, loss: Key) -> list[Key]:
        """Train the network of ``loss`` no more: no other depends on it."""
        self.covers[loss] = ()
        return [loss]

    def errors(self, losses: Mapping[Key, float]) -> dict[Key, float]:
        """Every network is judged by its own loss: no other depends on it."""
        return dict(losses)


def noised(features: Tensor, noise: float) -> Tensor:
    """``B N D`` with Gaussian noise of ``noise`` standard deviations of each of the D, taken over the batch.

    An inverse that learns on such features departs from equation 1. In a chain it reads what another inverse gives,
    which is never quite the true features, and errors that it has learned to pass over do not grow on the way.
    """
    spread = features.flatten(0, 1).std(0, correction=0)
    return features + noise * spread * torch.randn_like(features)
