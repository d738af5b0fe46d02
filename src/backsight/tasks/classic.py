"""Classic feature inversion (paper, sec. 3 and 4.2): one image loss through all inverses of a stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from backsight.chain import InverseChain
from backsight.core import IMAGE
from backsight.data import Batch, Target
from backsight.engine import StagedModel
from backsight.tasks.task import Task, image_loss


class Classic(Task):
    """Classic feature inversion: the inverses from ``stage`` to the image are one network, taught by the image alone.

    The forward model is frozen. Features that the inverses hand on to each other need not resemble the true ones.

    Args:
        model: the forward model.
        chains: a chain for each seed; of its inverses those from ``stage`` on are trained.
        stage: the stage (or entry) whose features the image is reconstructed from.

    Raises:
        UserError: a chain lacks an inverse on the way.
    """

    def __init__(self, model: StagedModel, chains: Sequence[InverseChain], stage: str) -> None:
        super().__init__(model, chains, stage)
        self.stage = stage
        self.covers = {
            f"{chain.seed}/{IMAGE}": tuple(name for name in self.networks if name.startswith(f"{chain.seed}/"))
            for chain in self.chains
        }

    def losses(
        self, images: Tensor, valid: Tensor | None = None, targets: Sequence[Target] = ()
    ) -> Iterator[tuple[str, Tensor]]:
        """``B 3 H W`` in [0, 1] -> (``SEED/image``, the error of the image), one seed after the other."""
        del targets
        features = self.model.features(images, [self.stage], valid)[self.stage].float()
        for chain in self.chains:
            yield f"{chain.seed}/{IMAGE}", image_loss(self.model, chain, features, self.stage, images, valid)

    def weights(self, batch: Batch) -> dict[str, Tensor | float]:
        """How much each loss counts: by the images of ``batch``, or the valid pixels of padded ones."""
        if self.model.pixels.fit != "pad":
            return super().weights(batch)
        return dict.fromkeys(self.covers, batch.shown.sum() * bool(batch.ids))  # a tensor in every process alike
