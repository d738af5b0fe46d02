"""Data without a length: shards that are read from the front, over and over."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch.utils.data import IterableDataset, get_worker_info

from backsight.core import UserError
from backsight.data.base import Batch, ImageData, Sample, Splits
from backsight.data.labels import Labelling
from backsight.data.loader import Position, WorkerBatch, WorkerBatches, cores, in_one_line, read_ahead
from backsight.data.source import Reading, Source, digest

logger: logging.Logger = logging.getLogger(__name__)

SHARE = 20
"""One picture of so many is for validation, and one for the test; which ones, a hash of their ids decides."""

HELD_OUT = 256
"""Of each, at the most: they are sought from the front, and kept in memory as they came."""

SOUGHT = 3 * SHARE * HELD_OUT
"""Pictures looked through for them, at the most."""

BUFFER = 1000
"""Encoded pictures that are shuffled together, block after block: a stream cannot be shuffled as a whole."""


class Pictures(Source):
    """Pictures that are in memory as they came."""

    def __init__(
        self, name: str, pictures: Sequence[Encoded], classes: Mapping[int, str] | Labelling, reading: Reading
    ) -> None:
        super().__init__(name, [each.id for each in pictures], classes, reading, [each.label for each in pictures])
        self.pictures: Sequence[Encoded] = pictures

    def picture(self, index: int) -> bytes:
        """The content of its file."""
        return self.pictures[index].content

    def facts(self) -> Iterable[str]:
        """Every id with the digest of its content."""
        return [f"{each.id} {hashlib.sha256(each.content).hexdigest()} {each.label}" for each in self.pictures]


class Stream:
    """Training data without a length: every pass reads the shards in another order, and shuffles block after block.

    Several readers (workers of processes) share the shards; where there are fewer of those, they share the pictures
    of each. The same seed and number of readers give the same pictures in the same order, pass after pass.

    Attributes:
        positions: those of the readers of this process after their last batches, by (reader, readers). Whoever wants
            to go on from there without reading all that came before sets them.
    """

    def __init__(self, name: str, shards: Shards, reading: Reading) -> None:
        self.name: str = name
        self.shards: Shards = shards
        self.reading: Reading = reading
        self.labelling: Labelling = Labelling.of(shards.classes, reading.vocabulary)
        self.classes: Mapping[int, str] = self.labelling.classes
        self.unreadable: dict[str, str] = {}
        self.positions: dict[tuple[int, int], Position] = {}

    def __len__(self) -> int:
        raise TypeError(f"{self.name} is a stream: nobody knows how long it is")

    def __getitem__(self, index: int) -> Sample | None:
        raise TypeError(f"{self.name} is a stream: it has no picture {index}")

    def fingerprint(self) -> str:
        """SHA-256 of what tells the shards from others."""
        return digest(self.shards.facts())

    def pictures(self, since: Position) -> Iterator[tuple[Position, Encoded]]:
        """What is for training of one reader's share, without end, each with the position from which it can be read
        again; the first is the first of ``since``, which has to be one of those.

        Raises:
            UserError: a whole pass has given none.
        """
        while True:
            found, given = self._pass(since), since.given
            block = list(islice(found, BUFFER))
            if not block:
                raise UserError(f"{self.name} has no picture to train on, or fewer than processes and workers")
            while block:
                (place, row), _ = block[0]
                start = since._replace(given=given, place=place, row=row)
                random.Random(f"{self.reading.seed}:{start[:3]}").shuffle(block)
                following = []
                for _, each in block:
                    following.extend(islice(found, 1))  # one by one, so that nobody waits for a whole block
                    yield start, each
                given += len(block)
                block = following
            since = Position(since.reader, since.readers, given, since.turn + 1)

    def _pass(self, since: Position) -> Iterator[tuple[tuple[int, int], Encoded]]:
        order = list(range(len(self.shards)))
        random.Random(f"{self.reading.seed}:{since.turn}").shuffle(order)
        shared = len(order) < since.readers
        own = order if shared else order[since.reader :: since.readers]
        for place in range(since.place, len(own)):
            first = since.row if place == since.place else 0
            for row, each in enumerate(self.shards.read(own[place], first), first):
                mine = not shared or row % since.readers == since.reader
                if mine and part_of(each.id, self.reading.seed) == "train":
                    yield (place, row), each

    def batches(
        self, size: int, start: int = 0, *, rank: int = 0, ranks: int = 1, workers: int = 0, device: Any = "cpu"
    ) -> Iterator[Batch]:
        """The batches of ``size`` pictures of process ``rank`` of ``ranks``, from number ``start`` on, without end.

        What comes before ``start`` is read and not decoded: from the last of :attr:`positions` on, or from the front
        where these are of another number of readers. Pictures that cannot be read are left out, as everywhere.
        """
        workers = min(workers, cores())
        reader = _Reader(self, size, start, rank, ranks, max(1, workers))
        if start:
            again = sum(before * size - since.given for before, since in map(reader.since, range(reader.workers)))
            logger.info("%s goes on at batch %d: %d pictures before it are read again", self.name, start, again)
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

    def since(self, worker: int) -> tuple[int, Position]:
        """How many batches of its reader come before those of ``worker``, and the last known position before these."""
        before, place = divmod(self.start + worker, self.workers)
        new = Position(self.rank * self.workers + place, self.ranks * self.workers)
        known = self.stream.positions.get(new[:2], new)
        return before, known if known.given <= before * self.size else new

    def __iter__(self) -> Iterator[WorkerBatch | UserError]:
        worker, stream = get_worker_info(), self.stream
        before, since = self.since(worker.id if worker else 0)
        pictures = stream.pictures(since)
        try:
            for _ in range(before * self.size - since.given):
                next(pictures)
            while True:
                found = list(islice(pictures, self.size))
                data = Pictures(stream.name, [each for _, each in found], stream.labelling, stream.reading)
                data.unreadable = stream.unreadable
                batch = WorkerBatches(data)[range(len(data))]
                if found and isinstance(batch, WorkerBatch):
                    batch = batch._replace(position=found[-1][0])
                yield batch
        except UserError as error:
            yield error
        except OSError as error:  # also a connection that was lost
            yield in_one_line(error)


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

    def read(self, index: int, start: int = 0) -> Iterator[Encoded]:
        """The pictures of one of them, in their order, from number ``start`` on."""
        ...

    def facts(self) -> Sequence[str]:
        """What tells them from others."""
        ...
