"""A sign of life from every process, so that the loss of one ends the run with a word instead of a hang."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from typing import Any

BEAT = 1.0
"""Seconds between two signs of life."""
SILENCE = 15
"""Beats without one of another's after which that process is lost: killed, frozen, or its machine is gone. Counted in
this process's own: while it cannot run itself, nobody is silent."""
GRACE = 5.0
"""Seconds that a process has to end by itself once another is gone; a call that waits for the other never returns."""

SAID, NEW = "said: ", "new: "
"""Before the word that is left of a loss: the process itself has said it, or nobody yet."""


class WorkerLost(Exception):
    """Another process of the run is gone. The command line ends with ``status``."""

    status = 1


class Heartbeat(threading.Thread):
    """Counts up in the store that all processes share, and watches the next one of them, so that each is watched once.

    Args:
        store: a connection of its own: the main thread may be waiting in another.
        rank, count: this process's number, and how many there are.
    """

    def __init__(self, store: Any, rank: int, count: int) -> None:
        super().__init__(daemon=True)
        self.store, self.rank, self.count = store, rank, count
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._neighbour, self._silent = -1, 0

    # ---- the thread

    def run(self) -> None:
        """Beat until :meth:`stop`; end the whole process if another is gone and the main thread does not notice."""
        while not self._done.wait(BEAT):
            try:
                gone = self._beat()
            except RuntimeError:  # the store was in the main process
                gone = True
            if gone and not self._done.wait(GRACE):
                self._end()

    def stop(self) -> None:
        """No more beats: the run is over."""
        self._done.set()

    def _beat(self) -> bool:
        """Give a sign of life; whether the run has lost a process."""
        with self._lock:
            self.store.add(f"beat/{self.rank}", 1)
            next_one = (self.rank + 1) % self.count
            beats = self.store.add(f"beat/{next_one}", 0)
            self._silent = self._silent + 1 if beats == self._neighbour else 0
            self._neighbour = beats
            if self._silent > SILENCE:
                self._put(f"process {next_one} of {self.count} was lost (killed, frozen, or its machine is gone)")
            return self.store.check(["gone"])

    def _end(self) -> None:
        """Leave at once: the main thread waits in a call that nothing can interrupt."""
        try:
            print(f"backsight: {self.loss()}", file=sys.stderr, flush=True)
        finally:
            os._exit(WorkerLost.status)

    # ---- what the main thread asks

    def tell(self, message: str) -> bool:
        """Say that this process ends with ``message``; whether it is the first to say just that.

        It is neither watched nor watching from then on. The store goes with the main process, which therefore lets the
        others have their say first.
        """
        self.stop()
        try:
            with self._lock:
                where = f"process {self.rank} of {self.count} on {socket.gethostname()}"
                self._put(f"{where} ended: {message}", said=True)
            first = self._first(message)
            self._await_words()
            return first
        except RuntimeError:
            return True

    def _await_words(self) -> None:
        """Count this process's word; in the main one, wait for those of the others, for :data:`GRACE` seconds."""
        deadline = time.monotonic() + GRACE
        words = self._counted("words", 1)
        while self.rank == 0 and words < self.count and time.monotonic() < deadline:
            time.sleep(BEAT / 20)
            words = self._counted("words", 0)

    def _counted(self, name: str, more: int) -> int:
        with self._lock:
            return self.store.add(name, more)

    def somebody_gone(self) -> bool:
        """Whether another process is gone; waits until that is known, when a call to the others has just failed."""
        beats, deadline = self._beats(), time.monotonic() + 4 * BEAT
        while time.monotonic() < deadline:
            if beats is None or self._known():
                return True
            time.sleep(BEAT / 4)
        after = self._beats()
        if after is None:
            return True
        silent = [rank for rank, beat in enumerate(beats or ()) if after[rank] == beat]
        if silent:
            named = " and ".join(f"process {rank}" for rank in silent)
            with self._lock:
                self._put(f"{named} of {self.count} was lost (killed, or the machine is gone)")
        return bool(silent)

    def loss(self) -> WorkerLost:
        """Who is gone, and how to go on.

        Raises:
            SystemExit: it has said so itself, or another process has.
        """
        try:
            with self._lock:
                message = self.store.get("gone").decode() if self.store.check(["gone"]) else ""
        except RuntimeError:
            message = ""
        message = message or f"the main process of {self.count} was lost"
        message = f"{message.removeprefix(NEW)}: the same command with --resume goes on from the last checkpoint"
        if message.startswith(SAID) or not self._first(message):
            raise SystemExit(WorkerLost.status)
        return WorkerLost(message)

    def _known(self) -> bool:
        with self._lock:
            return self.store.check(["gone"])

    def _beats(self) -> list[int] | None:
        """How often every process has beaten; None if the store is gone, and the main process with it."""
        try:
            with self._lock:
                return [self.store.add(f"beat/{rank}", 0) for rank in range(self.count)]
        except RuntimeError:
            return None

    def _first(self, message: str) -> bool:
        """Whether no process has said ``message`` before."""
        try:
            with self._lock:
                return self.store.add(f"said/{message}", 1) == 1
        except RuntimeError:
            return True

    def _put(self, message: str, *, said: bool = False) -> None:
        """Leave word of the first loss; later ones follow from it."""
        self.store.compare_set("gone", "", (SAID if said else NEW) + message)
