"""What a run has written into its folder, told from the files of the user's own that lie there too.

A run is known by its ``config.yaml``, which names its seeds and inverses, and so every file. Whatever else lies in the
folder, or in the folders in it, is not ours to remove.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from backsight.core import UserError
from backsight.io import read_yaml

CONFIG = "config.yaml"

FILES = ("metrics.jsonl", "mean_image.safetensors", "evaluation.json", "card.md")
"""What a run writes into its folder itself, beside its configuration."""

FOLDERS = ("checkpoints", "chains", "forward", "tensorboard")
"""The folders that a run makes in it."""

KEYS = ("command", "model", "inverses", "seeds", "versions")
"""What the configuration of every run has, be it trained or imported."""

HALF_WRITTEN = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp(\.\w+)?")
"""The names that :mod:`backsight.io` gives to a file until it is whole."""


def read_config(folder: Path) -> dict[str, Any] | None:
    """What the run in ``folder`` was started with; None where no ``config.yaml`` is, or one that is no run's."""
    try:
        found = read_yaml(folder / CONFIG, "", KEYS)
    except (OSError, UserError):
        return None
    return found if isinstance(found["inverses"], dict) and isinstance(found["seeds"], list) else None


def not_ours(folder: Path) -> str | None:
    """The name of a file or folder that a run would write over, where no run has written it."""
    if read_config(folder) is not None:
        return None
    paths = [folder / name for name in (CONFIG, *FILES, *FOLDERS)]
    return next((path.name for path in paths if path.is_file() or (path.is_dir() and any(path.iterdir()))), None)


def written(folder: Path) -> list[Path]:
    """Every file of the run in ``folder`` that is there, the configuration last."""
    config = read_config(folder)
    if config is None:
        return []
    found = [folder / name for name in FILES]
    found += _matching(folder / "checkpoints", r"step-\d+\.(pt|pt\.sha256|damaged)")
    names = ["chain.json", *(f"{entry}.safetensors" for entry in config["inverses"])]
    for seed in filter(str.isdecimal, map(str, config["seeds"])):
        found += [folder / "chains" / seed / Path(name).name for name in names]
        found += [folder / "forward" / seed / "model.safetensors"]
    found += _matching(folder / "tensorboard", r"events\.out\.tfevents\..+")
    return [path for path in (*found, folder / CONFIG) if path.is_file()]


def remove(folder: Path) -> None:
    """Remove the run in ``folder`` and the folders that are empty then. The configuration goes last: until then what
    is left, by a process that was killed, is known as a run's."""
    paths = written(folder)
    for path in paths:
        path.unlink()
    parents = {parent for path in paths for parent in path.parents if folder in parent.parents}
    for parent in sorted(parents, key=lambda each: len(each.parts), reverse=True):
        with suppress(OSError):  # it holds other files
            parent.rmdir()


def half_written(folder: Path) -> Iterator[Path]:
    """What a killed process has left under a temporary name."""
    yield from _matching(folder, HALF_WRITTEN)
    for name in FOLDERS:
        for path in (folder / name).rglob(".*"):
            if HALF_WRITTEN.fullmatch(path.name):
                yield path


def _matching(folder: Path, pattern: str | re.Pattern[str]) -> list[Path]:
    return [path for path in folder.glob("*") if re.fullmatch(pattern, path.name)]
