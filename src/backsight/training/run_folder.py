"""The files of a run: always the same ones, each written whole.

``config.yaml`` (everything needed to run it again), ``metrics.jsonl``, ``checkpoints/``, ``chains/<seed>/``,
``evaluation.json`` and ``card.md``. A run is finished when its card is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from backsight.core import UserError
from backsight.io import read_yaml, write_text
from backsight.training import checkpoints, leavings, lock
from backsight.validation import check_folder


class RunFolder:
    """The folder of one run.

    Args:
        path: of the folder.
        keep: how many checkpoints to keep, the newest ones.
        writes: whether this process writes into it: of several that share a run, one does.
    """

    def __init__(self, path: str | Path, *, keep: int = checkpoints.KEPT, writes: bool = True) -> None:
        self.path, self.keep, self.writes = Path(path), keep, writes

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return (self.path / "card.md").is_file()

    @property
    def started(self) -> bool:
        """Whether there is a run here, finished or not."""
        return (self.path / "config.yaml").is_file()

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Whether a run may begin or go on here; nothing is touched.

        Raises:
            UserError: the folder holds a run, and neither option says what to do with it; or it holds files that
                are not a run's, where they would be written over or nobody asked to begin beside them.
        """
        here = self.path
        if here.exists() and not here.is_dir():
            raise UserError(f"{here} is a file: --out names a folder")
        check_folder(here, "--out")
        self.config()
        if foreign := leavings.not_ours(here):
            raise UserError(f"{here} holds no run, and its own '{foreign}' would be written over: choose another --out")
        if overwrite:
            return
        if self.finished:
            raise UserError(f"the run in {here} is finished: add --overwrite to replace it, or choose another --out")
        if self.started and not resume:
            raise UserError(f"{here} holds an unfinished run: add --resume to go on, or --overwrite to begin again")
        if not self.started and here.is_dir() and any(path.name != lock.NAME for path in here.iterdir()):
            raise UserError(f"{here} is not empty and holds no run: choose another --out")

    @contextmanager
    def claimed(self, *, resume: bool, overwrite: bool) -> Iterator[None]:
        """The folder made, :meth:`prepare`-d, and kept from every other run.

        Raises:
            UserError: another run is in it, or has been since :meth:`check`.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with lock.locked(self.path):
            self.check(resume=resume, overwrite=overwrite)
            self.prepare(overwrite=overwrite)
            yield

    def prepare(self, *, overwrite: bool) -> None:
        """Make the folder; drop the run in it if it is to be replaced, and what a killed process left half written."""
        if not self.writes:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover in [*leavings.half_written(self.path)]:
            leftover.unlink()
        if overwrite:
            leavings.remove(self.path)

    # ---- configuration

    def write_config(self, config: dict[str, Any]) -> None:
        """Keep what the run was started with."""
        write_text(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False))

    def config(self) -> dict[str, Any]:
        """What the run here was started with; nothing where there is none.

        Raises:
            UserError: the file is damaged.
        """
        mend = "restore it, or begin again in another --out"
        return read_yaml(self.path / "config.yaml", mend) if self.started else {}

    def check_config(self, config: dict[str, Any], fields: tuple[str, ...]) -> None:
        """Refuse to go on with a run that was started differently.

        Raises:
            UserError: one of the ``fields`` differs; the message says which, then and now.
        """
        before = self.config()
        for name in fields:
            if before.get(name) != config[name]:
                raise UserError(
                    f"the run in {self.path} was started with {name} = {before.get(name)}, not {config[name]}: "
                    "resume with the same command, or choose another --out"
                )

    # ---- metrics

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``."""
        if not self.writes:
            return
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Every line of ``metrics.jsonl``; a last line that was cut short is left out."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        records = []
        for line in lines:
            try:
                records.append(json.loads(line))
            except ValueError:
                break
        return records

    def forget_after(self, step: int) -> None:
        """Drop what ``metrics.jsonl`` says of steps after ``step``: they will be run again."""
        if not self.writes:
            return
        kept = [json.dumps(record) for record in self.metrics() if record["step"] <= step]
        write_text(self.path / "metrics.jsonl", "".join(f"{line}\n" for line in kept))

    # ---- checkpoints

    def save_checkpoint(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after ``step`` batches, then drop all but the last few checkpoints."""
        if self.writes:
            checkpoints.write(self.path / "checkpoints", step, state, self.keep)

    def checkpoints(self) -> list[Path]:
        """The checkpoints there are, oldest first."""
        return checkpoints.found(self.path / "checkpoints")

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The newest checkpoint that is whole, None if there is none yet.

        Raises:
            UserError: all of them are damaged.
        """
        return checkpoints.newest(self.path / "checkpoints")
