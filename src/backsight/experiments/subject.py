"""What an experiment is done with: a forward model, its inverse chains, and images, each computed once."""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from backsight.chain import ChainEnsemble, InverseChain
from backsight.chain.model import open_forward_model
from backsight.core import IMAGE, UserError
from backsight.data import Batch, ImageData, open_data
from backsight.data.loader import MadeInBatches, read_chunks
from backsight.data.split import Selection
from backsight.devices import choose_device
from backsight.distributed import Processes
from backsight.engine import RANDOM, StagedModel, Trace
from backsight.evaluation import MeanImage, mean_image_of
from backsight.io import read_record
from backsight.models import load_model, vocabulary
from backsight.results import Measurement, Picture, Result
from backsight.shipped import find_shipped
from backsight.tasks import linear_chain
from backsight.training_range import Distances, TrainingRange, measure_images, stages_of, unlike_in_words
from backsight.validation import Record
from backsight.weak_inverses import weak_in_words, weak_inverses

NUM_IMAGES = 100
"""How many images an experiment uses by default."""

CACHE_BYTES = 2 << 30
"""Bytes of traces and reconstructions that a subject keeps at most."""

UNTRAINED_INVERSE, UNTRAINED_MODEL, LINEAR_INVERSE = CONTROLS = (
    "untrained inverse",
    "untrained model",
    "linear inverse",
)
"""What an effect is measured on as well (:func:`backsight.experiments.controls.controls_of`): two that must not have
it, and what a linear reading gives."""

LINEAR = "linear"
"""The name of chains that are solved for when they are asked for."""

MOST_UNLIKE = 0.2
"""The share of images that may be unlike the training data before a result says so: a few of its own are, too."""

KEPT_BYTES = 1 << 29
"""Bytes of images that a subject keeps at most."""

WORKERS = 2
"""Processes that read images ahead."""

_FIX = "restore it, or name the data by --data"

Key = TypeVar("Key")


