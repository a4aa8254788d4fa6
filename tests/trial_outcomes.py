"""Outcomes of jobs as a queue notes them, drawn for tests of a trial."""

from __future__ import annotations

import random
from dataclasses import dataclass

from headpond.jobs import JobState


@dataclass(frozen=True)
class Ended:
    """What the figures need of an outcome."""

    version: str
    state: JobState = JobState.FINISHED
    first_token_ms: int | None = 100
    tokens: int = 41
    made: int = 41
    generate_ms: int = 900


def drawn(
    version: str,
    count: int,
    *,
    generator: random.Random,
    fails: float = 0.02,
    first_token_ms: float = 120.0,
    token_ms: float = 20.0,
) -> list[Ended]:
    """Jobs that fail with this chance, and whose times scatter as those of real servers do: log-normally."""
    found = []
    for _ in range(count):
        if generator.random() < fails:
            found.append(Ended(version, JobState.FAILED, None, 0, 0, 50))
            continue
        first = round(first_token_ms * generator.lognormvariate(0, 0.5))
        made = generator.randint(20, 200)
        took = sum((token_ms * generator.lognormvariate(0, 0.3),)) * (made - 1)
        found.append(Ended(version, JobState.FINISHED, first, made, made, first + round(took)))
    return found
