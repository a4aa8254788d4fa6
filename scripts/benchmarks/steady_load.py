"""A model of a deployment that is busy all the time, and how many tokens come in a stretch of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from both_sides import MODEL
from child import Child
from persisted_side import PersistedModel, await_that
from throughput import Load

ANSWER_TIMEOUT_S = 30.0
BEGIN_TIMEOUT_S = 60.0
SETTLE_S = 5.0
"""Until all jobs are on their way, at different tokens."""


@dataclass(frozen=True, slots=True)
class Count:
    """at_s: on time.monotonic(). tokens: that have come until then."""

    at_s: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """Between two counts."""

    seconds: float
    tokens: int

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


class SteadyLoad:
    def __init__(self, producer: Child) -> None:
        self._producer = producer

    def count_for(self, seconds: float) -> Stretch:
        """The next so many seconds. Raises BenchmarkError."""
        before = self.count()
        time.sleep(seconds)
        after = self.count()
        return Stretch(after.at_s - before.at_s, after.tokens - before.tokens)

    def count(self) -> Count:
        return Count(**self._producer.ask({}, timeout_s=ANSWER_TIMEOUT_S))


@contextmanager
def steady_load(model: PersistedModel, load: Load, folder: Path, *, settle_s: float = SETTLE_S) -> Iterator[SteadyLoad]:
    """Ask for answers of `load` all the time. Raises BenchmarkError."""
    setup = {"url": model.url, "model": MODEL, "prompts": load.prompts, "max_tokens": load.max_tokens}
    with Child("steady_producer.py", setup, log=folder / "steady.log") as producer:
        busy = SteadyLoad(producer)
        await_that(lambda: busy.count().tokens > 0, BEGIN_TIMEOUT_S, "the first token came")
        time.sleep(settle_s)
        yield busy
