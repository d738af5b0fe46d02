"""What an experiment looks at: a forward model, its inverse chains, and images, each computed once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from backsight.chain import ChainEnsemble
from backsight.core import IMAGE, UserError, split_entry
from backsight.data import Batch, ImageData, collate
from backsight.engine import RANDOM, StagedModel, Trace
from backsight.evaluation import MeanImage

CACHE = 2 << 30
"""Bytes of traces and reconstructions that a subject keeps at most."""


class Subject:
    """A forward model with its chains and the images that it is looked at with.

    The images are read once and stay on the model's device. Traces and reconstructions are computed when they are
    asked for and kept (the latest ``CACHE`` bytes of them), so that experiments share them.

    Args:
        model: the forward model.
        ensemble: its chains, one for each seed.
        data: where the images come from: the test split, with masks where an experiment needs them.
        num_images: how many of them, the first ones; all by default.
        batch_size: images that pass the networks together.
        mean_image: ``3 H W`` in [0, 1], of the training data; without it that of these images stands in.
    """

    def __init__(
        self,
        model: StagedModel,
        ensemble: ChainEnsemble,
        data: ImageData,
        *,
        num_images: int | None = None,
        batch_size: int = 16,
        mean_image: Tensor | MeanImage | None = None,
        cache: int = CACHE,
    ) -> None:
        ensemble.check(model)
        self.model, self.ensemble, self.data = model, ensemble.to(model.device), data
        self.batches = list(_read(data, num_images, batch_size, model.device))
        if not self.batches:
            raise UserError(f"{data.name} has no image that can be read: give other data")
        self._given_mean = mean_image
        self._kept = Kept(cache)

    @property
    def name(self) -> str:
        """The forward model's name, the label ``model`` of every measurement."""
        return self.model.name

    @property
    def stages(self) -> list[str]:
        """The stages that the chains invert, in the order of the forward pass."""
        return [entry for entry in self.ensemble.entries if not split_entry(entry)[1]]

    @property
    def seeds(self) -> list[int]:
        """The seed of each chain."""
        return [chain.seed for chain in self.ensemble.chains]

    @property
    def num_images(self) -> int:
        """How many images there are."""
        return sum(len(batch.ids) for batch in self.batches)

    @cached_property
    def baseline(self) -> MeanImage:
        """What an inverse paints that knows nothing; errors are held against ``baseline.against(batch)``."""
        given = self._given_mean
        if isinstance(given, MeanImage):
            return given
        return MeanImage.over(self.batches) if given is None else MeanImage(given)

    @property
    def mean_image(self) -> Tensor:
        """``3 H W``, on the model's device: the mean of the training images, or of these where nothing keeps it."""
        return self.baseline.image.to(self.model.device)

    @property
    def padded(self) -> bool:
        """Whether any image is padded: then ``batch.valid`` says where the pictures are, and only that counts."""
        return any(batch.valid is not None for batch in self.batches)

    def card(self) -> dict[str, Any]:
        """What every output says of the subject."""
        return {
            "model": self.name,
            "weights": self.model.weights,
            "random": self.model.weights == RANDOM,
            "task": self.model.spec.task,
            "stages": self.stages,
            "data": self.data.name,
            "data_fingerprint": self.data.fingerprint(),
            "num_images": self.num_images,
            "size": list(self.model.pixels.size),
            "fit": self.model.pixels.fit,
            "value_range": "RGB in [0, 1]",
            "seeds": self.seeds,
        }

    @torch.no_grad()
    def trace(self, batch: Batch) -> Trace:
        """The forward pass over one of :attr:`batches`, kept."""
        return self._kept.get(("trace", batch.ids), lambda: self.model.run(batch.images, valid=batch.valid))

    @torch.no_grad()
    def reconstruct(self, batch: Batch, at: str, to: str = IMAGE, **options: Any) -> Tensor:
        """The reconstruction of one of :attr:`batches` by every seed, kept: ``S B 3 H W`` in [0, 1], or features.

        The options are those of :meth:`backsight.chain.InverseChain.reconstruct`.
        """
        key = ("reconstruction", batch.ids, at, to, repr(sorted(options.items())))
        return self._kept.get(key, lambda: self.invert(self.trace(batch), at, to, **options))

    @torch.no_grad()
    def invert(self, source: Trace | Tensor, at: str, to: str = IMAGE, **options: Any) -> Tensor:
        """The same for any trace or features (``B N D``) of the model, not kept."""
        found = self.ensemble.reconstruct(source, at, to, **options).float()
        return found.clamp(0, 1) if to == IMAGE else found

    def collect(self, measure: Callable[[Batch], Tensor]) -> Tensor:
        """``measure`` of every batch, ``S B`` (or ``B``, for quantities without seeds), joined over all images."""
        parts = [measure(batch).detach().cpu().double() for batch in self.batches]
        return torch.cat([part[None] if part.ndim == 1 else part for part in parts], 1)

    def require(self, *needs: str) -> None:
        """Refuse data that lacks what an experiment needs: ``masks``, ``boxes``, ``labels`` (of whole images).

        Raises:
            UserError: it does, in one line that says which data would do.
        """
        for need in needs:
            if not any(_has(need, target) for batch in self.batches for target in batch.targets):
                raise UserError(f"{self.data.name} has no {_NEEDS[need]}")

    def only(self, num_images: int) -> Subject:
        """The same subject on its first ``num_images`` images, and its baseline; it shares nothing that is kept."""
        return Subject(self.model, self.ensemble, self.data, num_images=num_images, mean_image=self.baseline)


