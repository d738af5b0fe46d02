"""Whether a folder that a user names can be written to, asked before anything is."""

from __future__ import annotations

import os
from pathlib import Path

from backsight.core import UserError


def check_place(folder: Path, option: str) -> None:
    """Refuse a ``folder`` that nothing can be written to, where it is there or where it would be made.

    Nothing is made. One that holds something already may be for reading alone: a cache that others have filled.

    Raises:
        UserError: a file is in its place or above it, or the system does not let this process write there.
    """
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir():
        above = "it" if there == folder else there
        raise UserError(f"{option} {folder}: {above} is a file, name a folder")
    if not os.access(there, os.W_OK | os.X_OK) and not (there == folder and any(folder.iterdir())):
        raise UserError(f"{option} {folder}: nothing can be written to {there}, name another folder")
