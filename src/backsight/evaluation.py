"""The errors of a chain, stage by stage, on images that it has not seen (paper, sec. 4.1 and Fig. 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from backsight.chain import ChainEnsemble, InverseChain
from backsight.core import UserError, split_entry
from backsight.data import Batch
from backsight.devices import exact
from backsight.engine import StagedModel
from backsight.metrics import bootstrap, mse, on_valid, psnr, saturation, ssim

Metric = Callable[[Tensor, Tensor], Tensor]
"""``B 3 H W``, ``B 3 H W`` -> ``B``."""

METRICS: Mapping[str, Metric] = {"mse": mse, "psnr": psnr, "ssim": ssim, "saturation": saturation}
"""What is measured on images, RGB in [0, 1]; ``saturation`` is that of the reconstruction itself."""


@dataclass(frozen=True)
class EntryErrors:
    """The errors at one entry of a chain: ``image`` by metric, ``S images`` each, of the image that the chain
    reconstructs from there; ``layer`` ``S``, of the entry's own inverse on true features, as a share of the
    target's variance (0 perfect, 1 no better than the mean of every channel)."""

    image: Mapping[str, Tensor]
    layer: Tensor


@dataclass(frozen=True)
class Evaluation:
    """Errors by entry, and those of the training set's mean image (``images`` values a metric) to set them against."""

    entries: Mapping[str, EntryErrors]
    mean_image: Mapping[str, Tensor]
    seeds: tuple[int, ...]
    ids: tuple[str, ...] = field(repr=False)

    def as_json(self) -> dict[str, Any]:
        """Means by seed, and 95 % intervals over images and seeds; without pictures too thin for a metric.

        Raises:
            UserError: they all are.
        """
        fit = {name: values.isfinite() for name, values in self.mean_image.items()}  # its errors are, of all others
        if thin := [name for name, those in fit.items() if not those.any()]:
            raise UserError(f"every picture is too thin for {' and '.join(thin)} at this size: take a larger --size")
        return {
            "num_images": len(self.ids),
            "seeds": list(self.seeds),
            "value_range": "RGB in [0, 1]",
            "mean_image": {name: values[fit[name]].mean().item() for name, values in self.mean_image.items()},
            "entries": {
                entry: {
                    **{name: values[:, fit[name]].mean(1).tolist() for name, values in errors.image.items()},
                    "interval": {name: list(bootstrap(values[:, fit[name]])) for name, values in errors.image.items()},
                    "layer_error": errors.layer.tolist(),
                }
                for entry, errors in self.entries.items()
            },
        }


@torch.no_grad()
def evaluate(
    model: StagedModel,
    ensemble: ChainEnsemble,
    batches: Iterable[Batch],
    mean_image: Tensor,
    metrics: Mapping[str, Metric] = METRICS,
    gather: Callable[[Any], list[Any]] = lambda found: [found],
) -> Evaluation:
    """Measure every entry and seed of ``ensemble`` on ``batches``; ``mean_image`` is ``3 H W``, or one for each
    image of a single batch.

    Of padded images only the pictures count, and the tokens at least partly under them. Where several processes have
    a part of every batch each (an empty one, if need be), ``gather`` gives what all have found, in their order.

    Raises:
        UserError: there is no image at all.
    """
    layers = {(entry, index): _Share() for entry in ensemble.entries for index in range(len(ensemble.chains))}
    rows = [_row(model, ensemble, batch, mean_image, metrics, layers) if batch.ids else None for batch in batches]
    parts = gather((rows, {key: share.on_cpu() for key, share in layers.items()}))
    rows = [row for step in zip_longest(*(rows for rows, _ in parts)) for row in step if row is not None]
    if not rows:
        raise UserError("none of the images to measure on can be read: look at the lines above")
    shares = {key: _Share.joined([found[key] for _, found in parts]) for key in layers}
    seeds = tuple(chain.seed for chain in ensemble.chains)
    entries = {
        entry: EntryErrors(
            {name: torch.cat([row.entries[entry][name] for row in rows], 1) for name in metrics},
            torch.tensor([shares[entry, index].value() for index in range(len(seeds))]),
        )
        for entry in ensemble.entries
    }
    mean = {name: torch.cat([row.against[name] for row in rows]) for name in metrics}
    return Evaluation(entries, mean, seeds, tuple(identity for row in rows for identity in row.ids))


