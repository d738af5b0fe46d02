"""The forward model's features, kept on disk, so that later epochs need no forward pass.

Shards of some hundred MiB in bfloat16, mapped into memory when they are read; each has its SHA-256 in an index, and one
that does not have it any more is dropped and computed again. What the networks get is rounded to bfloat16 in every
epoch, also where it was just computed: a run is the same whatever the folder held when it began.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from backsight.core import IMAGE
from backsight.data import Batch
from backsight.files import write_bytes, write_json
from backsight.staging import StagedModel

logger = logging.getLogger(__name__)

SHARD = 128 * 2**20
"""Bytes of a shard, about."""


class FeatureCache:
    """Features by image, in a folder that several runs may share.

    Args:
        model: the forward model.
        folder: one of many; those of a model, its pixels, some data and some stages have a folder of their own in it.
        names: the stages whose features are kept.
        data: the fingerprint of the images.
        limit: the most bytes that are written.
        rank: of this process; each writes files of its own, and reads those of all.
    """

    def __init__(
        self, model: StagedModel, folder: Path, names: Sequence[str], data: str, limit: float, rank: int = 0
    ) -> None:
        self.model, self.names, self.limit, self.rank = model, [name for name in names if name != IMAGE], limit, rank
        facts = {"model": model.digest(), "pixels": asdict(model.pixels), "data": data, "stages": sorted(self.names)}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        self.folder, self.facts = folder / digest[:16], facts
        self.bytes = 0
        self._batch: Batch | None = None
        self._places: dict[str, tuple[Path, int]] = {}
        self._open: dict[Path, Any] = {}
        self._waiting: dict[str, dict[str, Tensor]] = {}
        self._seen: set[Path] = set()
        self._own: list[dict[str, Any]] = []
        self.refresh()

    def __len__(self) -> int:
        """How many images are kept."""
        return len(self._places) + len(self._waiting)

    def over(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same ``batches``, whose features are kept: those of any other images are computed as usual."""
        self.refresh()
        try:
            for batch in batches:
                self._batch = batch
                yield batch
        finally:
            self._batch = None
            self.close()

    def features(self, images: Tensor, names: Sequence[str], valid: Tensor | None = None) -> dict[str, Tensor]:
        """:meth:`~backsight.staging.StagedModel.features`, rounded to bfloat16, from the folder where it has them."""
        ids = self._ids(images)
        if ids is None:
            return self.model.features(images, names, valid)
        missing = [place for place, identity in enumerate(ids) if identity not in self]
        known = [place for place in range(len(ids)) if place not in set(missing)]
        parts: list[tuple[list[int], dict[str, Tensor]]] = []
        if missing:
            parts.append((missing, self._compute(images, valid, missing, ids)))
        if known:
            parts.append((known, self._read([ids[place] for place in known], images.device)))
        joined = {name: torch.cat([found[name] for _, found in parts]).float() for name in self.names}
        if len(parts) > 1:  # the usual batch is known, or not, as a whole
            order = torch.tensor(missing + known).argsort().to(images.device)
            joined = {name: each[order] for name, each in joined.items()}
        return {name: images if name == IMAGE else joined[name] for name in names}

    def close(self) -> None:
        """Write what waits for its shard to be full."""
        if self._waiting:
            self._write()
        self._open.clear()

    def __contains__(self, identity: str) -> bool:
        return identity in self._waiting or identity in self._places

    # ---- images

    def _ids(self, images: Tensor) -> tuple[str, ...] | None:
        """The ids of ``images`` if they are those of the batch that was announced, or some of them in a row."""
        if self._batch is None or not self._batch.ids or not len(images):
            return None
        whole = self._batch.images
        if images.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
            return None
        first = (images.storage_offset() - whole.storage_offset()) // whole.stride(0)
        return self._batch.ids[first : first + len(images)]

    def _compute(
        self, images: Tensor, valid: Tensor | None, places: list[int], ids: Sequence[str]
    ) -> dict[str, Tensor]:
        some = valid if valid is None else valid[places]
        every = len(places) == len(images)
        found = self.model.features(images if every else images[places], self.names, some)
        rounded = {name: found[name].detach().bfloat16() for name in self.names}
        size = sum(each[0].nbytes for each in rounded.values())
        on_host = {name: each.cpu() for name, each in rounded.items()}
        for row, place in enumerate(places):
            if self.bytes + (len(self._waiting) + 1) * size <= self.limit:
                self._waiting[ids[place]] = {name: each[row] for name, each in on_host.items()}
        if len(self._waiting) * size >= SHARD:
            self._write()
        return rounded

    def _read(self, ids: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        rows = [self._waiting.get(identity) or self._row(*self._places[identity]) for identity in ids]
        stacked = {name: torch.stack([row[name] for row in rows]) for name in self.names}
        pinned = {name: each.pin_memory() if device.type == "cuda" else each for name, each in stacked.items()}
        return {name: each.to(device, non_blocking=True) for name, each in pinned.items()}

    # ---- files

    def _row(self, path: Path, row: int) -> dict[str, Tensor]:
        if path not in self._open:
            self._open[path] = safe_open(path, "pt")
        return {name: self._open[path].get_slice(name)[row] for name in self.names}

    def _write(self) -> None:
        ids, rows = list(self._waiting), list(self._waiting.values())
        content = save({name: torch.stack([row[name] for row in rows]) for name in self.names})
        digest = hashlib.sha256(content).hexdigest()
        path = write_bytes(self.folder / f"{self.rank:03d}-{digest[:12]}.safetensors", content)
        self._waiting.clear()
        self._own.append({"file": path.name, "sha256": digest, "ids": ids})
        write_json(self.folder / f"index-{self.rank:03d}.json", {"facts": self.facts, "shards": self._own})
        self._seen.add(path)
        self._take(path, ids)

    def _take(self, path: Path, ids: Sequence[str]) -> None:
        self.bytes += path.stat().st_size
        self._places |= {identity: (path, row) for row, identity in enumerate(ids)}

    def refresh(self) -> None:
        """Take what earlier runs have left, and other processes by now; what is damaged is dropped."""
        for index in sorted(self.folder.glob("index-*.json")):
            for shard in _shards_of(index):
                path = self.folder / shard["file"]
                if path in self._seen:
                    continue
                self._seen.add(path)
                if not _is_whole(path, shard["sha256"]):
                    logger.warning("%s is damaged: its features are computed again", path)
                    continue
                self._take(path, shard["ids"])
                if index.name == f"index-{self.rank:03d}.json":
                    self._own.append(shard)


def _shards_of(index: Path) -> list[dict[str, Any]]:
    try:
        return json.loads(index.read_text(encoding="utf-8"))["shards"]
    except (ValueError, KeyError, TypeError):
        logger.warning("%s is no index: its features are computed again", index)
        return []


def _is_whole(path: Path, expected: str) -> bool:
    """Whether the file is there, has its digest and can be opened."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != expected:
            return False
    try:
        with safe_open(path, "pt"):
            return True
    except SafetensorError:
        return False
