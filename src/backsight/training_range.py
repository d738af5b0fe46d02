"""Whether an image is of the kind that inverses were trained on: measured on its features and its errors.

Held-out images of the training data say how features and errors are distributed there. An image is *unlike* them where
either lies farther from their centre than nearly all of these do. What is kept is small, and lies beside the chains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from backsight.chain import ChainEnsemble
from backsight.core import IMAGE, Layout, UserError, split_entry
from backsight.data import Batch
from backsight.devices import exact
from backsight.engine import StagedModel, Trace
from backsight.evaluation import Inverted, invert_chains, token_error, tokens_of
from backsight.io import read_tensors, write_bytes
from backsight.metrics import mse, on_valid

FILE = "training_range.safetensors"
"""The file in the folder of a run, or of a shipped model."""

WITHIN = 0.985
"""The share of held-out images whose features lie within the limit, and the share whose errors do."""

NUM_AXES = 64
"""Principal axes of a stage's features that are looked at, at most."""

FEWEST = 64
"""Held-out images; fewer tell nothing of a distribution, and no range is kept."""

MOST = 1000
"""Held-out images that a range is taken from, at most."""

FLOOR = 0.01
"""What is added to a quantity before its logarithm is taken, in units of its median: it may be 0."""

MOST_NAMED = 4
"""Images that a sentence names; of more the number is given."""

UNLIKE = ("unlike the", "training data")
"""What a picture says of an image outside the range, in two short lines."""


def stages_of(ensemble: ChainEnsemble) -> list[str]:
    """The stages that the chains invert, in their order."""
    return [entry for entry in ensemble.entries if not split_entry(entry)[1]]


@dataclass(frozen=True)
class Measured:
    """What is looked at of ``B`` images.

    ``features`` ``B D`` by stage are means over tokens. ``errors`` ``B 3 S``, for each of ``S`` stages: the squared
    error of the image, that of the inverse's own output (means over seeds), and the variance over tokens of what that
    should be.
    """

    features: Mapping[str, Tensor]
    errors: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Measured]) -> Measured:
        """Those of all ``parts``, one after the other; there is at least one."""
        features = {stage: torch.cat([part.features[stage] for part in parts]) for stage in parts[0].features}
        return cls(features, torch.cat([part.errors for part in parts]))

    def part(self, images: slice) -> Measured:
        """Those of some images."""
        return Measured({stage: each[images] for stage, each in self.features.items()}, self.errors[images])


