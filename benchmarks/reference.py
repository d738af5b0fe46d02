"""What training is set against: the loops of the authors' scripts, in plain PyTorch.

Single precision, channels first, the whole forward model for every batch, no processes that read ahead, the loss read
back after every step. Two protocols: one script for each component, each with its own forward passes (the paper's),
and all components in one pass over the images (the authors' later code). Networks, losses and learning rates are the
same as ours; nothing here comes from our trainer, and every weight is learned, needed or not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from backsight.arrange import pick_argument, read_field, to_features
from backsight.core import IMAGE, Site, split_entry
from backsight.data import ImageData, Sample
from backsight.engine import StagedModel
from backsight.tasks import build_chains, learning_rate, make_plans

CLIP = 1.0


class Pictures(Dataset):
    """The images alone, in [0, 1]."""

    def __init__(self, data: ImageData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Tensor:
        sample = self.data[index]
        assert isinstance(sample, Sample)
        return sample.image.float() / 255


class Reference:
    """One set of inverses, and both ways to train it; ``losses`` are the last one of each."""

    def __init__(self, model: StagedModel, data: ImageData, batch_size: int, seed: int = 0) -> None:
        plans = make_plans(model)
        chain = build_chains(model, plans, [seed])[0].to(model.device).train()
        self.model = model
        self.networks: dict[str, nn.Module] = {entry: each for entry, each in chain.items() if each.trainable}
        self.optimisers = {
            entry: torch.optim.Adam(network.parameters(), lr=learning_rate(plans[entry], network))
            for entry, network in self.networks.items()
        }
        self.losses: dict[str, float] = {}
        self._images = _endless(DataLoader(Pictures(data), batch_size, shuffle=True, drop_last=True))

    def all_components(self, steps: int) -> float:
        """``steps`` batches in one pass for all components; returns the seconds spent on reading images."""
        return sum(self._step(list(self.networks)) for _ in range(steps))

    def script_per_component(self, steps: int) -> float:
        """``steps`` batches for each component, by a script of its own; likewise."""
        return sum(self._step([entry]) for entry in self.networks for _ in range(steps))

    def _step(self, entries: list[str]) -> float:
        start = time.perf_counter()
        images = next(self._images).to(self.model.device)
        reading = time.perf_counter() - start
        with torch.no_grad():
            features = self._forward(images)
        for entry in entries:
            stage = split_entry(entry)[0]
            optimiser, network = self.optimisers[entry], self.networks[entry]
            optimiser.zero_grad()
            output, target = network(features[stage]), features[self.model.spec.before(stage)]
            if output.dim() == 4:
                output, target = self.model.pixels.normalise(output), self.model.pixels.normalise(target)
            loss = nn.functional.mse_loss(output, target)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            optimiser.step()
            self.losses[entry] = loss.item()
        return reading

    def _forward(self, images: Tensor) -> dict[str, Tensor]:
        """``B 3 H W`` in [0, 1] -> the features of every stage, by hooks on the whole of the library's forward."""
        seen: dict[Site, Any] = {}
        with ExitStack() as stack:
            for site in {site for name in self.model.stages for site in self.model.sites(name)}:
                stack.callback(_watch(self.model.module, site, seen).remove)
            self.model.module(self.model.pixels.normalise(images), **self.model.arguments)
        size = (images.shape[-2], images.shape[-1])
        found = {name: self.model.sites(name) for name in self.model.stages}
        features = {name: to_features([seen[site] for site in sites], sites, size) for name, sites in found.items()}
        return {IMAGE: images, **features}


def _watch(module: nn.Module, site: Site, seen: dict[Site, Any]) -> Any:
    """Keep what stands at ``site`` during a pass; of several fields the one that the site names."""
    place = module.get_submodule(site.path)
    if site.side == "output":
        return place.register_forward_hook(lambda _, __, output: seen.update({site: read_field(output, site.field)}))

    def entering(inner: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen[site] = pick_argument(inner, args, kwargs, site.field)[0]

    return place.register_forward_pre_hook(entering, with_kwargs=True)


def _endless(batches: DataLoader) -> Iterator[Tensor]:
    while True:
        yield from batches
