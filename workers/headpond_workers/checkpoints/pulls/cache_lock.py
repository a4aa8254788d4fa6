"""Locks of the cache of versions, shared by all processes of the machine. The kernel gives each back when its process
ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Self

_ASK_S = 0.1


class Hold(Enum):
    """How a lock is held."""

    SHARED = fcntl.LOCK_SH
    ALONE = fcntl.LOCK_EX


class CacheLock:
    """One lock file, held until `release`. Never removed: a file that is locked must be the one that others open."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def take_now(cls, path: Path, hold: Hold) -> Self | None:
        """None if others hold it so that this one cannot. Raises OSError."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, hold.value | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor)

    @classmethod
    def take(cls, path: Path, hold: Hold, *, waiting: Callable[[], None]) -> Self:
        """Wait for it. waiting: called about ten times a second; what it raises ends the waiting. Raises OSError."""
        # Not a blocking flock: a process that is told to leave would hear of it only once the others are done.
        while (lock := cls.take_now(path, hold)) is None:
            waiting()
            time.sleep(_ASK_S)
        return lock

    def release(self) -> None:
        """A repeat does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
