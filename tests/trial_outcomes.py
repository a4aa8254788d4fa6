"""Outcomes of jobs as a queue notes them, drawn for tests of a trial."""

from __future__ import annotations

import random
from itertools import count

from headpond.jobs import JobState
from headpond.switching import Outcome

_ids = count()


def ended(
    version: str,
    state: JobState = JobState.FINISHED,
    first_token_ms: int | None = 100,
    tokens: int = 41,
    made: int = 41,
    generate_ms: int = 900,
) -> Outcome:
    """Of a job of its own."""
    return Outcome(f"chat/{next(_ids)}", version, state, first_token_ms, tokens, made, generate_ms)


def drawn(
    version: str,
    jobs: int,
    *,
    generator: random.Random,
    fails: float = 0.02,
    first_token_ms: float = 120.0,
    token_ms: float = 20.0,
) -> list[Outcome]:
    """Jobs that fail with this chance, and whose times scatter as those of real servers do: log-normally."""
    found = []
    for _ in range(jobs):
        if generator.random() < fails:
            found.append(ended(version, JobState.FAILED, None, 0, 0, 50))
            continue
        first = round(first_token_ms * generator.lognormvariate(0, 0.5))
        made = generator.randint(20, 200)
        took = round(token_ms * generator.lognormvariate(0, 0.3) * (made - 1))
        found.append(ended(version, JobState.FINISHED, first, made, made, first + took))
    return found
