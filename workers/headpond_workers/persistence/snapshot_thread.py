"""Makes snapshots beside the commits: one at a time, in a thread of its own, so that no journal waits for them."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from headpond.errors import HeadpondError

logger = logging.getLogger(__name__)


class SnapshotThread(threading.Thread):
    """A daemon: whoever ends its process ends it amid a snapshot, which harms nothing."""

    def __init__(self, make: Callable[[str], None]) -> None:
        """make: makes the snapshot of one model, and what goes with it."""
        super().__init__(name="snapshots", daemon=True)
        self._make = make
        self._wanted: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting: set[str] = set()

    def ask(self, model: str) -> None:
        """Have a snapshot made, unless one of the model is asked for or being made already. Never blocks."""
        with self._lock:
            if model not in self._waiting:
                self._waiting.add(model)
                self._wanted.put(model)

    def run(self) -> None:
        while True:
            model = self._wanted.get()
            try:
                self._make(model)
            except (HeadpondError, OSError) as error:
                # The next commit, or the next second, asks again. OSError: of the files that a purge removes.
                logger.warning("snapshot_delayed model=%s error=%s", model, error)
            finally:
                with self._lock:
                    self._waiting.discard(model)
