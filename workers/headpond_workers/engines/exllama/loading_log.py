"""The progress of a long load, in the log: every few seconds at most."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

EVERY_S = 5.0


class LoadingLog:
    """Called with (done, total) modules."""

    def __init__(self, engine: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._next = clock() + EVERY_S

    def __call__(self, done: int, total: int) -> None:
        now = self._clock()
        if now >= self._next:
            self._next = now + EVERY_S
            log.info("model_loading engine=%s modules=%d of=%d", self._engine, done, total)
