"""Data without a length: shards that are read from the front, over and over."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, Protocol

import torch
from torch.utils.data import IterableDataset, get_worker_info

from backsight.core import UserError
from backsight.data.base import Batch, ImageData, Sample, Splits
from backsight.data.labels import Labelling
from backsight.data.loader import WorkerBatch, WorkerBatches, cores, in_one_line, read_ahead
from backsight.data.source import Reading, Source, digest

logger: logging.Logger = logging.getLogger(__name__)

SHARE = 20
"""One picture of so many is for validation, and one for the test; which ones, a hash of their ids decides."""

HELD_OUT = 256
"""Of each, at the most: they are sought from the front, and kept in memory as they came."""

SOUGHT = 3 * SHARE * HELD_OUT
"""Pictures looked through for them, at the most."""

BUFFER = 1000
"""Encoded pictures from which the next one is drawn: a stream cannot be shuffled as a whole."""


class Pictures(Source):
    """Pictures that are in memory as they came."""

    def __init__(
        self, name: str, pictures: list[Encoded], classes: Mapping[int, str] | Labelling, reading: Reading
    ) -> None:
        super().__init__(name, [each.id for each in pictures], classes, reading, [each.label for each in pictures])
        self.pictures = pictures

    def picture(self, index: int) -> bytes:
        """The content of its file."""
        return self.pictures[index].content

    def facts(self) -> Iterable[str]:
        """Every id with the digest of its content."""
        return [f"{each.id} {hashlib.sha256(each.content).hexdigest()} {each.label}" for each in self.pictures]


class Stream:
    """Training data without a length: every pass reads the shards in another order, and draws from a buffer.

    Several readers (workers of processes) share the shards; where there are fewer of those, they share the pictures
    of all. The same seed and number of readers give the same pictures in the same order, pass after pass.
    """

    def __init__(self, name: str, shards: Shards, reading: Reading) -> None:
        self.name: str = name
        self.shards: Shards = shards
        self.reading: Reading = reading
        self.labelling: Labelling = Labelling.of(shards.classes, reading.vocabulary)
        self.classes: Mapping[int, str] = self.labelling.classes
        self.unreadable: dict[str, str] = {}

    def __len__(self) -> int:
        raise TypeError(f"{self.name} is a stream: nobody knows how long it is")

    def __getitem__(self, index: int) -> Sample | None:
        raise TypeError(f"{self.name} is a stream: it has no picture {index}")

    def fingerprint(self) -> str:
        """SHA-256 of what tells the shards from others."""
        return digest(self.shards.facts())

    def pictures(self, reader: int, readers: int) -> Iterator[Encoded]:
        """What is for training of one reader's share, without end.

        Raises:
            UserError: a whole pass has given none.
        """
        for turn in count():
            draw = random.Random(f"{self.reading.seed}:{turn}:{reader}:{readers}")
            pictures = _shuffled(self._pass(turn, reader, readers), draw)
            first = next(pictures, None)
            if first is None:
                raise UserError(f"{self.name} has no picture to train on, or fewer than processes and workers")
            yield first
            yield from pictures

    def _pass(self, turn: int, reader: int, readers: int) -> Iterator[Encoded]:
        order = list(range(len(self.shards)))
        random.Random(f"{self.reading.seed}:{turn}").shuffle(order)
        if len(order) >= readers:
            found = (each for shard in order[reader::readers] for each in self.shards.read(shard))
        else:
            found = islice((each for shard in order for each in self.shards.read(shard)), reader, None, readers)
        return (each for each in found if part_of(each.id, self.reading.seed) == "train")

    def batches(
        self, size: int, start: int = 0, *, rank: int = 0, ranks: int = 1, workers: int = 0, device: Any = "cpu"
    ) -> Iterator[Batch]:
        """The batches of ``size`` pictures of process ``rank`` of ``ranks``, from number ``start`` on, without end.

        What comes before ``start`` is read and not decoded. Pictures that cannot be read are left out, as everywhere.
        """
        workers = min(workers, cores())
        reader = _Reader(self, size, start, rank, ranks, max(1, workers))
        yield from read_ahead(reader, self, workers=workers, device=torch.device(device))

    def record(self, identity: str, reason: str) -> None:
        """Remember that a picture cannot be read, and say so once."""
        if identity not in self.unreadable:
            self.unreadable[identity] = reason
            logger.warning("%s; skipped", reason)

    @property
    def ids(self) -> list[str]:
        """Those of the pictures that could not be read: of all others nobody keeps account."""
        return list(self.unreadable)


class _Reader(IterableDataset):
    """Whole batches. Number ``b`` is read by reader ``b % workers`` of its process, whichever worker asks first."""

    def __init__(self, stream: Stream, size: int, start: int, rank: int, ranks: int, workers: int) -> None:
        self.stream, self.size, self.start = stream, size, start
        self.rank, self.ranks, self.workers = rank, ranks, workers

    def __iter__(self) -> Iterator[WorkerBatch | UserError]:
        worker = get_worker_info()
        first = self.start + (worker.id if worker else 0)
        place, before = first % self.workers, first // self.workers
        stream, readers = self.stream, self.ranks * self.workers
        pictures = stream.pictures(self.rank * self.workers + place, readers)
        try:
            for _ in range(before * self.size):
                next(pictures)
            while True:
                data = Pictures(stream.name, list(islice(pictures, self.size)), stream.labelling, stream.reading)
                data.unreadable = stream.unreadable
                yield WorkerBatches(data)[range(len(data))]
        except UserError as error:
            yield error
        except OSError as error:  # also a connection that was lost
            yield in_one_line(error)


def _shuffled(pictures: Iterator[Encoded], draw: random.Random) -> Iterator[Encoded]:
    """Each once: the next is drawn from the :data:`BUFFER` that are waiting."""
    waiting = list(islice(pictures, BUFFER))
    for each in pictures:
        place = draw.randrange(BUFFER)
        waiting[place], drawn = each, waiting[place]
        yield drawn
    draw.shuffle(waiting)
    yield from waiting


def part_of(identity: str, seed: int) -> str:
    """Whether a picture is for train, validation or test: its id alone decides."""
    number = int.from_bytes(hashlib.sha256(f"{seed}:{identity}".encode()).digest()[:8], "big") % SHARE
    return {0: "validation", 1: "test"}.get(number, "train")


def hold_out(spec: str, shards: Shards, reading: Reading) -> Splits:
    """A stream of ``shards`` to train on, and the first pictures of each kind held out from it.

    Raises:
        UserError: there is not a picture for each part among the first.
    """
    held: dict[str, list[Encoded]] = {"validation": [], "test": []}
    every = (each for shard in range(len(shards)) for each in shards.read(shard))
    for each in islice(every, SOUGHT):
        own = held.get(part_of(each.id, reading.seed))
        if own is not None and len(own) < HELD_OUT:
            own.append(each)
        if all(len(found) == HELD_OUT for found in held.values()):
            break
    parts: dict[str, ImageData] = {
        part: Pictures(f"{spec} ({part})", found, shards.classes, reading) for part, found in held.items()
    }
    if not all(map(len, parts.values())):
        raise UserError(f"{spec} has too few pictures: none of the first {SOUGHT} is for validation, or for the test")
    return Splits(Stream(spec, shards, reading), parts["validation"], parts["test"])


# ---- where a stream comes from


@dataclass(frozen=True)
class Encoded:
    """A picture as it came: its ``id``, the content of its file, and its class if that is known."""

    id: str
    content: bytes
    label: int | None = None


class Shards(Protocol):
    """A number of files that are read from their beginning to their end."""

    @property
    def classes(self) -> Mapping[int, str]:
        """The names of the classes, where they have some."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Iterator[Encoded]:
        """The pictures of one of them, in their order."""
        ...

    def facts(self) -> Sequence[str]:
        """What tells them from others."""
        ...
