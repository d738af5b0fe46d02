"""Checkpoints: each with its SHA-256 beside it, the last few kept, a damaged one never loaded."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch

from backsight.core import UserError
from backsight.io import write_checkpoint, write_text

logger = logging.getLogger(__name__)

KEPT = 2
"""How many checkpoints are kept where nobody says otherwise."""


def write(folder: Path, step: int, state: Any, keep: int = KEPT) -> Path:
    """Write the state after ``step`` batches, then drop all but the last ``keep`` checkpoints.

    The checksum is read back from the disk and written last: a checkpoint without one was never finished.
    """
    path = folder / f"step-{step:08d}.pt"
    beside(path).unlink(missing_ok=True)
    write_checkpoint(path, state)
    write_text(beside(path), f"{digest(path)}  {path.name}\n")
    for old in set(folder.glob("step-*.pt")).difference(found(folder)[-keep:]):
        beside(old).unlink(missing_ok=True)
        old.unlink()
    return path


def found(folder: Path) -> list[Path]:
    """The checkpoints that were finished, oldest first."""
    return [path for path in sorted(folder.glob("step-*.pt")) if beside(path).is_file()]


def beside(path: Path) -> Path:
    """Where the checksum of a checkpoint is, as ``sha256sum --check`` reads it."""
    return path.with_name(f"{path.name}.sha256")


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def newest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, None if there is none yet; a damaged one after it is named and set aside.

    Raises:
        UserError: all of them are damaged.
    """
    every = found(folder)
    for path in reversed(every):
        state = _read(path)
        if state is not None:
            return state
        path.replace(path.with_suffix(".damaged"))
        beside(path).unlink()
        before = every[every.index(path) - 1].name if path != every[0] else ""
        if not before:
            raise UserError(f"{path} is damaged, and there is no checkpoint before it: --overwrite begins again")
        logger.warning("%s is damaged and set aside: trying %s, the one before it", path, before)
    return None


def _read(path: Path) -> dict[str, Any] | None:
    """A checkpoint, None if its bytes are not the ones that were written."""
    try:
        expected = beside(path).read_text(encoding="ascii").split()
        if expected[:1] != [digest(path)]:
            return None
    except (OSError, ValueError):
        return None
    return torch.load(path, map_location="cpu", weights_only=True)