@dataclass(frozen=True)
class _Row:
    """What is measured on one batch: ``entries`` by entry and metric ``S B``, ``against`` the mean image ``B``."""

    ids: tuple[str, ...]
    entries: Mapping[str, Mapping[str, Tensor]]
    against: Mapping[str, Tensor]


def _row(
    model: StagedModel,
    ensemble: ChainEnsemble,
    batch: Batch,
    mean_image: Tensor,
    metrics: Mapping[str, Metric],
    layers: Mapping[tuple[str, int], _Share],
) -> _Row:
    """Measure one batch; ``layers``, by entry and place of the seed, take up the errors on features."""
    features = model.features(batch.images, model.stages, batch.valid)
    entries = {}
    for entry in ensemble.entries:
        stage, _ = split_entry(entry)
        before = model.spec.before(stage)
        target = features.get(before, batch.images)
        counted = None if batch.valid is None else model.layout(before).under(batch.valid)
        by_seed = []
        for index, chain in enumerate(ensemble.chains):
            output = chain.inverses[entry](features[stage]).float()
            layers[entry, index].add(output, target, counted)
            by_seed.append(_measure(_finish(chain, output, stage), batch, metrics))
        entries[entry] = {name: torch.stack([each[name] for each in by_seed]) for name in metrics}
    return _Row(batch.ids, entries, _measure(mean_image.expand_as(batch.images), batch, metrics))


def join_seeds(parts: Sequence[Evaluation]) -> Evaluation:
    """Evaluations on the same images of chains that do not share a forward model, as one of all their seeds."""
    first = parts[0]
    entries = {
        entry: EntryErrors(
            {name: torch.cat([part.entries[entry].image[name] for part in parts]) for name in errors.image},
            torch.cat([part.entries[entry].layer for part in parts]),
        )
        for entry, errors in first.entries.items()
    }
    return Evaluation(entries, first.mean_image, tuple(seed for part in parts for seed in part.seeds), first.ids)


def _finish(chain: InverseChain, output: Tensor, stage: str) -> Tensor:
    """The rest of the chain below ``stage``, whose own inverse has given ``output``: an image in [0, 1]."""
    for entry in chain.path(stage)[1:]:
        output = chain.inverses[entry](output)
    return output.float().clamp(0, 1)


def _measure(images: Tensor, batch: Batch, metrics: Mapping[str, Metric]) -> dict[str, Tensor]:
    return {name: on_valid(metric, batch.valid)(images, batch.images).cpu() for name, metric in metrics.items()}


class _Share:
    """Squared error as a share of the target's variance about its channels' means, over many batches."""

    def __init__(self) -> None:
        self.error, self.count = 0.0, 0
        self.sum: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, output: Tensor, target: Tensor, counted: Tensor | None = None) -> None:
        channels = 1 if target.dim() == 4 else 2  # images are B 3 H W, features B N D
        if counted is not None:
            output, target = (each.movedim(channels, -1).flatten(1, -2)[counted][None] for each in (output, target))
            channels = 2
        output, target = exact(output), exact(target)
        by_channel = target.movedim(channels, -1).flatten(0, -2)
        self.error += (output - target).square().sum().item()
        self.sum = self.sum + by_channel.sum(0)
        self.squares = self.squares + by_channel.square().sum(0)
        self.count += len(by_channel)

    def on_cpu(self) -> _Share:
        """The same, ready to be sent to another process."""
        self.sum, self.squares = torch.as_tensor(self.sum).cpu(), torch.as_tensor(self.squares).cpu()
        return self

    @classmethod
    def joined(cls, parts: Sequence[_Share]) -> _Share:
        """What all ``parts`` together would have taken up."""
        whole = cls()
        for part in parts:
            whole.error, whole.count = whole.error + part.error, whole.count + part.count
            whole.sum, whole.squares = whole.sum + part.sum, whole.squares + part.squares
        return whole

    def value(self) -> float:
        mean = torch.as_tensor(self.sum) / self.count
        variance = (torch.as_tensor(self.squares) / self.count - mean.square()).sum()
        return self.error / (self.count * max(variance.item(), 1e-12))