class Subject:
    """A forward model with its chains and the images that an experiment gives it.

    Images are read batch by batch when they are asked for, and some of them are kept. Traces and reconstructions are
    computed when they are first asked for and cached (the latest ``cache`` bytes of them), so that experiments share
    them. Several processes measure a part of the batches each (:meth:`gather`).

    >>> import backsight as bs
    >>> model = bs.load_model("zoo/vit-prior")
    >>> subject = bs.Subject(model, "zoo/vit-prior", "world:prior:single", num_images=2)
    >>> subject.stages, subject.seeds
    (['backbone', 'encoder'], [0, 1, 2])
    >>> subject.reconstruct(subject.batches[0], at="encoder").shape  # seeds, images, RGB, height, width
    torch.Size([3, 2, 3, 96, 96])

    Args:
        model: the forward model.
        chain: one chain, or an ensemble of a chain for each seed; or where they are: a run, a chain's folder,
            ``zoo/NAME``, or a name on the hub.
        data: images; or their specification, as :func:`~backsight.data.open_data` takes it: its test split.
        num_images: how many of them, the first ones; None for all.
        batch_size: images that pass the networks together.
        mean_image: ``3 H W`` in [0, 1], of the training data; by default what the chains' run has saved, or else that
            of these images.
        cache: bytes of traces and reconstructions to keep.
        control: one of :data:`CONTROLS`, if it is that of another subject.
        fit: how the images were brought to the model's size, if not as the model does it.
        processes: those that share the work.

    Attributes:
        batches: the images on the model's device, a sequence of :class:`~backsight.data.Batch`.

    Raises:
        UserError: chains of another model, data that cannot be opened, or no image that can be read.
    """

    model: StagedModel
    ensemble: ChainEnsemble
    data: ImageData
    processes: Processes
    batch_size: int
    control: str
    fit: str

    def __init__(
        self,
        model: StagedModel,
        chain: InverseChain | ChainEnsemble | str | Path,
        data: ImageData | str,
        *,
        num_images: int | None = NUM_IMAGES,
        batch_size: int = 16,
        mean_image: Tensor | MeanImage | None = None,
        cache: int = CACHE_BYTES,
        control: str = "",
        fit: str = "",
        processes: Processes | None = None,
    ) -> None:
        if num_images is not None and num_images < 1:
            raise UserError(f"{num_images} images: it has to be at least 1")
        ensemble = as_ensemble(chain)
        ensemble.check(model)
        if isinstance(data, str):
            data = open_data(data, model.pixels, masks=True, vocabulary=vocabulary(model)).test
        self.model, self.ensemble, self.data = model, ensemble.to(model.device), data
        self.processes, self.batch_size = processes or Processes(), batch_size
        self.batches: Sequence[Batch] = Batches(data, num_images, batch_size, model.device, self.processes)
        self._mean_image = mean_image if mean_image is not None else training_mean(ensemble)
        self._cache = LRUCache(cache)
        self.control, self.fit = control, fit or model.pixels.fit

    @property
    def name(self) -> str:
        """The forward model's name, the label ``model`` of every measurement; a control says that it is one."""
        return f"{self.model.name}, {self.control}" if self.control else self.model.name

    @property
    def stages(self) -> list[str]:
        """The stages that the chains invert, in the order of the forward pass."""
        return stages_of(self.ensemble)

    @property
    def seeds(self) -> list[int]:
        """The seed of each chain."""
        return [chain.seed for chain in self.ensemble.chains]

    @property
    def summaries(self) -> Sequence[Summary]:
        """What is known of each of the :attr:`batches`, without reading them again."""
        if isinstance(self.batches, Batches):
            return self.batches.summaries
        return [_summarise(place, batch) for place, batch in enumerate(self.batches)]

    @property
    def ids(self) -> list[str]:
        """Of the images, in their order."""
        return [each for summary in self.summaries for each in summary.ids]

    @property
    def num_images(self) -> int:
        """How many images there are."""
        return len(self.ids)

    @cached_property
    def baseline(self) -> MeanImage:
        """What an inverse paints that knows nothing; errors are held against ``baseline.against(batch)``."""
        if self._mean_image is None:
            return MeanImage.over(self.batches)
        return self._mean_image if isinstance(self._mean_image, MeanImage) else MeanImage(self._mean_image)

    @property
    def mean_image(self) -> Tensor:
        """``3 H W``, on the model's device: the mean of the training images, or of these where it is not known."""
        return self.baseline.image.to(self.model.device)

    @property
    def padded(self) -> bool:
        """Whether any image is padded: then ``batch.valid`` says where the pictures are, and only that counts."""
        return any(summary.padded for summary in self.summaries)

    def card(self) -> dict[str, Any]:
        """The facts that every output states: the model, its weights, the data, and how many images of it."""
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
            "fit": self.fit,
            "value_range": "RGB in [0, 1]",
            "seeds": self.seeds,
            **({"control": self.control, "of": self.model.name} if self.control else {}),
        }

    @torch.no_grad()
    def trace(self, batch: Batch) -> Trace:
        """The forward pass over one of :attr:`batches`, cached."""
        return self._cache.get(("trace", batch.ids), lambda: self.model.run(batch.images, valid=batch.valid))

    @torch.no_grad()
    def reconstruct(self, batch: Batch, at: str, to: str = IMAGE, **options: Any) -> Tensor:
        """The reconstruction of one of :attr:`batches` by every seed, cached: ``S B 3 H W`` in [0, 1], or features.

        The options are those of :meth:`backsight.chain.InverseChain.reconstruct`.
        """
        key = ("reconstruction", batch.ids, at, to, repr(sorted(options.items())))
        return self._cache.get(key, lambda: self.invert(self.trace(batch), at, to, **options))

    @property
    def sampling_stages(self) -> list[str]:
        """The stages from which at least one inverse on the way to the image samples."""
        chain = self.ensemble.chains[0]
        return [stage for stage in self.stages if any(map(chain.samples, chain.path(stage, via=chain.samplers())))]

    @property
    def drawing(self) -> Subject:
        """The same with those seeds alone that have what the first has to sample by."""
        ensemble = self.ensemble.drawing
        if len(ensemble.chains) == len(self.seeds):
            return self
        other = copy.copy(self)
        other.ensemble, other._cache = ensemble, LRUCache(self._cache.limit)
        return other

    def only(self, indices: Sequence[int]) -> Subject:
        """The same with the images ``indices`` of its data alone."""
        other = copy.copy(self)
        other.__dict__.pop("baseline", None)
        other.data, other._cache = Selection(self.data, indices), LRUCache(self._cache.limit)
        other.batches = Batches(other.data, None, self.batch_size, self.model.device, self.processes)
        return other

    def remember(self, key: Hashable, compute: Callable[[], Key]) -> Key:
        """What ``compute`` gave when ``key`` was first asked for, cached like traces."""
        return self._cache.get(key, compute)

    @torch.no_grad()
    def sample(self, batch: Batch, at: str, *, seed: int = 0, **options: Any) -> Tensor:
        """Draws of one of :attr:`batches` by every seed, cached: ``S draws B 3 H W`` in [0, 1].

        The options are those of :meth:`backsight.chain.InverseChain.sample`. Every batch has noise of its own.
        """
        key = ("draws", batch.ids, at, seed, repr(sorted(options.items())))
        own = int.from_bytes(hashlib.sha256(f"{seed} {batch.ids[0]}".encode()).digest()[:6])
        return self._cache.get(key, lambda: self.ensemble.sample(self.trace(batch), at, seed=own, **options))

    @torch.no_grad()
    def invert(self, source: Trace | Tensor, at: str, to: str = IMAGE, **options: Any) -> Tensor:
        """The same for any trace or features (``B N D``) of the model, not cached."""
        found = self.ensemble.reconstruct(source, at, to, **options).float()
        return found.clamp(0, 1) if to == IMAGE else found

    @cached_property
    def training_range(self) -> TrainingRange | None:
        """How the training data of the chains is distributed; None where nothing kept that."""
        return None if self.control else TrainingRange.beside(self.ensemble)

    @torch.no_grad()
    def distances(self, batch: Batch) -> Distances | None:
        """How far the images of one of :attr:`batches` lie from the training data; None where that is not known."""
        if self.training_range is None:
            return None
        features = self.trace(batch).features
        reconstruct = lambda at, to: self.reconstruct(batch, at, to)  # noqa: E731
        return self.training_range.distances(measure_images(self.ensemble, batch, features, reconstruct))

    def gather(self, measure: Callable[[Batch], Mapping[Key, Tensor]]) -> dict[Key, Tensor]:
        """``measure`` of every batch, many quantities at once (``S B`` or, without seeds, ``B``), joined over images.

        All quantities of a batch are measured while its features are in the cache.

        Returns:
            ``S images`` each (``S`` = 1 without seeds), float64 on the CPU.
        """

        def own() -> list[dict[Key, Tensor]]:
            found = []
            for batch in self.own_batches():
                values = {key: each.detach().cpu().double() for key, each in measure(batch).items()}
                found.append({key: each[None] if each.ndim == 1 else each for key, each in values.items()})
            return found

        parts: dict[Key, list[Tensor]] = {}
        for step in zip_longest(*self.processes.gathered(own)):  # in the order of the batches
            for found in step:
                for key, values in (found or {}).items():
                    parts.setdefault(key, []).append(values)
        return {key: torch.cat(values, 1) for key, values in parts.items()}

    def own_batches(self) -> Iterator[Batch]:
        """Those of the :attr:`batches` that this process measures: every second of two."""
        places = range(self.processes.rank, len(self.batches), self.processes.count)
        if isinstance(self.batches, Batches):
            return self.batches.at(places)
        return (self.batches[place] for place in places)

    def collect(self, measure: Callable[[Batch], Tensor]) -> Tensor:
        """:meth:`gather` of a single quantity, ``S images``."""
        return self.gather(lambda batch: {"": measure(batch)})[""]

    def result(
        self,
        experiment: str,
        measurements: Iterable[Measurement],
        pictures: Iterable[Picture] = (),
        settings: Mapping[str, Any] | None = None,
        notes: Sequence[str] = (),
    ) -> Result:
        """What ``experiment`` found of this subject, with its card and the ids of its images; measurements and pictures
        get the label ``model``."""
        own = {"model": self.name}
        measured = [replace(each, labels={**own, **each.labels}) for each in measurements]
        seen = [replace(each, labels={**own, **each.labels}) for each in pictures]
        notes = [*notes, *trust_notes(self)]
        return Result(experiment, [self.card()], measured, seen, settings or {}, notes, images={self.name: self.ids})

    def require(self, *needs: str) -> None:
        """Refuse data that lacks what an experiment needs: ``masks``, ``boxes``, ``labels`` (of whole images).

        Raises:
            UserError: it does, in one line that says which data would do.
        """
        for need in needs:
            if not any(need in summary.has for summary in self.summaries):
                raise UserError(f"{self.data.name} has no {_NEEDS[need]}")


