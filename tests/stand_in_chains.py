"""Chains for the tests whose answer is known: they paint what they are told to."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from backsight.chain import ChainEnsemble
from backsight.data import open_data
from backsight.engine import StagedModel, Trace
from backsight.experiments import Subject


class Painter(ChainEnsemble):
    """An ensemble of which every seed paints ``paint(source)``: ``B 3 H W`` from a trace or from features ``B N D``."""

    def __init__(self, model: StagedModel, paint: Callable[[Any], Tensor], seeds: int = 2) -> None:
        self.chains: Any = [SimpleNamespace(seed=seed, folder=None) for seed in range(seeds)]
        self.folder = None
        self._stages, self._paint = model.stages, paint

    def to(self, device: Any) -> Painter:
        return self

    @property
    def entries(self) -> list[str]:
        return self._stages

    def check(self, model: StagedModel) -> None:
        assert model.stages == self._stages

    def reconstruct(self, source: Trace | Tensor, at: str, to: str = "image", **options: Any) -> Tensor:
        return torch.stack([self._paint(source)] * len(self.chains))


def paint_grey(model: StagedModel) -> Callable[[Any], Tensor]:
    """Grey, whatever the features."""
    return lambda source: torch.full((len(features_of(source)), 3, *model.pixels.size), 0.5)


def paint_input(model: StagedModel) -> Callable[[Any], Tensor]:
    """The very image from its own trace, and grey from features that somebody changed."""
    grey = paint_grey(model)
    return lambda source: source.images if isinstance(source, Trace) else grey(source)


def features_of(source: Trace | Tensor) -> Tensor:
    return source.images if isinstance(source, Trace) else source


def painted(
    model: StagedModel, paint: Callable[[StagedModel], Callable[[Any], Tensor]], data: Any, num_images: int, **more: Any
) -> Subject:
    """A subject whose inverses paint by ``paint(model)``; ``data``: images, or a specification, of which the test."""
    images = open_data(data, model.pixels).test if isinstance(data, str) else data
    return Subject(model, Painter(model, paint(model)), images, num_images=num_images, **more)
