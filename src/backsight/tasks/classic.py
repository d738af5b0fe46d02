"""Classic feature inversion (paper, sec. 3 and 4.2): one image loss through all inverses of a stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from backsight.chain import InverseChain
from backsight.core import IMAGE, Key
from backsight.data import Target
from backsight.engine import StagedModel
from backsight.tasks.task import Counts, Loss, Task, image_loss


class Classic(Task):
    """Classic feature inversion: the inverses from ``stage`` to the image are one network, taught by the image alone.

    The forward model is frozen. Features that the inverses hand on to each other need not resemble the true ones.

    ``chains`` has a chain for each seed; the image is reconstructed from the features at ``stage`` (or at an entry).

    Raises:
        UserError: a chain lacks an inverse on the way.
    """

    def __init__(self, model: StagedModel, chains: Sequence[InverseChain], stage: str) -> None:
        super().__init__(model, chains, stage)
        self.stage = stage
        self.covers: dict[Key, tuple[Key, ...]] = {
            Key(chain.seed, IMAGE): tuple(key for key in self.networks if key.seed == chain.seed)
            for chain in self.chains
        }

    def losses(
        self,
        images: Tensor,
        valid: Tensor | None = None,
        targets: Sequence[Target] = (),
        counts: Counts | None = None,
    ) -> Iterator[Loss]:
        """``B 3 H W`` in [0, 1] -> ``Key(seed, "image")``, the error of the image, of one seed after the other."""
        del targets
        features = self.model.features(images, [self.stage], valid)[self.stage].float()
        for chain in self.chains:
            key = Key(chain.seed, IMAGE)
            loss = image_loss(self.model, self.path(chain, self.stage), features, images, valid)
            yield key, loss if counts is None else loss * counts.share(key), self.covers[key]
