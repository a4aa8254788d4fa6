"""How many bytes a second may go to storage and come from it, in all threads of a process together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

GRAIN_BYTES = 64 << 10
"""What one thread is given at a time: while others wait, nobody gets more before they had theirs."""
BURST_S = 0.1
"""What was not used is kept for this long, so that a sleep which ended late is made up for."""


class ByteRate:
    """A token bucket. Who asks first is served first. Thread-safe.

    clock, sleep: in seconds; of tests.
    """

    def __init__(
        self,
        bytes_per_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        if bytes_per_s <= 0:
            raise ValueError(f"a rate of {bytes_per_s} bytes a second")
        self.bytes_per_s = bytes_per_s
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._free_at = clock()
        """When all that was given out so far is paid for."""

    def take(self, size: int) -> None:
        """Return once `size` more bytes may go."""
        while size > 0:
            grain = min(size, GRAIN_BYTES)
            wait_s = self._reserve(grain)
            if wait_s > 0:
                self._sleep(wait_s)
            size -= grain

    def _reserve(self, size: int) -> float:
        with self._lock:
            now = self._clock()
            # A place in the queue, rather than a test to be repeated: nobody is overtaken by who wakes up sooner.
            start = max(self._free_at, now - BURST_S)
            self._free_at = start + size / self.bytes_per_s
            return start - now


@dataclass(frozen=True, slots=True)
class Rates:
    """None: as fast as it goes."""

    up: ByteRate | None = None
    down: ByteRate | None = None


@cache
def process_rates(upload_bytes_per_s: float | None, download_bytes_per_s: float | None) -> Rates:
    """The rates of this process: the same ones for all who ask for the same."""
    return Rates(
        ByteRate(upload_bytes_per_s) if upload_bytes_per_s is not None else None,
        ByteRate(download_bytes_per_s) if download_bytes_per_s is not None else None,
    )
