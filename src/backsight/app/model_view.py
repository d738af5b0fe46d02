"""A model with its chains, for many visitors: one pass at a time, and nothing computed twice.

The engine patches modules while it replays, so a lock stands around all of it. Results are cached (a bounded number
of bytes), and after an edit only the rest of the forward pass runs: features before the edit, and their
reconstructions, are those of the pass that was edited.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backsight.app.state import MEAN, SPREAD
from backsight.core import Classes, Detections, UserError, entry_title, valid_sizes
from backsight.data import Target
from backsight.engine import StagedModel, Trace
from backsight.experiments.subject import LRUCache, Subject, distinct_names, is_read_as, stage_of, trained_on
from backsight.figures import colour_map, spread
from backsight.hub.card import public_facts, public_name
from backsight.metrics import mse
from backsight.metrics.image import on_valid
from backsight.training_range import unlike_in_words
from backsight.weak_inverses import weak_inverses

CACHE = 256 << 20
"""Bytes of traces and reconstructions that are kept for one model."""

NUM_CLASSES = 5
"""How many classes of a classifier are shown, the likeliest first."""

LARGEST_SPREAD = 0.2
"""The standard deviation between seeds that has the brightest colour, on every map."""


@dataclass(frozen=True)
class InputImage:
    """An image as a model gets it: ``pixels`` ``3 H W`` in [0, 1], where it is ``valid`` (None: everywhere), and what
    is known of it (``target``, None for what a visitor uploaded) with the names of its ``classes`` by label."""

    name: str
    pixels: Tensor
    valid: Tensor | None = None
    target: Target | None = None
    classes: Mapping[int, str] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.pixels.shape[-2], self.pixels.shape[-1]


@dataclass(frozen=True)
class ForwardPass:
    """A forward pass over one image (``3 H W``), whole, under a ``key`` that names all that it follows from.

    ``before`` is the pass that was edited ``at`` a stage or layer, None if none was.
    """

    key: str
    image: Tensor
    trace: Trace
    before: ForwardPass | None = None
    at: str = ""

    def without_padding(self, image: Tensor) -> Tensor:
        """``... H W``, or less of it: a padded image alone."""
        if self.trace.valid is None:
            return image
        rows, columns = valid_sizes(self.trace.valid)[0]
        return image[..., :rows, :columns]


@dataclass(frozen=True)
class Answer:
    """One class that a model predicts, its ``score`` (0..1), and the ``box`` (x0, y0, x1, y1 in pixels of the model's
    input) of a detection."""

    name: str
    score: float
    box: tuple[float, ...] | None = None


class ModelView:
    """A forward model and its chains, one for each seed.

    Args:
        subject: both, and their data.
        name: what visitors call it; by default the model's name without the folders of this machine.
        cache: bytes of results that are kept at most.
    """

    def __init__(self, subject: Subject, name: str = "", cache: int = CACHE) -> None:
        self.subject: Subject = subject
        self.model: StagedModel = subject.model
        self.name: str = name or public_name(subject.model.name)
        self.lock: threading.RLock = threading.RLock()
        self._cache = LRUCache(cache)
        self.stages: list[str] = subject.stages
        self.seeds: list[int] = subject.seeds
        self.layers: list[str] = [each for each in distinct_names(subject) if is_read_as(subject, each, stage_of(each))]
        self.weak: dict[str, str] = weak_inverses(subject.ensemble)
        self.trained_on: str = str(public_facts({"data": trained_on(subject.ensemble) or ""})["data"])
        self.grids: dict[str, tuple[int, int]] = {
            each: self.model.layout(each).grids[-1] for each in self.layers if self.model.layout(each).grids
        }

    @property
    def detects(self) -> bool:
        """Whether it is a detector."""
        return self.model.spec.task == "detect"

    def card(self) -> dict[str, Any]:
        """What every view and file states of the model: weights, and whether they are random, come first."""
        known = {**self.subject.card(), "model": self.name, "weights": public_name(self.model.weights)}
        known |= {"weak": {entry_title(entry): why for entry, why in self.weak.items()}, "trained_on": self.trained_on}
        shown = ("model", "weights", "random", "task", "stages", "size", "fit", "value_range", "seeds")
        return {name: known[name] for name in (*shown, "weak", "trained_on")}

    # ---- passes

    def run(self, image: InputImage, changed: Tensor | None = None, change: str = "") -> ForwardPass:
        """The pass over an image; or over ``changed`` (``3 H W``), which is that image after ``change``, in words."""
        key = f"{image.name} {change}"

        def compute() -> ForwardPass:
            pixels = (image.pixels if changed is None else changed).to(self.model.device)
            valid = None if image.valid is None else image.valid[None].to(self.model.device)
            return ForwardPass(key, pixels, self.model.run(pixels[None], valid=valid))

        return self._cached(("pass", key), compute)

    def resume(self, forward: ForwardPass, at: str, features: Tensor, change: str) -> ForwardPass:
        """The pass ``forward`` with other features (``1 N D``) at a stage or layer, gone on from there.

        Raises:
            UserError: the model has no such stage or layer.
        """
        key = f"{forward.key} {at} {change}"

        def compute() -> ForwardPass:
            return ForwardPass(key, forward.image, self.model.resume(at, features, forward.trace), forward, at)

        return self._cached(("pass", key), compute)

    def reconstruct(self, forward: ForwardPass, name: str) -> Tensor:
        """The reconstruction from a stage or layer by every seed, ``S 3 H W`` in [0, 1].

        Raises:
            UserError: the chains do not read it.
        """
        if name not in self.layers:
            raise UserError(f"'{name[:40]}' is nothing that the chains of {self.name} read: {', '.join(self.layers)}")
        order = self.model.names  # of the forward pass
        while forward.before is not None and order.index(name) < order.index(forward.at):
            forward = forward.before
        return self._cached((name, forward.key), lambda: self.subject.invert(forward.trace, name)[:, 0].cpu())

    def show_seeds(self, forward: ForwardPass, name: str, shows: str) -> Tensor:
        """One image, ``3 H W``, of the reconstructions: their ``mean``, their ``spread``, or that of one seed.

        Raises:
            UserError: there is no such seed, or too few for a spread.
        """
        found = self.reconstruct(forward, name)
        if shows == MEAN:
            return found.mean(0)
        if shows == SPREAD:
            if len(found) < 2:
                raise UserError("one seed alone has no spread: train the chains with --seeds 3")
            return colour_map(spread(found), LARGEST_SPREAD)
        if not shows.isdecimal() or int(shows) not in self.seeds:
            raise UserError(f"no seed '{shows[:20]}': there are {', '.join(map(str, self.seeds))}, mean and spread")
        return found[self.seeds.index(int(shows))]

    def errors(self, forward: ForwardPass, name: str, reference: ForwardPass | None = None) -> Tensor:
        """The mean squared error of each seed's reconstruction, ``S``, from the image of ``forward``, or of
        ``reference``."""
        target = reference or forward

        def compute() -> Tensor:
            found = self.reconstruct(forward, name)
            return self._mse(forward, target.image.cpu()[None].expand_as(found), found)

        return self._cached(("errors", name, forward.key, target.key), compute)

    def baseline(self, forward: ForwardPass) -> float:
        """The error of an inverse that knows nothing, and gives the mean image."""
        mean = self.subject.mean_image.cpu()[None]
        return float(
            self._cached(("baseline", forward.key), lambda: self._mse(forward, forward.image.cpu()[None], mean))
        )

    def unlike(self, forward: ForwardPass) -> str:
        """One sentence where the image of ``forward``, as it was before any change, is unlike what the inverses were
        trained on; "" where it is not, or nothing is known of that."""
        while forward.before is not None:
            forward = forward.before
        known = self.subject.training_range
        if known is None:
            return ""
        ensemble, trace = self.subject.ensemble, forward.trace
        found = self._cached(("distances", forward.key), lambda: known.distances_of(ensemble, trace))
        return unlike_in_words(["this picture"], found, self.trained_on)

    def predict(self, forward: ForwardPass) -> Classes | Detections | None:
        """The model's prediction for the one image; None for a model that has none."""
        if self.model.spec.task == "features":
            return None
        with self.lock:
            found = self.model.predict(forward.trace)
        return found if isinstance(found, Classes) else found[0]

    def answers(self, forward: ForwardPass, threshold: float = 0.5) -> list[Answer]:
        """The prediction, surest first: detections of at least ``threshold``, or the likeliest classes."""
        found = self.predict(forward)
        if isinstance(found, Detections):
            sure = found.above(threshold)
            rows = zip(sure.classes.tolist(), sure.scores.tolist(), sure.boxes.tolist(), strict=True)
            answers = [Answer(_class_name(found.labels, label), score, tuple(box)) for label, score, box in rows]
            return sorted(answers, key=lambda answer: -answer.score)
        if isinstance(found, Classes):
            scores, labels = found.logits[0].softmax(-1).topk(min(NUM_CLASSES, found.logits.shape[-1]))
            rows = zip(labels.tolist(), scores.tolist(), strict=True)
            return [Answer(_class_name(found.labels, label), score) for label, score in rows]
        return []

    def _mse(self, forward: ForwardPass, image: Tensor, others: Tensor) -> Tensor:
        valid = None if forward.trace.valid is None else forward.trace.valid.cpu().expand(len(image), -1, -1)
        return on_valid(mse, valid)(image, others)

    @torch.no_grad()
    def _cached(self, key: Any, compute: Callable[[], Any]) -> Any:
        with self.lock:
            return self._cache.get((self.name, key), compute)


def _class_name(labels: Mapping[int, str], label: int) -> str:
    return labels.get(label, f"class {label}")