_NEEDS = {
    "masks": "instance masks: take coco:DIR or world",
    "boxes": "boxes of objects: take coco:DIR or world",
    "labels": "class of the whole image: take folder:DIR with a folder for each class, or world:prior:single",
}


def _has(need: str, target: Any) -> bool:
    if need == "labels":
        return target.label is not None
    return len(target.boxes) > 0 and (need == "boxes" or target.masks is not None)


def as_ensemble(chain: InverseChain | ChainEnsemble | str | Path) -> ChainEnsemble:
    """One chain, or what chains are loaded from, as an ensemble."""
    if isinstance(chain, str | Path):
        return ChainEnsemble.from_pretrained(chain)
    return ChainEnsemble([chain]) if isinstance(chain, InverseChain) else chain


# ---- images


@dataclass(frozen=True)
class Summary:
    """What is known of a batch once it was read: its number among all, its ids, whether an image of it is padded, and
    what its targets ``has``."""

    place: int
    ids: tuple[str, ...]
    padded: bool
    has: frozenset[str]


class Batches(Sequence[Batch]):
    """The first ``num_images`` of ``data`` in batches on ``device``, read again when asked for again; the first
    one, and the latest :data:`KEPT_BYTES`, are kept. Batches without an image that can be read are left out.

    Raises:
        UserError: there is no image that can be read.
    """

    data: OneByOne
    batch_size: int
    device: torch.device
    total: int
    summaries: list[Summary]

    def __init__(
        self, data: ImageData, num_images: int | None, batch_size: int, device: torch.device, processes: Processes
    ) -> None:
        self.data, self.batch_size, self.device = OneByOne(data), batch_size, device
        self.total = min(num_images or len(data), len(data))
        self._first: dict[int, Batch] = {}
        self._kept = LRUCache(KEPT_BYTES)
        own = range(processes.rank, -(-self.total // batch_size), processes.count)

        def read() -> list[Summary]:
            pairs = zip(own, self._read(own), strict=True)
            return [_summarise(place, batch) for place, batch in pairs if batch.ids]

        found = [each for part in processes.gathered(read) for each in part]
        self.summaries = sorted(found, key=lambda summary: summary.place)
        if not self.summaries:
            raise UserError(f"{data.name} has no image that can be read: give other data")
        self._first = {self.summaries[0].place: self[0]}

    def __len__(self) -> int:
        return len(self.summaries)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return list(self.at(range(*index.indices(len(self)))))
        return next(self.at([index]))

    def __iter__(self) -> Iterator[Batch]:
        return self.at(range(len(self)))

    def at(self, indices: Iterable[int]) -> Iterator[Batch]:
        """Some of them; the next ones are read ahead."""
        return self._read([self.summaries[index].place for index in indices])

    def _read(self, places: Sequence[int]) -> Iterator[Batch]:
        kept = {**self._kept.of(places), **self._first}
        missing = [place for place in places if place not in kept]
        starts = [self.batch_size * place for place in missing]
        chunks = [range(start, min(start + self.batch_size, self.total)) for start in starts]
        workers = WORKERS if len(missing) > 2 and not isinstance(self.data.data, MadeInBatches) else 0
        found = read_chunks(self.data, chunks, workers=workers, device=self.device)
        for place in places:
            yield kept[place] if place in kept else self._kept.put(place, next(found))


class OneByOne:
    """The same data, asked for one sample at a time: as uint8, also where it would make whole batches."""

    def __init__(self, data: ImageData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data[index]

    def __getattr__(self, name: str) -> Any:
        if name in ("data", "batch"):
            raise AttributeError(name)
        return getattr(self.data, name)


def _summarise(place: int, batch: Batch) -> Summary:
    has = frozenset(need for need in _NEEDS if any(_has(need, target) for target in batch.targets))
    return Summary(place, batch.ids, batch.valid is not None, has)


def baseline_notes(subject: Subject) -> list[str]:
    """What a reader of errors in units of the mean image's must know: where it is not that of the training data."""
    if subject.baseline.counts is None:
        return []
    what = "stands in for it, its error corrected for this" if subject.num_images > 1 else "would be it: no answer"
    return [
        f"{subject.name}: the mean image of the training data is not known, "
        f"so that of the {subject.num_images} images {what}"
    ]


def trust_notes(subject: Subject) -> list[str]:
    """What a reader must know of the inverses: which of them say little, and whether the images, by the first of them,
    are unlike those that they were trained on."""
    if subject.control:
        return []
    weak = weak_in_words(weak_inverses(subject.ensemble))
    batch = subject.batches[0]
    distances = subject.distances(batch)
    if distances is None or distances.unlike.double().mean() <= MOST_UNLIKE:
        return weak
    return [unlike_in_words(batch.ids, distances, trained_on(subject.ensemble)), *weak]


def by_seed(metric: Callable[[Tensor, Tensor], Tensor], reconstructions: Tensor, images: Tensor) -> Tensor:
    """``metric`` of ``S B 3 H W`` against ``B 3 H W``, ``S B``."""
    return torch.stack([metric(each, images) for each in reconstructions])


# ---- from what a user names


def open_subject(
    model: str | None = None,
    chain: str | Path | None = None,
    data: str | None = None,
    *,
    num_images: int | None = NUM_IMAGES,
    batch_size: int = 16,
    device: str = "auto",
    stretch: bool = False,
    processes: Processes | None = None,
) -> Subject:
    """A forward model, the chains that invert it, and the first test images of some data.

    Args:
        model: the forward model's name; by default the one that the chains were trained on.
        chain: a run, one chain, ``zoo/NAME``, or a name on the hub; those that ship with ``model`` by default;
            ``linear`` for ridge regressions on the training images of ``data``, in seconds.
        data: as :func:`~backsight.data.open_data` takes it; that of the chains' training by default. Masks are drawn.
        num_images: how many of its test images; None for all.
        batch_size: images that pass the networks together.
        device: where to compute.
        stretch: bring images to the model's size by stretching, where it would cut them: so several models see the
            same of each. Padded ones stay padded.
        processes: those that share the work.

    Raises:
        UserError: no chains, chains of another model, or no data is named and the chains do not say theirs.
    """
    if chain == LINEAR:
        staged, ensemble = _solved(model, data, device)
    else:
        ensemble = ChainEnsemble.from_pretrained(chain or _shipped_chains(model))
        staged = open_forward_model(ensemble, choose_device(device), model)
    spec = data or trained_on(ensemble)
    if spec is None:
        raise UserError(f"the chains of {staged.name} do not say what they were trained on: name the data by --data")
    pixels = replace(staged.pixels, fit="stretch") if stretch and staged.pixels.fit == "crop" else staged.pixels
    images = open_data(spec, pixels, masks=True, vocabulary=vocabulary(staged)).test
    given = {"num_images": num_images, "batch_size": batch_size, "processes": processes, "fit": pixels.fit}
    return Subject(staged, ensemble, images, **given)


def _shipped_chains(model: str | None) -> str:
    if model is None:
        raise UserError("neither a model nor a chain is named: name zoo/detr-prior, or a run by --chain RUN")
    folder = find_shipped(model)
    if folder is None or not has_chains(folder):
        raise UserError(
            f"{model} comes without chains: name a run by --chain RUN (`backsight train {model}` makes one), or "
            f"--chain {LINEAR} for linear inverses in closed form"
        )
    return model


def _solved(model: str | None, data: str | None, device: str) -> tuple[StagedModel, ChainEnsemble]:
    """A model and the linear inverses that the training images of ``data`` give."""
    if model is None or data is None:
        raise UserError(f"--chain {LINEAR}: name the model, and by --data the images that its inverses are solved for")
    staged = load_model(model, device=choose_device(device))
    return staged, ChainEnsemble([linear_chain(staged, open_data(data, staged.pixels).train)])


def has_chains(folder: Path) -> bool:
    """Whether there are chains in the folder of a shipped model."""
    return any(folder.glob("chains/*/chain.json"))


@dataclass(frozen=True)
class _Data(Record):
    spec: str | None = None


@dataclass(frozen=True)
class _Trained(Record):
    """What the ``config.yaml`` of a run, or the ``card.json`` of a shipped model, says of the data."""

    data: str | _Data | None = None


def trained_on(ensemble: ChainEnsemble) -> str | None:
    """The data that the chains were trained on; None where the folder that they were loaded from does not say."""
    for folder in ensemble.run_folders:
        for name in ("config.yaml", "card.json"):
            if (folder / name).is_file():
                data = read_record(folder / name, _Trained, _FIX).data
                if found := data.spec if isinstance(data, _Data) else data:
                    return found
                break
    return None


def training_mean(ensemble: ChainEnsemble) -> Tensor | None:
    """The mean image, ``3 H W``, of what the chains were trained on; None where it was not saved."""
    return next((image for image in map(mean_image_of, ensemble.run_folders) if image is not None), None)


# ---- the layers of a model, each representation once


def stage_of(name: str) -> str:
    """The stage that a stage's or layer's name belongs to.

    >>> stage_of("encoder.3")
    'encoder'
    """
    return name.partition(".")[0]


def distinct_names(subject: Subject) -> list[str]:
    """Every stage and layer, in the order of the forward pass; the stage stands for a last layer that is the same."""
    trace = subject.trace(subject.batches[0])

    def repeats_its_stage(name: str) -> bool:
        stage = stage_of(name)
        both = name != stage and name in trace.features and stage in trace.features
        return both and torch.equal(trace[name], trace[stage])

    return [name for name in subject.model.names if not repeats_its_stage(name)]


def layers_of(subject: Subject, stage: str) -> list[str]:
    """The stage before, the layers of ``stage``, and the stage itself."""
    before = [name for name in [subject.model.spec.before(stage)] if name != IMAGE]
    return [*before, *(name for name in distinct_names(subject) if stage_of(name) == stage)]


def is_read_as(subject: Subject, name: str, stage: str) -> bool:
    """Whether the inverse of ``stage`` takes the features of a stage or layer: their layouts are the same."""
    model = subject.model
    return stage in subject.stages and (name == stage or model.layout(name) == model.layout(stage))


# ---- the cache


class LRUCache:
    """What was computed; once it exceeds ``limit`` bytes, the least recently used is forgotten first."""

    limit: int
    size: int

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self.values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def get(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """The value under ``key``; computed now if there is none."""
        found = self.of([key])
        return found[key] if found else self.put(key, compute())

    def of(self, keys: Iterable[Hashable]) -> dict[Any, Any]:
        """Those that are there."""
        there = [key for key in keys if key in self.values]
        for key in there:
            self.values.move_to_end(key)
        return {key: self.values[key][0] for key in there}

    def put(self, key: Hashable, value: Any) -> Any:
        """Keep ``value`` under ``key``, and return it."""
        size = sum(storage.nbytes() for storage in _storages(value))
        self.size += size - self.values.pop(key, (None, 0))[1]
        self.values[key] = value, size
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
