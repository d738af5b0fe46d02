"""One run a folder at a time: a lock that the kernel opens when the process that holds it ends, however it ends.

It is a record lock (POSIX), which workers that are forked do not inherit: they outlive a killed run by some seconds.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from backsight.core import UserError

logger = logging.getLogger(__name__)

NAME = ".backsight.lock"
"""The file that is locked: it holds the host and the number of the process, and is gone when the run has ended."""

TAKEN = (errno.EACCES, errno.EAGAIN)
"""What the system says of a lock that another process has; of any other error, that it has no locks here."""

_fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None  # Windows has none

_held: set[Path] = set()
"""The files that this process has locked: it would not be refused by itself, and lose the lock by opening one again."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other run out of ``folder``, which exists. Where the file system has no locks, the log says so.

    Raises:
        UserError: a run is in it.
    """
    path = (folder / NAME).resolve()
    descriptor = _take(path, folder)
    try:
        _held.add(path)
        yield
    finally:
        _held.discard(path)
        if descriptor is not None:
            if _is_that(path, descriptor):  # else the folder was removed, and another run may be in a new one
                path.unlink()
            os.close(descriptor)


def check_free(folder: Path) -> None:
    """Refuse a ``folder`` that a run is in; nothing is changed.

    Raises:
        UserError: a run is in it.
    """
    path = (folder / NAME).resolve()
    if path in _held:
        raise _in_use(folder, path)
    if _fcntl is None or not path.is_file():
        return
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:  # its run has just ended
        return
    try:
        if not _lock(descriptor):
            raise _in_use(folder, path)
    finally:
        os.close(descriptor)


def _take(path: Path, folder: Path) -> int | None:
    """The locked file at ``path``, with the name of this process in it; None where there are no locks."""
    if path in _held:
        raise _in_use(folder, path)
    while _fcntl is not None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _lock(descriptor):
                raise _in_use(folder, path)
            if _is_that(path, descriptor):
                os.truncate(descriptor, 0)
                os.write(descriptor, f"{platform.node()} {os.getpid()}\n".encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # a run that has just ended has removed it
    logger.info("%s cannot be locked on this system: start no other run in it", folder)
    return None


def _lock(descriptor: int) -> bool:
    """Whether the file is this process's now, or cannot be locked at all."""
    try:
        _fcntl.lockf(descriptor, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            return False
        logger.info("this file system has no locks (%s): start no other run in the same folder", error.strerror)
    return True


def _is_that(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one at ``path``."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _in_use(folder: Path, path: Path) -> UserError:
    if path in _held:  # opened again and closed, it would be free
        host, process = platform.node(), str(os.getpid())
    else:
        host, _, process = path.read_text(encoding="utf-8").strip().partition(" ") if path.is_file() else ("", "", "")
    who = f"process {process} on {host}" if process else "another process"
    return UserError(f"{who} has a run in {folder}: wait for it, stop it, or choose another --out")
