"""How two versions of a model do: shares, medians, and how sure they are, from how their jobs ended. Pure.

A share has Wilson's interval. A median has that of order statistics: for some rank r the r-th smallest and the r-th
largest value, which hold it between them with at least the given confidence whatever the values are like. It is exact,
and needs no draws, so that the same outcomes give the same figures to everybody.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist, median

from headpond.jobs import JobState
from headpond.switching import Outcome

SHOWN_CONFIDENCE = 0.95
FAILURES = frozenset({JobState.FAILED, JobState.DEAD})
"""What a version can be to blame for. Cancelled and expired jobs count on neither side."""


@dataclass(frozen=True, slots=True)
class Figure:
    """value: the share, or the median. low, high: of its interval; infinite where there are too few values for one.
    count: how many values."""

    value: float
    low: float
    high: float
    count: int

    @property
    def bounded(self) -> bool:
        """Whether the interval says anything."""
        return math.isfinite(self.low) and math.isfinite(self.high)


@dataclass(frozen=True, slots=True)
class SideFigures:
    """One version.

    jobs: that ended, finished or failed. failed: of these. failed_share: 0 to 1. first_token_ms: from the last lease to
    its first token. token_ms: between two tokens, of jobs with two and more under their last lease. tokens_per_s: the
    same, the other way round. answer_tokens: of finished jobs. None where no job has such a value.
    """

    version: str
    jobs: int
    failed: int
    failed_share: Figure | None
    first_token_ms: Figure | None
    token_ms: Figure | None
    tokens_per_s: Figure | None
    answer_tokens: Figure | None


@dataclass(frozen=True, slots=True)
class TrialFigures:
    """Both sides of a trial."""

    trial: SideFigures
    other: SideFigures


def figures_of(
    outcomes: Iterable[Outcome], *, trial: str, other: str, confidence: float = SHOWN_CONFIDENCE
) -> TrialFigures:
    """trial, other: names of the versions. Outcomes of a third one are passed over."""
    of_trial: list[Outcome] = []
    of_other: list[Outcome] = []
    for outcome in outcomes:
        if outcome.version == trial:
            of_trial.append(outcome)
        elif outcome.version == other:
            of_other.append(outcome)
    return TrialFigures(
        side_of(trial, of_trial, confidence=confidence), side_of(other, of_other, confidence=confidence)
    )


def side_of(version: str, outcomes: Sequence[Outcome], *, confidence: float = SHOWN_CONFIDENCE) -> SideFigures:
    ended = [o for o in outcomes if o.state is JobState.FINISHED or o.state in FAILURES]
    failed = sum(o.state in FAILURES for o in ended)
    between = [
        (o.generate_ms - o.first_token_ms) / (o.made - 1)
        for o in ended
        if o.first_token_ms is not None and o.made > 1 and o.generate_ms > o.first_token_ms
    ]
    return SideFigures(
        version,
        len(ended),
        failed,
        share(failed, len(ended), confidence=confidence),
        median_of([o.first_token_ms for o in ended if o.first_token_ms is not None], confidence=confidence),
        median_of(between, confidence=confidence),
        median_of([1000 / ms for ms in between], confidence=confidence),
        median_of([o.tokens for o in ended if o.state is JobState.FINISHED], confidence=confidence),
    )


def share(hits: int, count: int, *, confidence: float = SHOWN_CONFIDENCE) -> Figure | None:
    """hits of count, with Wilson's interval. None of nothing."""
    if not count:
        return None
    z, p = NormalDist().inv_cdf((1 + confidence) / 2), hits / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    # At the ends the interval begins with the share itself, which rounding would miss.
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    return Figure(p, low, 1.0 if hits == count else min(1.0, centre + half), count)


def median_of(values: Sequence[float], *, confidence: float = SHOWN_CONFIDENCE) -> Figure | None:
    """None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    rank = median_rank(len(ordered), confidence)
    low, high = (-math.inf, math.inf) if rank == 0 else (ordered[rank - 1], ordered[-rank])
    return Figure(median(ordered), low, high, len(ordered))


@lru_cache(maxsize=4096)
def median_rank(count: int, confidence: float) -> int:
    """The largest r for which the r-th smallest and the r-th largest of `count` values hold the median between them
    with this confidence; 0 if none does."""
    # How many values lie below the median is binomial with 1/2; fewer than r do with the chance `below`.
    allowed, below, rank = (1 - confidence) / 2, 0.0, 0
    while 2 * (rank + 1) <= count:
        log_ways = math.lgamma(count + 1) - math.lgamma(rank + 1) - math.lgamma(count - rank + 1)
        below += math.exp(log_ways - count * math.log(2))
        if below > allowed:
            break
        rank += 1
    return rank
