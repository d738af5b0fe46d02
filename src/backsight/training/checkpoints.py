"""Checkpoints: what they hold, written by a thread beside training, mirrored, and read again.

Each has its SHA-256 beside it, written last: one without was never finished. The last few are kept, and a damaged one
is never loaded.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backsight.arrange import each_tensor, tensors_in
from backsight.core import Key, UserError
from backsight.data import Batch, sum_images
from backsight.distributed import Processes
from backsight.io import digest, write_checkpoint, write_text, write_whole

logger: logging.Logger = logging.getLogger(__name__)


@dataclass
class State:
    """Where a run is: all that a checkpoint holds beside networks and optimisers.

    ``best`` has the best weights of every network so far, ``stopped`` when and why a network stopped before the end.
    ``image_sum`` (``3 H W``) is the sum of all training images seen, over ``pixel_counts`` images.
    """

    step: int = 0
    seconds: float = 0.0
    images: int = 0
    image_sum: Tensor | None = None
    pixel_counts: Tensor | int = 0
    best: dict[Key, dict[str, Any]] = field(default_factory=dict)
    stopped: dict[Key, dict[str, Any]] = field(default_factory=dict)
    evaluation_due: bool = False

    def add_images(self, total: Tensor, counts: Tensor | int) -> None:
        """Add the sum of some images, over ``counts`` of them."""
        self.image_sum = total if self.image_sum is None else self.image_sum + total
        self.pixel_counts = self.pixel_counts + (counts.to(total.device) if isinstance(counts, Tensor) else counts)

    def counting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same ``batches``, whose images are added as they pass."""
        for batch in batches:
            if batch.ids:
                self.add_images(*sum_images(batch))
                self.images += len(batch.ids)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it: keys are text there."""
        stopped = {str(key): {**each, "loss": str(each["loss"])} for key, each in self.stopped.items()}
        return {**vars(self), "best": {str(key): each for key, each in self.best.items()}, "stopped": stopped}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], device: torch.device) -> State:
        """The inverse of :meth:`state_dict`, on ``device``."""
        state = {name: each.to(device) if isinstance(each, Tensor) else each for name, each in state.items()}
        state["best"] = {Key.parse(name): each for name, each in state["best"].items()}
        stopped = {Key.parse(name): each for name, each in state["stopped"].items()}
        state["stopped"] = {key: {**each, "loss": Key.parse(each["loss"])} for key, each in stopped.items()}
        return cls(**state)


class Checkpoints:
    """The checkpoints in a ``folder``, ``keep`` of them, and in ``mirror`` (a place that fsspec knows) where given.

    One is written at a time, in a thread; what went wrong there is raised by the next call from the run.
    """

    def __init__(self, folder: Path, keep: int = 2, mirror: Mirror | None = None) -> None:
        self.folder: Path = folder
        self.keep: int = keep
        self.mirror: Mirror | None = mirror
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._writing: Future[None] | None = None

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write the ``state`` after ``step`` batches, which nobody changes any more, once the one before is written.

        Raises:
            OSError: the one before could not be written.
        """
        self.wait()
        self._writing = self._thread.submit(self._write, step, state)

    def check(self) -> None:
        """Raise what went wrong with the last one, if it did."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Go on when the last one is written.

        Raises:
            OSError: it could not be.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, step: int, state: Mapping[str, Any]) -> None:
        path = self.folder / f"step-{step:08d}.pt"
        _checksum(path).unlink(missing_ok=True)
        write_checkpoint(path, state)
        write_text(_checksum(path), f"{digest(path)}  {path.name}\n")  # of what is on the disk
        for old in set(self.folder.glob("step-*.pt")).difference(self.paths()[-self.keep :]):
            _checksum(old).unlink(missing_ok=True)
            old.unlink()
        if self.mirror is not None:
            self.mirror.put(path, self.paths())

    def paths(self) -> list[Path]:
        """Those that were finished, oldest first."""
        return [path for path in sorted(self.folder.glob("step-*.pt")) if _checksum(path).is_file()]

    def load(self) -> dict[str, Any] | None:
        """The newest that is whole, None if there is none yet; a damaged one is named and set aside.

        Raises:
            UserError: all of them are damaged.
        """
        self.wait()
        paths = self.paths()
        while paths:
            path = paths.pop()
            if _is_whole(path):
                return torch.load(path, map_location="cpu", weights_only=True)
            path.replace(path.with_suffix(".damaged"))
            _checksum(path).unlink()
            if paths:
                logger.warning("%s is damaged and set aside: trying %s, the one before it", path, paths[-1].name)
        if damaged := sorted(self.folder.glob("step-*.damaged")):
            raise UserError(f"{damaged[-1]} is damaged, and there is no checkpoint before it: --overwrite begins again")
        return None

    def remove(self) -> None:
        """Remove all: the run is done, and its chains are its result."""
        self.wait()
        for path in self.paths():
            _checksum(path).unlink()
            path.unlink()
        with suppress(OSError):  # it holds other files, or never was
            self.folder.rmdir()


class Mirror:
    """Another place for a run's configuration, metrics and checkpoints: ``s3://bucket/run`` or a mounted folder.

    While it cannot be reached training goes on, and a line says so; the next checkpoint tries again.

    Raises:
        UserError: there is no such kind of place, or its package is missing.
    """

    def __init__(self, place: str, folder: Path) -> None:
        import fsspec

        self.place: str = place
        self.folder: Path = folder
        self.files: Any
        self.root: str
        try:
            self.files, self.root = fsspec.core.url_to_fs(place)
        except (ImportError, ValueError) as error:
            raise UserError(f"--mirror {place}: {' '.join(str(error).split())}") from error

    def put(self, path: Path, keep: Iterable[Path]) -> None:
        """Upload a checkpoint, its checksum last; those that the run does not ``keep`` are removed."""
        kept = {each.name for each in keep}
        try:
            self._upload(self.folder / "config.yaml", self.folder / "metrics.jsonl", path, _checksum(path))
            for name in self._names() - kept:
                self.files.rm_file(f"{self.root}/checkpoints/{name}.sha256")
                self.files.rm_file(f"{self.root}/checkpoints/{name}")
        except Exception as error:  # each store has errors of its own
            logger.warning("%s: %s was not mirrored (%s); training goes on", self.place, path.name, _in_words(error))

    def put_result(self, paths: Iterable[Path], *, remove: bool) -> None:
        """Upload what a finished run has left, and ``remove`` its checkpoints there."""
        try:
            self._upload(*paths)
            if remove and self._names():
                self.files.rm(f"{self.root}/checkpoints", recursive=True)
        except Exception as error:
            logger.warning(
                "%s: the result was not mirrored (%s): it is in %s", self.place, _in_words(error), self.folder
            )

    def fetch(self, than: int) -> None:
        """Bring the newest checkpoint into the folder, if it is of a later step than ``than``, and what goes with it.

        Raises:
            UserError: the place cannot be read.
        """
        try:
            newest = max(self._names(), default="")
            if newest and step_of(Path(newest)) > than:
                names = [f"checkpoints/{newest}", f"checkpoints/{newest}.sha256", "metrics.jsonl", "config.yaml"]
                for name in names:
                    write_whole(
                        self.folder / name,
                        lambda path, name=name: self.files.get_file(f"{self.root}/{name}", str(path)),
                    )
                logger.info("%s: fetched %s", self.place, newest)
        except Exception as error:
            raise UserError(f"--mirror {self.place} cannot be read: {_in_words(error)}") from error

    def _upload(self, *paths: Path) -> None:
        for path in paths:
            remote = f"{self.root}/{path.relative_to(self.folder).as_posix()}"
            self.files.makedirs(remote.rpartition("/")[0], exist_ok=True)
            self.files.put_file(str(path), remote)

    def _names(self) -> set[str]:
        """The checkpoints there that were uploaded whole."""
        self.files.invalidate_cache()
        folder = f"{self.root}/checkpoints"
        found = (
            {each.rpartition("/")[2] for each in self.files.ls(folder, detail=False)}
            if self.files.exists(folder)
            else set()
        )
        return {name for name in found if f"{name}.sha256" in found}


def step_of(path: Path) -> int:
    """The number of batches after which a checkpoint was written."""
    return int(path.stem.removeprefix("step-"))


def _in_words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _checksum(path: Path) -> Path:
    """Where the checksum of a checkpoint is, as ``sha256sum --check`` reads it."""
    return path.with_name(f"{path.name}.sha256")


def _is_whole(path: Path) -> bool:
    """Whether the bytes of a checkpoint are the ones that were written."""
    try:
        return _checksum(path).read_text(encoding="ascii").split()[:1] == [digest(path)]
    except (OSError, ValueError):
        return False


def copied_aside(value: Any) -> Any:
    """A copy on the CPU, which training does not change while it is written."""
    return each_tensor(value, lambda tensor: tensor.detach().to("cpu", copy=True))


def from_main(processes: Processes, load: Callable[[], Any]) -> Any:
    """What ``load`` gives the main process, for all; its tensors are sent one by one."""
    if processes.count == 1:
        return load()
    tensors: list[Tensor] = []

    def outline() -> Any:
        loaded = load()
        tensors.extend(tensors_in(loaded))
        return each_tensor(loaded, lambda tensor: tensor.to("meta"))

    def received(shape: Tensor) -> Tensor:
        tensor = tensors.pop(0) if processes.main else torch.empty_like(shape, device="cpu")
        processes.same_tensors([tensor])
        return tensor

    return each_tensor(processes.from_main(outline), received)


# ---- random generators


def random_states() -> dict[str, Any]:
    """The states of python's, numpy's and torch's random generators, as tensors and numbers."""
    version, words, gauss = random.getstate()
    state: Any = np.random.get_state(legacy=True)
    kind, keys, position, has_gauss, cached = state
    return {
        "python": (version, list(words), gauss),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, float(cached)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Go on drawing where :func:`random_states` was called."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
