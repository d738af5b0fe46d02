"""The folder of a run: always the same files, each written whole, and one run at a time.

``config.yaml`` (everything needed to run it again), ``metrics.jsonl``, ``checkpoints/``, ``chains/<seed>/``,
``evaluation.json`` and ``card.md``. A run is finished when its card is there. Its configuration names its seeds and
inverses, and so every file: whatever else lies in the folder is the user's, and is never removed.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from backsight.core import UserError
from backsight.io import read_json_lines, read_yaml, write_text
from backsight.training.checkpoints import Checkpoints, Mirror
from backsight.validation import check_folder

logger: logging.Logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
FILES = ("metrics.jsonl", "mean_image.safetensors", "training_range.safetensors", "evaluation.json", "card.md")
FOLDERS = ("checkpoints", "chains", "forward", "tensorboard")
"""What a run writes into its folder, beside its configuration."""

CONFIG_KEYS = ("command", "model", "inverses", "seeds", "versions")
"""What the configuration of every run has, whether it was trained or imported."""

CHECKPOINT = re.compile(r"step-\d+\.(pt|pt\.sha256|damaged)")
"""The names of checkpoints, of their checksums, and of damaged ones."""

HALF_WRITTEN = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp(\.\w+)?")
"""The names that :mod:`backsight.io` gives to a file until it is whole."""

LOCK = ".backsight.lock"
"""The file that a run holds locked, with the process and its host in it; it is gone when the run has ended."""


class RunFolder:
    """The folder of one run.

    Args:
        path: of the folder.
        keep: how many checkpoints to keep while it goes on, the newest ones.
        writes: whether this process writes into it: of several that share a run, one does.
        mirror: where its checkpoints go as well.
    """

    def __init__(self, path: str | Path, *, keep: int = 2, writes: bool = True, mirror: str | None = None) -> None:
        self.path: Path = Path(path)
        self.writes: bool = writes
        self.mirror: Mirror | None = None if mirror is None else Mirror(mirror, self.path)
        self.checkpoints: Checkpoints = Checkpoints(self.path / "checkpoints", keep, self.mirror)

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return (self.path / "card.md").is_file()

    @property
    def started(self) -> bool:
        """Whether there is a run here, finished or not."""
        return (self.path / CONFIG).is_file()

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Whether a run may begin or go on here; nothing is touched.

        Raises:
            UserError: the folder holds a run, and neither option says what to do with it; or it holds files that
                are not a run's, where they would be written over or nobody asked to begin beside them.
        """
        here = self.path
        check_folder(here, "--out")
        self.config()
        if foreign := not_of_a_run(here):
            raise UserError(f"{here} holds no run, and its own '{foreign}' would be written over: choose another --out")
        if overwrite:
            return
        if self.finished:
            raise UserError(f"the run in {here} is finished: add --overwrite to replace it, or choose another --out")
        if self.started and not resume:
            raise UserError(f"{here} holds an unfinished run: add --resume to go on, or --overwrite to begin again")
        if not self.started and here.is_dir() and any(path.name != LOCK for path in here.iterdir()):
            raise UserError(f"{here} is not empty and holds no run: choose another --out")

    def check_free(self) -> None:
        """Refuse a folder that a run is in at this moment (``UserError``)."""
        if (self.path / LOCK).is_file():
            with self.locked():
                pass

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other run out of the folder, which exists, until this one ends, however it ends.

        Raises:
            UserError: a run is in it.
        """
        path = self.path / LOCK
        lock = FileLock(path, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            who = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
            raise UserError(
                f"{who or 'another process'} has a run in {self.path}: wait for it, stop it, or choose another --out"
            ) from None
        except OSError as error:
            if error.filename is not None:
                raise
            logger.info("%s cannot be locked (%s): start no other run in it", self.path, error.strerror)
            yield
            return
        try:
            path.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
            yield
        finally:
            path.unlink(missing_ok=True)  # whoever waits for this file notices that it is gone
            lock.release()

    @contextmanager
    def claimed(self, *, resume: bool, overwrite: bool) -> Iterator[None]:
        """The folder made and locked, without what a killed process left half written. A run that is to be replaced is
        there until :meth:`write_config`.

        Raises:
            UserError: another run is in it, or has been since :meth:`check`.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self.locked():
            self.check(resume=resume, overwrite=overwrite)
            for path in [*self.path.iterdir(), *(each for name in FOLDERS for each in (self.path / name).rglob(".*"))]:
                if HALF_WRITTEN.fullmatch(path.name) and path.is_file():
                    path.unlink()
            yield

    # ---- configuration

    def write_config(self, config: dict[str, Any]) -> None:
        """Begin a run, in place of any that is here: keep what it was started with."""
        remove_run(self.path)
        write_text(self.path / CONFIG, yaml.safe_dump(config, sort_keys=False))

    def config(self) -> dict[str, Any]:
        """What the run here was started with; nothing where there is none.

        Raises:
            UserError: the file is damaged.
        """
        return read_yaml(self.path / CONFIG, "restore it, or begin again in another --out") if self.started else {}

    def check_config(self, config: dict[str, Any], fields: tuple[str, ...]) -> None:
        """Refuse to go on with a run that was started differently.

        Raises:
            UserError: one of the ``fields`` differs; the message says which, then and now.
        """
        before = self.config()
        for name in fields:
            if before.get(name) != config[name]:
                where, then, now = first_difference(name, before.get(name), config[name])
                raise UserError(
                    f"the run in {self.path} was started with {where} = {then}, not {now}: "
                    "resume with the same command, or choose another --out"
                )

    # ---- metrics

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``."""
        if self.writes:
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Every line of ``metrics.jsonl`` with a ``step``; lines that are cut short, or of others, are left out."""
        records, _ = read_json_lines(self.path / "metrics.jsonl")
        return [record for record in records if isinstance(record.get("step"), int)]

    def forget_after(self, step: int) -> None:
        """Drop the lines of ``metrics.jsonl`` about steps after ``step``: they will be run again."""
        if self.writes:
            kept = [json.dumps(record) for record in self.metrics() if record["step"] <= step]
            write_text(self.path / "metrics.jsonl", "".join(f"{line}\n" for line in kept))