class Recorder:
    """Passes batches through a model and its chains, as :func:`~backsight.evaluation.evaluate` takes it for ``invert``,
    and keeps what is :class:`Measured` of the first :data:`MOST` images."""

    model: StagedModel
    ensemble: ChainEnsemble

    def __init__(self, model: StagedModel, ensemble: ChainEnsemble) -> None:
        self.model, self.ensemble = model, ensemble
        self.parts: list[Measured] = []

    def __call__(self, batch: Batch) -> Inverted:
        """The features of ``batch`` and what its inverses make of them; it is measured once these are used up."""
        features, outputs = invert_chains(self.model, self.ensemble, batch)
        if sum(len(part.errors) for part in self.parts) >= MOST:
            return features, outputs
        return features, self._watched(batch, features, outputs)

    def _watched(
        self, batch: Batch, features: Mapping[str, Tensor], outputs: Iterable[tuple[str, Tensor, Tensor]]
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        places = {place.stage: place for place in _places(self.ensemble)}
        found: dict[str, list[Tensor]] = {stage: [] for stage in places}
        for entry, own, image in outputs:
            if entry in places:
                found[entry].append(_errors(places[entry], batch, features, own, image))
            yield entry, own, image
        self.parts.append(_measured(places.values(), batch, features, found))


def measure_images(
    ensemble: ChainEnsemble, batch: Batch, features: Mapping[str, Tensor], reconstruct: Callable[[str, str], Tensor]
) -> Measured:
    """What is looked at of the images of ``batch``.

    Args:
        ensemble: the chains.
        batch: the images.
        features: of the forward pass, ``B N D`` by stage.
        reconstruct: (from a stage, to a stage or ``image``) -> what every seed makes of it, ``S B ...``.
    """
    features, found = {IMAGE: batch.images, **features}, {}
    for place in _places(ensemble):
        pairs = zip(reconstruct(place.stage, place.before), reconstruct(place.stage, IMAGE), strict=True)
        found[place.stage] = [_errors(place, batch, features, own, image.clamp(0, 1)) for own, image in pairs]
    return _measured(_places(ensemble), batch, features, found)


@dataclass(frozen=True)
class _Place:
    """A stage, the one ``before`` it, and how their tokens are laid out."""

    stage: str
    before: str
    source: Layout
    target: Layout


def _places(ensemble: ChainEnsemble) -> list[_Place]:
    chain = ensemble.chains[0]
    before = dict(zip(chain.stages, [IMAGE, *chain.stages], strict=False))
    inverses = dict(chain.items())
    stages = stages_of(ensemble)
    return [_Place(stage, before[stage], inverses[stage].source, inverses[stage].target) for stage in stages]


def _measured(
    places: Iterable[_Place], batch: Batch, features: Mapping[str, Tensor], errors: Mapping[str, Sequence[Tensor]]
) -> Measured:
    pooled, columns = {}, []
    for place in places:
        pooled[place.stage] = _moments(features[place.stage], place.source.under(batch.valid))[0].cpu()
        _, variance = _moments(features[place.before], place.target.under(batch.valid))
        columns += [torch.stack(list(errors[place.stage])).mean(0), variance.mean(1, keepdim=True).cpu()]
    return Measured(pooled, torch.cat(columns, 1))


def _errors(place: _Place, batch: Batch, features: Mapping[str, Tensor], own: Tensor, image: Tensor) -> Tensor:
    """``B 2``: the errors of the image, and of the inverse's own output."""
    error = token_error(own.float(), features[place.before], place.target.under(batch.valid))
    return torch.stack([exact(on_valid(mse, batch.valid)(image.float(), batch.images)), error], 1).cpu()


def _moments(features: Tensor, counted: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and variance over tokens (those that are ``counted``, ``B N`` bool), ``B D`` each."""
    tokens = tokens_of(features)
    weights = torch.ones_like(tokens[..., :1]) if counted is None else counted[..., None].to(tokens)
    total = weights.sum(1)
    mean = (weights * tokens).sum(1) / total
    return mean, (weights * (tokens - mean[:, None]).square()).sum(1) / total


# ---- the range


@dataclass(frozen=True)
class _Cloud:
    """A distribution by its ``mean`` and ``scale`` (``D``), and along ``axes`` (``D K``) its ``variance`` (``K``)."""

    mean: Tensor
    scale: Tensor
    axes: Tensor
    variance: Tensor

    @classmethod
    def of(cls, values: Tensor) -> _Cloud:
        """That of ``B D``: as many axes as so few images can tell of."""
        mean, scale = values.mean(0), values.std(0).clamp(min=1e-9)
        centred = (values - mean) / scale
        variance, axes = torch.linalg.eigh(centred.mT @ centred / (len(values) - 1))
        count = min(NUM_AXES, values.shape[1], max(4, len(values) // 8))
        variance, axes = variance.flip(0)[:count], axes.flip(1)[:, :count]
        # Half precision is enough for directions; limits are taken with what is kept.
        axes, variance = axes.half().contiguous(), variance.clamp(min=1e-6 * variance[0])
        return cls(mean.float(), scale.float(), axes, variance.float())

    def log_distance(self, values: Tensor) -> Tensor:
        """The logarithm of the squared distance from the centre (Mahalanobis's), ``B``."""
        along = ((values - self.mean.double()) / self.scale.double()) @ self.axes.double()
        return (along.square() / self.variance.double()).mean(1).log()


@dataclass(frozen=True)
class Distances:
    """How far images lie from the centre of the training data, ``B`` each, by their ``features`` and their ``errors``:
    in units of the distance that :data:`WITHIN` of its held-out images keep within."""

    features: Tensor
    errors: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Distances]) -> Distances:
        """Those of all ``parts``, one after the other."""
        return cls(torch.cat([part.features for part in parts]), torch.cat([part.errors for part in parts]))

    @property
    def farthest(self) -> Tensor:
        """The larger of the two, ``B``."""
        return torch.maximum(self.features, self.errors)

    @property
    def unlike(self) -> Tensor:
        """Which images are unlike the training data, ``B`` bool."""
        return self.farthest > 1


@dataclass(frozen=True)
class TrainingRange:
    """How features and errors of the training data's held-out images are distributed.

    >>> import backsight as bs
    >>> model, chains = bs.load_model("zoo/vit-prior"), bs.ChainEnsemble.from_pretrained("zoo/vit-prior")
    >>> noise = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    >>> TrainingRange.beside(chains).distances_of(chains, model.run(noise)).unlike
    tensor([True])

    Attributes:
        features: by stage, of its features' means over tokens.
        errors: of the logarithms of :attr:`Measured.errors`, each after ``floor`` (``3 S``) was added.
        limits: of the mean over stages of the features' ``log_distance``, and of that of the errors; ``2``.
    """

    features: Mapping[str, _Cloud]
    errors: _Cloud
    floor: Tensor
    limits: Tensor = field(default_factory=lambda: torch.zeros(2))

    @classmethod
    def of(cls, measured: Measured) -> TrainingRange | None:
        """The range of held-out images: every second one tells of the distribution, the others of its limits.

        None where there are fewer than :data:`FEWEST`, or something of them is not finite.
        """
        known = [*measured.features.values(), measured.errors]
        if len(measured.errors) < FEWEST or not all(each.isfinite().all() for each in known):
            return None
        told, others = measured.part(slice(0, MOST, 2)), measured.part(slice(1, MOST, 2))
        floor = FLOOR * measured.errors.median(0).values.clamp(min=1e-12)
        features = {stage: _Cloud.of(each) for stage, each in told.features.items()}
        found = cls(features, _Cloud.of((told.errors + floor).log()), floor.float())
        limits = [each.quantile(WITHIN) for each in found._log_distances(others)]
        return cls(found.features, found.errors, found.floor, torch.stack(limits).float())

    def _log_distances(self, measured: Measured) -> tuple[Tensor, Tensor]:
        stages = [cloud.log_distance(measured.features[stage]) for stage, cloud in self.features.items()]
        errors = self.errors.log_distance((measured.errors + self.floor.double()).log())
        return torch.stack(stages).mean(0), errors

    def distances(self, measured: Measured) -> Distances:
        """How far the images of :func:`measure_images` lie from the centre of the training data."""
        pairs = zip(self._log_distances(measured), self.limits, strict=True)
        return Distances(*(((found - limit) / 2).exp() for found, limit in pairs))

    @torch.no_grad()
    def distances_of(self, ensemble: ChainEnsemble, trace: Trace) -> Distances:
        """The same for the images of a forward pass, which holds every stage of ``ensemble``."""
        batch = Batch(trace.images, ("",) * len(trace.images), (), trace.valid)
        reconstruct = lambda at, to: ensemble.reconstruct(trace, at, to)  # noqa: E731
        return self.distances(measure_images(ensemble, batch, trace.features, reconstruct))

    # ---- files

    def save(self, folder: str | Path) -> Path:
        """Write :data:`FILE` into ``folder``, whole."""
        clouds = {**{f"features/{stage}": cloud for stage, cloud in self.features.items()}, "errors": self.errors}
        tensors = {
            f"{name}/{part}": value.contiguous()
            for name, cloud in clouds.items()
            for part, value in vars(cloud).items()
        }
        return write_bytes(Path(folder) / FILE, save({**tensors, "floor": self.floor, "limits": self.limits}))

    @classmethod
    def load(cls, folder: str | Path) -> TrainingRange | None:
        """What ``folder`` keeps of it; None where that is nothing.

        Raises:
            UserError: the file is damaged.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        try:
            tensors = read_tensors(path)
            parts = {name.rpartition("/")[0] for name in tensors if name.endswith("/mean")}
            clouds = {name: _Cloud(*(tensors[f"{name}/{part.name}"] for part in fields(_Cloud))) for name in parts}
            features = {name.partition("/")[2]: clouds[name] for name in sorted(parts) if name != "errors"}
            return cls(features, clouds["errors"], tensors["floor"], tensors["limits"])
        except (SafetensorError, KeyError) as error:
            raise UserError(
                f"{path} is damaged: restore it, or remove it (nothing tells then whether an image is unlike the "
                "training data)"
            ) from error

    @classmethod
    def beside(cls, ensemble: ChainEnsemble) -> TrainingRange | None:
        """That of the run, or of the shipped model, that the chains were loaded from; None where it keeps none, or one
        of other stages."""
        found = next((each for each in map(cls.load, ensemble.run_folders) if each is not None), None)
        return found if found is not None and set(found.features) == set(stages_of(ensemble)) else None


def unlike_in_words(names: Sequence[str], distances: Distances, data: str | None) -> str:
    """A sentence on those of the images called ``names`` that are unlike the training data ``data``; "" if none is."""
    found = [(name, far) for name, far in zip(names, distances.farthest.tolist(), strict=True) if far > 1]
    if not found:
        return ""
    shown = [f"{Path(name).name} ({far:.2f})" for name, far in found[:MOST_NAMED]]
    more = [f"{len(found) - len(shown)} more"] if len(found) > len(shown) else []
    kind, whose = f" ({data})" if data else "", "Their" if len(found) > 1 else "Its"
    return (
        f"Unlike what the inverses were trained on{kind}: {', '.join([*shown, *more])}. In brackets is the distance "
        f"from the centre of that data; nearly all of its own images are within 1. {whose} reconstructions show what "
        "the inverses know of other images, and prove nothing of what the model sees here."
    )
