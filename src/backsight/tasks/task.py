"""What a task is: networks, the losses that change them, and the error that each of them is judged by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from backsight.chain import InverseChain
from backsight.core import IMAGE, Pixels, split_entry
from backsight.data import Batch, Target
from backsight.engine import StagedModel
from backsight.tasks.plans import learning_rate


class Task(ABC):
    """A forward pass, and losses for the networks of every seed. The loop that goes down them is in ``train``.

    Attributes:
        model: the forward model.
        chains: the inverses, a chain for each seed.
        networks: what is trained, by name: ``SEED/ENTRY`` (``0/encoder``), and ``SEED/forward`` for a forward model.
        learning_rates: of Adam, for each network.
        clips: the largest norm of a network's gradient, where it is not the usual one.
        covers: the name of every loss -> the networks that one step down that loss changes; none, if it is only told.

    Args:
        model, chains: as above.
        stage: train only the inverses that lead from this stage to the image; None: all.

    Raises:
        UserError: a chain lacks an inverse on the way from ``stage``.
    """

    def __init__(self, model: StagedModel, chains: Sequence[InverseChain], stage: str | None = None) -> None:
        self.model, self.chains = model, list(chains)
        self.networks: dict[str, nn.Module] = {
            f"{chain.seed}/{entry}": inverse
            for chain in self.chains
            for entry, inverse in chain.items()
            if inverse.trainable and (stage is None or entry in chain.path(stage))
        }
        self.learning_rates: dict[str, float] = {
            name: learning_rate(self.chains[0].plans[name.partition("/")[2]], network)
            for name, network in self.networks.items()
        }
        self.clips: dict[str, float] = {}
        self.covers: dict[str, tuple[str, ...]] = {}

    @abstractmethod
    def losses(
        self, images: Tensor, valid: Tensor | None = None, targets: Sequence[Target] = ()
    ) -> Iterator[tuple[str, Tensor]]:
        """A batch -> (name, loss) one after the other, so that each graph can be freed before the next is made.

        Args:
            images: ``B 3 H W`` in [0, 1].
            valid: where the pictures are in padded images, ``B H W`` bool; only that part counts. None: everywhere.
            targets: what is known of each image, for the tasks that use it.
        """

    def errors(self, losses: Mapping[str, float]) -> dict[str, float]:
        """The mean of every loss on the validation images -> the error of every network, which picks its best weights.

        The networks of a seed are judged together, by the sum of the losses that change them: their weights belong to
        one moment.
        """
        seeds = {name: name.partition("/")[0] for name in self.networks}
        totals = dict.fromkeys(seeds.values(), 0.0)
        for name, covered in self.covers.items():
            totals[name.partition("/")[0]] += losses[name] if covered else 0.0
        return {name: totals[seed] for name, seed in seeds.items()}

    def weights(self, batch: Batch) -> dict[str, Tensor | float]:
        """How much each loss of ``batch`` counts beside that of another batch, or part of one: by the images in it."""
        return dict.fromkeys(self.covers, float(len(batch.ids)))

    def stop(self, name: str) -> list[str]:
        """Change the networks of the loss ``name`` no more, nor the others of its seed: they are judged together.

        Returns:
            Their names.
        """
        seed = name.partition("/")[0]
        for loss in [loss for loss in self.covers if loss.partition("/")[0] == seed]:
            self.covers[loss] = ()
        return [network for network in self.networks if network.partition("/")[0] == seed]

    def train(self, mode: bool = True) -> None:
        """Put the inverses into training mode, or into evaluation mode. Forward models always stay in the latter."""
        for chain in self.chains:
            chain.train(mode)

    def forward_model(self, seed: int) -> StagedModel:  # noqa: ARG002
        """The forward model that the chain of ``seed`` inverts: the same for all, unless it is trained with it."""
        return self.model


def component_loss(output: Tensor, target: Tensor, stage: str, pixels: Pixels, counted: Tensor | None = None) -> Tensor:
    """The mean squared error of a component; that of images is taken in the forward model's normalised space.

    ``counted`` says which tokens (or pixels, row by row) the mean is over, ``B N`` bool; None: all.
    """
    if stage == IMAGE:
        output, target = pixels.normalise(output), pixels.normalise(target)
    if counted is None:
        return nn.functional.mse_loss(output, target)
    errors = (output - target).square().mean(1 if stage == IMAGE else 2).flatten(1)
    return torch.where(counted, errors, 0).sum() / counted.sum()


def image_loss(
    model: StagedModel, chain: InverseChain, features: Tensor, stage: str, images: Tensor, valid: Tensor | None = None
) -> Tensor:
    """The error of the image that ``chain`` makes of the ``features`` (``B N D``) of ``stage``, in normalised space."""
    counted = None if valid is None else model.layout(IMAGE).under(valid)
    output = chain.reconstruct(features, stage).float()
    return component_loss(output, images, IMAGE, model.pixels, counted)


def entry_loss(
    model: StagedModel, inverse: nn.Module, entry: str, features: Mapping[str, Tensor], valid: Tensor | None = None
) -> Tensor:
    """The error of one ``inverse`` on the ``features`` of its stage, against those of the stage before (eq. 1)."""
    source, _ = split_entry(entry)
    target = model.spec.before(source)
    counted = None if valid is None else model.layout(target).under(valid)
    return component_loss(inverse(features[source]).float(), features[target], target, model.pixels, counted)
