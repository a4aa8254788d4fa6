"""How far a push is, told to whoever shows it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum


class Stage(Enum):
    """What a push does just now."""

    HASH = "hashing"
    SEND = "sending"


OnProgress = Callable[[Stage, int, int], None]
"""Is told bytes that are done, and of how many. Called from several threads, one at a time."""


class Counter:
    """Adds up what threads have done."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._tell, self._lock = on_progress, threading.Lock()
        self._stage, self._done, self._total = Stage.HASH, 0, 0

    def begin(self, stage: Stage, total: int) -> None:
        with self._lock:
            self._stage, self._done, self._total = stage, 0, total
            self._tell(stage, 0, total)

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._tell(self._stage, self._done, self._total)
