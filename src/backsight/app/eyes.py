"""A model with its chains, for many visitors: one pass at a time, and nothing computed twice.

The engine patches modules while it replays, so a lock stands around all of it. What was seen is kept (a bounded
number of bytes), and after an edit only the rest of the forward pass runs: features before the edit, and their
reconstructions, are those of the pass that was edited.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from backsight.app.sources import Source
from backsight.core import Classes, Detections, UserError
from backsight.engine import RANDOM, Trace
from backsight.experiments.subject import LRUCache, Subject, distinct_names, is_read_as, stage_of
from backsight.metrics import mse
from backsight.metrics.image import on_valid

CACHE = 256 << 20
"""Bytes of traces and reconstructions that are kept for one model."""


@dataclass(frozen=True)
class Seen:
    """A forward pass over one picture, whole, under a ``key`` that says all that it follows from.

    ``image`` is ``3 H W``; ``before`` is the pass that was edited ``at`` a stage or layer, None if none was.
    """

    key: str
    image: Tensor
    trace: Trace
    before: Seen | None = None
    at: str = ""


class Eyes:
    """A forward model and its chains, one for each seed.

    Args:
        subject: both, and the data that they are looked at with.
        name: what visitors call it; by default the model's name without the folders of this machine.
        cache: bytes of what was computed that are kept at most.
    """

    def __init__(self, subject: Subject, name: str = "", cache: int = CACHE) -> None:
        self.subject, self.model = subject, subject.model
        self.name = name or public_name(subject.model.name)
        self.lock = threading.RLock()
        self._kept = LRUCache(cache)
        self.stages = subject.stages
        self.layers = [each for each in distinct_names(subject) if is_read_as(subject, each, stage_of(each))]
        self.grids = {each: self.model.layout(each).grids[-1] for each in self.layers if self.model.layout(each).grids}

    @property
    def seeds(self) -> list[int]:
        """The seed of each chain."""
        return self.subject.seeds

    def card(self) -> dict[str, Any]:
        """What every view and file says of the model: weights, and whether they are random, come first."""
        known = {**self.subject.card(), "model": self.name, "weights": public_name(self.model.weights)}
        kept = ("model", "weights", "random", "task", "stages", "size", "fit", "value_range", "seeds")
        return {name: known[name] for name in kept}

    # ---- passes

    def see(self, source: Source, image: Tensor | None = None, change: str = "") -> Seen:
        """The pass over a picture; or over ``image`` (``3 H W``), which is the picture after ``change``, in words."""
        key = f"{source.name} {change}"

        def compute() -> Seen:
            own = (source.image if image is None else image).to(self.model.device)
            valid = None if source.valid is None else source.valid[None].to(self.model.device)
            return Seen(key, own, self.model.run(own[None], valid=valid))

        return self._get(("seen", key), compute)

    def edit(self, seen: Seen, at: str, features: Tensor, change: str) -> Seen:
        """The pass of ``seen`` with other features (``1 N D``) at a stage or layer, gone on from there.

        Raises:
            UserError: the model has no such stage or layer.
        """
        key = f"{seen.key} {at} {change}"
        return self._get(
            ("seen", key), lambda: Seen(key, seen.image, self.model.resume(at, features, seen.trace), seen, at)
        )

    def reconstruct(self, seen: Seen, name: str) -> Tensor:
        """The reconstruction from a stage or layer by every seed, ``S 3 H W`` in [0, 1].

        Raises:
            UserError: the chains do not read it.
        """
        if name not in self.layers:
            raise UserError(f"'{name[:40]}' is nothing that the chains of {self.name} read: {', '.join(self.layers)}")
        while seen.before is not None and self._precedes(name, seen):
            seen = seen.before
        return self._get((name, seen.key), lambda: self.subject.invert(seen.trace, name)[:, 0].cpu())

    def errors(self, seen: Seen, name: str, picture_of: Seen | None = None) -> Tensor:
        """The mean squared error of each seed's reconstruction, ``S``, from the picture of ``seen``, or of another."""
        target = picture_of or seen

        def compute() -> Tensor:
            found = self.reconstruct(seen, name)
            return self._measure(seen, target.image.cpu()[None].expand_as(found), found)

        return self._get(("errors", name, seen.key, target.key), compute)

    def baseline(self, seen: Seen) -> float:
        """The error of an inverse that knows nothing, and paints the mean image."""
        mean = self.subject.mean_image.cpu()[None]
        return float(self._get(("baseline", seen.key), lambda: self._measure(seen, seen.image.cpu()[None], mean)))

    def answer(self, seen: Seen) -> Classes | Detections | None:
        """What the model says of the one picture; None for a model that says nothing."""
        if self.model.spec.task == "features":
            return None
        with self.lock:
            found = self.model.predict(seen.trace)
        return found if isinstance(found, Classes) else found[0]

    def _precedes(self, name: str, seen: Seen) -> bool:
        names = self.model.names  # in the order of the forward pass
        return names.index(name) < names.index(seen.at)

    def _measure(self, seen: Seen, image: Tensor, others: Tensor) -> Tensor:
        valid = None if seen.trace.valid is None else seen.trace.valid.cpu().expand(len(image), -1, -1)
        return on_valid(mse, valid)(image, others)

    @torch.no_grad()
    def _get(self, key: Any, compute: Callable[[], Any]) -> Any:
        with self.lock:
            return self._kept.get((self.name, key), compute)


def public_name(name: str) -> str:
    """A model's or its weights' name without the folders of this machine: ``/data/models/mine`` -> ``mine``."""
    path = PurePath(name)
    if name == RANDOM or not (path.is_absolute() or ".." in path.parts or Path(name).exists()):
        return name
    return path.name or name