def first_difference(name: str, one: Any, other: Any) -> tuple[str, Any, Any]:
    """Where two values of a configuration differ first, and what they are there.

    >>> first_difference("data", {"spec": "world", "train": {"images": 5}}, {"spec": "world", "train": {"images": 6}})
    ('data.train.images', 5, 6)
    """
    if isinstance(one, dict) and isinstance(other, dict):
        key = next(key for key in (*one, *other) if one.get(key) != other.get(key))
        return first_difference(f"{name}.{key}", one.get(key), other.get(key))
    return name, one, other


# ---- the files of a run, among the user's own


def read_config(folder: Path) -> dict[str, Any] | None:
    """What the run in ``folder`` was started with; None where no ``config.yaml`` is, or one that is no run's."""
    try:
        found = read_yaml(folder / CONFIG, "", CONFIG_KEYS)
    except (OSError, UserError):
        return None
    return found if isinstance(found["inverses"], dict) and isinstance(found["seeds"], list) else None


def not_of_a_run(folder: Path) -> str | None:
    """The name of a file or folder that a run would write over, where no run has written it."""
    if read_config(folder) is not None:
        return None
    paths = [folder / name for name in (CONFIG, *FILES, *FOLDERS)]
    return next((path.name for path in paths if path.is_file() or (path.is_dir() and any(path.iterdir()))), None)


def files_of_run(folder: Path) -> list[Path]:
    """Every file of the run in ``folder`` that is there, the configuration last."""
    config = read_config(folder)
    if config is None:
        return []
    found = [folder / name for name in FILES]
    found += [each for each in folder.glob("checkpoints/*") if CHECKPOINT.fullmatch(each.name)]
    found += folder.glob("tensorboard/events.out.tfevents.*")
    for seed in filter(str.isdecimal, map(str, config["seeds"])):
        names = ["chain.json", *(f"{entry}.safetensors" for entry in config["inverses"])]
        found += [folder / "chains" / seed / Path(name).name for name in names]
        found += [folder / "forward" / seed / "model.safetensors"]
    return [path for path in (*found, folder / CONFIG) if path.is_file()]


def remove_run(folder: Path) -> None:
    """Remove the run in ``folder`` and the folders that are empty then. The configuration goes last: until then what
    is left, by a process that was killed, is known as a run's."""
    paths = files_of_run(folder)
    for path in paths:
        path.unlink()
    parents = {parent for path in paths for parent in path.parents if folder in parent.parents}
    for parent in sorted(parents, key=lambda each: len(each.parts), reverse=True):
        with suppress(OSError):  # it holds other files
            parent.rmdir()
