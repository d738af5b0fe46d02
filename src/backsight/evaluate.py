"""The errors of a chain, stage by stage, on images that it has not seen (paper, sec. 4.1 and Fig. 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from backsight.chain import ChainEnsemble, InverseChain
from backsight.core import UserError, split_entry
from backsight.data import Batch
from backsight.metrics import bootstrap, mse, on_valid, psnr, ssim
from backsight.staging import StagedModel

Metric = Callable[[Tensor, Tensor], Tensor]
"""``B 3 H W``, ``B 3 H W`` -> ``B``."""

METRICS: Mapping[str, Metric] = {"mse": mse, "psnr": psnr, "ssim": ssim}
"""What is measured on images, RGB in [0, 1]."""


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
) -> Evaluation:
    """Measure every entry and seed of ``ensemble`` on ``batches``; ``mean_image`` is ``3 H W``.

    Of padded images only the pictures count, and the tokens at least partly under them.
    """
    found: dict[str, list[dict[str, Tensor]]] = {entry: [] for entry in ensemble.entries}
    layers = {(entry, index): _Share() for entry in ensemble.entries for index in range(len(ensemble.chains))}
    against: list[dict[str, Tensor]] = []
    ids: list[str] = []
    for batch in batches:
        if not batch.ids:
            continue
        ids.extend(batch.ids)
        features = model.features(batch.images, model.stages, batch.valid)
        against.append(_measure(mean_image.expand_as(batch.images), batch, metrics))
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
            found[entry].append({name: torch.stack([each[name] for each in by_seed]) for name in metrics})
    seeds = tuple(chain.seed for chain in ensemble.chains)
    entries = {
        entry: EntryErrors(
            {name: torch.cat([part[name] for part in parts], 1) for name in metrics},
            torch.tensor([layers[entry, index].value() for index in range(len(seeds))]),
        )
        for entry, parts in found.items()
    }
    mean = {name: torch.cat([part[name] for part in against]) for name in metrics}
    return Evaluation(entries, mean, seeds, tuple(ids))


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
        by_channel = target.double().movedim(channels, -1).flatten(0, -2)
        self.error += (output.double() - target.double()).square().sum().item()
        self.sum = self.sum + by_channel.sum(0)
        self.squares = self.squares + by_channel.square().sum(0)
        self.count += len(by_channel)

    def value(self) -> float:
        mean = torch.as_tensor(self.sum) / self.count
        variance = (torch.as_tensor(self.squares) / self.count - mean.square()).sum()
        return self.error / (self.count * max(variance.item(), 1e-12))
