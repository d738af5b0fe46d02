"""The forward model's features, cached on disk, so that later epochs need no forward pass.

Shards of some hundred MiB in bfloat16, mapped into memory when they are read. Each lies beside an index of its own, so
that several runs may write at once. The index has the shard's SHA-256; one that does not have it any more is dropped
and computed again. What the networks get is rounded to bfloat16 in every epoch, also where it was just computed: a run
is the same whatever the folder held when it began.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from backsight.core import IMAGE
from backsight.data import Batch
from backsight.engine import StagedModel
from backsight.io import digest, write_bytes, write_json
from backsight.options import TrainOptions
from backsight.tasks import Modular, Task

logger: logging.Logger = logging.getLogger(__name__)

SHARD = 128 * 2**20
"""Bytes of a shard, about."""


class FeatureCache:
    """Features by image, in a folder that several runs may share.

    Args:
        model: the forward model.
        folder: one of many; those of a model, its pixels, some data and some stages have a folder of their own in it.
        names: the stages whose features are cached.
        data: the fingerprint of the images.
        limit: the most bytes in the folder.
        precision: that the model computes in.
        processes: how many share a run. Each writes files of its own, up to an equal part of what room there is when
            the run begins, and reads those of all.
    """

    def __init__(
        self,
        model: StagedModel,
        folder: Path,
        names: Sequence[str],
        data: str,
        limit: float,
        *,
        precision: str = "fp32",
        processes: int = 1,
    ) -> None:
        self.model: StagedModel = model
        self.names: list[str] = [name for name in names if name != IMAGE]
        self.limit: float = limit
        facts = {"model": model.digest(), "pixels": asdict(model.pixels), "data": data, "stages": sorted(self.names)}
        self.facts: dict[str, Any] = {**facts, "precision": precision}
        own = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:16]
        self.folder: Path = folder / own
        self.writer: str = secrets.token_hex(4)
        self._batch: Batch | None = None
        self._places: dict[str, tuple[Path, int]] = {}
        self._open: dict[Path, Any] = {}
        self._waiting: dict[str, dict[str, Tensor]] = {}
        self._seen: set[Path] = set()
        self.refresh()
        self.room: float = (limit - self.bytes) / processes

    def __len__(self) -> int:
        """How many images are cached."""
        return len(self._places) + len(self._waiting)

    def over(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same ``batches``, whose features are cached: those of any other images are computed as usual."""
        self.refresh()
        try:
            for batch in batches:
                self._batch = batch
                yield batch
        finally:
            self._batch = None
            self.close()

    def features(self, images: Tensor, names: Sequence[str], valid: Tensor | None = None) -> dict[str, Tensor]:
        """:meth:`~backsight.engine.StagedModel.features`, rounded to bfloat16, from the folder where it has them."""
        ids = self._ids(images)
        if ids is None:
            return self.model.features(images, names, valid)
        missing = [place for place, identity in enumerate(ids) if identity not in self]
        known = [place for place in range(len(ids)) if place not in set(missing)]
        parts: list[tuple[list[int], dict[str, Tensor]]] = []
        if known:
            parts.append((known, self._read([ids[place] for place in known], images.device)))
        if missing:
            parts.append((missing, self._compute(images, valid, missing, ids)))
        joined = {name: torch.cat([found[name] for _, found in parts]).float() for name in self.names}
        if len(parts) > 1:  # the usual batch is known, or not, as a whole
            order = torch.tensor(known + missing).argsort().to(images.device)
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
            if (len(self._waiting) + 1) * size <= min(self.room, self.limit - self.bytes):
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
            self._open[path] = safe_open(path, "pt")  # mapped, wherever its rows lie: batches are copies of them
        return {name: self._open[path].get_slice(name)[row] for name in self.names}

    def _write(self) -> None:
        ids, rows = list(self._waiting), list(self._waiting.values())
        content = save({name: torch.stack([row[name] for row in rows]) for name in self.names})
        sha256 = hashlib.sha256(content).hexdigest()
        path = self.folder / f"{self.writer}-{sha256[:12]}.safetensors"
        try:
            write_bytes(path, content)
            index = {"facts": self.facts, "sha256": sha256, "ids": ids}
            write_json(path.with_suffix(".json"), index)  # last: it is whole
        except OSError as error:
            logger.warning("%s: %s; no more features are kept, training goes on", self.folder, error.strerror)
            self.limit = 0
            self._waiting.clear()
            return
        self._waiting.clear()
        self._seen.add(path)
        self._places |= {identity: (path, row) for row, identity in enumerate(ids)}
        self.room -= len(content)
        self.bytes += len(content)

    def refresh(self) -> None:
        """Take what earlier runs have left, and other processes by now; what is damaged is dropped."""
        for index in sorted(self.folder.glob("[!.]*.json")):  # with a dot begins what is being written
            path = index.with_suffix(".safetensors")
            if path in self._seen:
                continue
            self._seen.add(path)
            ids = _ids_in(path)
            if ids is None:
                logger.warning("%s is damaged: its features are computed again", path)
                with suppress(OSError):  # it stays where others keep it for reading alone
                    index.unlink(missing_ok=True)
                    path.unlink(missing_ok=True)
            else:
                self._places |= {identity: (path, row) for row, identity in enumerate(ids)}
        self.bytes: int = sum(map(_size, self.folder.glob("*.safetensors")))


def _ids_in(path: Path) -> list[str] | None:
    """The ids of the images in the shard ``path``; None if it or its index is damaged, or another has dropped it."""
    try:
        known = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        with safe_open(path, "pt"):
            return known["ids"] if digest(path) == known["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None


def open_feature_cache(
    task: Task, options: TrainOptions, fingerprint: str, precision: str, processes: int
) -> FeatureCache | None:
    """Let ``task`` take its features from ``--feature-cache``, where that is given."""
    if options.feature_cache is None or not isinstance(task, Modular):
        return None
    limit, own = options.feature_cache_gb * 1e9, {"precision": precision, "processes": processes}
    cache = FeatureCache(task.model, options.feature_cache, task.stages, fingerprint, limit, **own)
    task.features = cache.features
    return cache


def _size(path: Path) -> int:
    """The bytes of a file; none, if another process has just dropped it."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
