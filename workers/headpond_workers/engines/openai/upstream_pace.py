"""How fast a proxy may ask: limits a minute, and the waits between retries. A wait ends at once with its task."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

_MINUTE_S = 60.0


@dataclass(slots=True)
class Bucket:
    """Holds `per_minute` units at most, and fills at that rate. It may go below zero: then the next waits longer."""

    per_minute: float
    level: float
    at_s: float

    def wait_s(self, units: float, now_s: float) -> float:
        """Seconds until so many units are there; no more than the bucket holds are waited for."""
        self._fill(now_s)
        missing = min(units, self.per_minute) - self.level
        return max(0.0, missing / self.per_minute * _MINUTE_S)

    def take(self, units: float, now_s: float) -> None:
        self._fill(now_s)
        self.level -= units

    def _fill(self, now_s: float) -> None:
        self.level = min(self.per_minute, self.level + (now_s - self.at_s) * self.per_minute / _MINUTE_S)
        self.at_s = now_s


def _bucket(per_minute: float | None, now_s: float) -> Bucket | None:
    return None if per_minute is None else Bucket(per_minute, per_minute, now_s)


@dataclass(slots=True)
class Backoff:
    """Seconds before the nth retry: twice as long each time, up to a bound, with jitter downwards by half at most."""

    first_s: float
    longest_s: float
    retry_after_limit_s: float
    draw: Callable[[], float] = random.random

    def delay_s(self, retry: int, asked_s: float | None = None) -> float:
        """retry: 1 is the first. asked_s: what the server wants, which is waited for even if it is longer."""
        doubled = self.first_s * float(1 << min(retry - 1, 30))
        own_s = min(self.longest_s, doubled) * (0.5 + self.draw() / 2)
        return own_s if asked_s is None else max(own_s, min(asked_s, self.retry_after_limit_s))


@dataclass(slots=True)
class Pace:
    """The turns of one worker's requests, in the order in which they asked. For the tasks of one event loop."""

    requests_per_minute: float | None
    tokens_per_minute: float | None
    now_s: Callable[[], float]
    _requests: Bucket | None = field(init=False)
    _tokens: Bucket | None = field(init=False)
    _not_before_s: float = 0.0
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self._requests = _bucket(self.requests_per_minute, self.now_s())
        self._tokens = _bucket(self.tokens_per_minute, self.now_s())

    async def turn(self, tokens: int) -> None:
        """Wait until a request that costs so many tokens may be sent."""
        async with self._turn:
            while (wait_s := self._wait_s(tokens)) > 0:
                await asyncio.sleep(wait_s)
            if self._requests is not None:
                self._requests.take(1, self.now_s())
            self.spend(tokens)

    def _wait_s(self, tokens: int) -> float:
        now_s = self.now_s()
        waits = [self._not_before_s - now_s]
        if self._requests is not None:
            waits.append(self._requests.wait_s(1, now_s))
        if self._tokens is not None:
            waits.append(self._tokens.wait_s(tokens, now_s))
        return max(waits)

    def spend(self, tokens: int) -> None:
        """Count tokens of an answer that came."""
        if self._tokens is not None:
            self._tokens.take(tokens, self.now_s())

    def hold(self, seconds: float) -> None:
        """The server asked this worker to wait: no request of any slot is sent before."""
        self._not_before_s = max(self._not_before_s, self.now_s() + seconds)
