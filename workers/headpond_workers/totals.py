"""What one worker process has done since it began: for its row, so that people see what serves."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field

RATE_S = 5.0
"""Tokens a second are counted over so long."""
_BIN_S = 0.5


@dataclass(slots=True)
class Totals:
    """Thread-safe. tokens: that the engine made. jobs: that it ended."""

    tokens: int = 0
    jobs: int = 0
    _bins: deque[tuple[int, int]] = field(default_factory=deque)
    """Number of a time bin, and the tokens in it; the oldest first."""
    _changed: threading.Lock = field(default_factory=threading.Lock)

    def add_tokens(self, count: int, now: float) -> None:
        """now: of time.monotonic()."""
        number = int(now / _BIN_S)
        with self._changed:
            self.tokens += count
            if self._bins and self._bins[-1][0] == number:
                self._bins[-1] = (number, self._bins[-1][1] + count)
            else:
                self._bins.append((number, count))
            while self._bins[0][0] < number - RATE_S / _BIN_S:
                self._bins.popleft()

    def add_job(self) -> None:
        with self._changed:
            self.jobs += 1

    def tokens_per_s(self, now: float | None = None) -> float:
        """Over the last RATE_S seconds."""
        oldest = int((time.monotonic() if now is None else now) / _BIN_S) - RATE_S / _BIN_S
        with self._changed:
            return sum(count for number, count in self._bins if number >= oldest) / RATE_S