_NEEDS = {
    "masks": "instance masks: take coco:DIR or world",
    "boxes": "boxes of objects: take coco:DIR or world",
    "labels": "class of the whole image: take folder:DIR with a folder for each class, or world:prior:single",
}


def notes_on_baselines(subjects: Iterable[Subject]) -> list[str]:
    """What a reader of errors in units of the mean image's must know: where it is not that of the training data."""
    return [
        f"{subject.name}: the mean image of the training data is not known, so that of the {subject.num_images} images "
        + ("stands in for it, its error corrected for this" if subject.num_images > 1 else "would be it: no answer")
        for subject in subjects
        if subject.baseline.counts is not None
    ]


def _has(need: str, target: Any) -> bool:
    if need == "labels":
        return target.label is not None
    return len(target.boxes) > 0 and (need == "boxes" or target.masks is not None)


def _read(data: ImageData, num_images: int | None, batch_size: int, device: torch.device) -> Iterator[Batch]:
    wanted = range(min(num_images or len(data), len(data)))
    for start in wanted[::batch_size]:
        batch = collate([data[index] for index in wanted[start : start + batch_size]])
        if batch.ids:
            yield batch.to(device)


class Kept:
    """What was computed, the least recently used forgotten first once it exceeds ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self.values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def get(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """What is kept under ``key``; computed now if nothing is."""
        if key in self.values:
            self.values.move_to_end(key)
            return self.values[key][0]
        value = compute()
        size = sum(storage.nbytes() for storage in _storages(value))
        self.values[key], self.size = (value, size), self.size + size
        while self.size > self.limit and len(self.values) > 1:
            self.size -= self.values.popitem(last=False)[1][1]
        return value


def _storages(value: Any) -> Sequence[Any]:
    """The memory behind a tensor, or behind all those in a trace, each once."""
    found: dict[int, Any] = {}

    def visit(each: Any) -> None:
        if isinstance(each, Tensor):
            storage = each.untyped_storage()
            found[storage.data_ptr()] = storage
        elif isinstance(each, dict):
            for part in each.values():
                visit(part)
        elif isinstance(each, list | tuple):
            for part in each:
                visit(part)
        elif hasattr(each, "__dict__"):
            visit(vars(each))

    visit(value)
    return list(found.values())
