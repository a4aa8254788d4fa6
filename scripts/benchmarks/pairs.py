"""Pairs of runs, and what they prove: medians, intervals by the bootstrap, verdicts on goals. No I/O.

The speed of a machine drifts. So both sides run in turns, A B, B A, A B ..., each pair gives one ratio or difference
of its own, and only those are compared with a goal.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

T = TypeVar("T")

MIN_PAIRS = 10
"""Fewer are too few to speak of a goal."""
CONFIDENCE = 0.95
RESAMPLES = 10_000
_SEED = 20_260_101
"""Of the resampling alone, so that the same samples always give the same interval."""


class Order(StrEnum):
    """Which side of a pair ran first."""

    HEADPOND = "headpond"
    PEER = "peer"


@dataclass(frozen=True, slots=True)
class Pair(Generic[T]):
    first: Order
    headpond: T
    peer: T


def order_of(number: int) -> Order:
    """Pair 0 begins with headpond, pair 1 with the peer, and so on: what drifts in one direction cancels out."""
    return Order.HEADPOND if number % 2 == 0 else Order.PEER


def run_pairs(
    count: int,
    headpond: Callable[[int], T],
    peer: Callable[[int], T],
    *,
    done: Callable[[int, Pair[T]], None],
    begin: int = 0,
) -> list[Pair[T]]:
    """Run both sides in turns. Each is given the number of its pair, for its seed; done is told of each pair.

    begin: the number of the first pair, where a measurement is made in several parts.
    """
    pairs = []
    for number in range(begin, begin + count):
        first = order_of(number)
        if first is Order.HEADPOND:
            ours = headpond(number)
            theirs = peer(number)
        else:
            theirs = peer(number)
            ours = headpond(number)
        pair = Pair(first, ours, theirs)
        pairs.append(pair)
        done(number, pair)
    return pairs


def percentile(samples: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the samples lie, interpolated. Raises ValueError without samples."""
    if not samples:
        raise ValueError("a percentile of no samples")
    ordered = sorted(samples)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median and its 95 % interval. pairs: how many values it was made from."""

    median: float
    low: float
    high: float
    pairs: int


def estimate_median(values: Sequence[float]) -> Estimate:
    """The median of one value a pair, with a percentile interval of the bootstrap. Always the same for the same values.

    Raises ValueError without values.
    """
    if not values:
        raise ValueError("an estimate from no pairs")
    draw = random.Random(_SEED)  # noqa: S311 - a resampling, not a secret
    medians = [statistics.median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES)]
    tail = (1 - CONFIDENCE) / 2
    return Estimate(statistics.median(values), percentile(medians, tail), percentile(medians, 1 - tail), len(values))


class Direction(StrEnum):
    AT_LEAST = "at least"
    AT_MOST = "at most"


class Verdict(StrEnum):
    MET = "met"
    MISSED = "missed"
    NOT_RESOLVED = "not resolved"


@dataclass(frozen=True, slots=True)
class Goal:
    direction: Direction
    bound: float

    def judge(self, estimate: Estimate) -> Verdict:
        """Met or missed only if the whole interval is; not resolved where it reaches across the goal, or where there
        are fewer than MIN_PAIRS pairs."""
        if estimate.pairs < MIN_PAIRS:
            return Verdict.NOT_RESOLVED
        sign = 1 if self.direction is Direction.AT_LEAST else -1
        worst, best = sorted((sign * estimate.low, sign * estimate.high))
        if worst >= sign * self.bound:
            return Verdict.MET
        return Verdict.MISSED if best < sign * self.bound else Verdict.NOT_RESOLVED
