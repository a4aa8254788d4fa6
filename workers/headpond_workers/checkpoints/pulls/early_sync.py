"""Files on their way to the disk while others of them are still received, so that the sync at the end waits for little.

A write-back that fails is told to the first sync that asks, and to none that opens the file later: what this thread
hears of it is raised at its end.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType

STEP_BYTES = 32 << 20
"""So much was written since the last sync: few enough syncs, and little left at the end."""


class EarlySync:
    """A context: one thread that syncs what is written within it."""

    def __init__(self, *, step_bytes: int | None = None) -> None:
        """step_bytes: STEP_BYTES if None."""
        self._step_bytes = STEP_BYTES if step_bytes is None else step_bytes
        self._changed = threading.Condition()
        self._files: set[Path] = set()
        self._bytes = 0
        self._left = False
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._work, name="early-sync", daemon=True)

    def wrote(self, file: Path, size: int) -> None:
        """`size` bytes of it are new. Thread-safe. Raises OSError if the disk has refused something before."""
        with self._changed:
            if self._error is not None:
                raise self._error
            self._files.add(file)
            self._bytes += size
            if self._bytes >= self._step_bytes:
                self._changed.notify()

    def __enter__(self) -> EarlySync:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Raises OSError if the disk did not take what it was to, unless another error is under way."""
        with self._changed:
            self._left = True
            self._changed.notify()
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    def _work(self) -> None:
        while (files := self._next()) is not None:
            try:
                for file in files:
                    sync_data(file)
            except OSError as error:
                self._error = error
                return

    def _next(self) -> list[Path] | None:
        """What is to be synced now; None at the end. What was written last is left to whoever syncs it all."""
        with self._changed:
            self._changed.wait_for(lambda: self._left or self._bytes >= self._step_bytes)
            if self._bytes < self._step_bytes:
                return None
            files, self._files, self._bytes = sorted(self._files), set(), 0
            return files


def sync_data(file: Path) -> None:
    """Return once what was written to a file is on the disk. Raises OSError."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
