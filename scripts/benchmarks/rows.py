"""Lines of the tables, and what they are made from: values of pairs. No I/O."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from document import Measurement, Samples
from pairs import Estimate, Goal, Verdict, estimate_median, percentile

Both = list[tuple[float, float]]
"""(headpond's, the peer's) of each pair."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table. peer: None where there is none. estimate: what is compared with the goal; None where there
    is nothing to compare."""

    what: str
    headpond: float
    peer: float | None
    unit: str
    compared: str = ""
    estimate: Estimate | None = None
    goal: Goal | None = None

    @property
    def verdict(self) -> Verdict | None:
        return self.goal.judge(self.estimate) if self.goal and self.estimate else None


def by_pair(measurement: Measurement, of: Callable[[Samples], float]) -> Both:
    """One value of each side of each pair."""
    return [(of(pair.headpond), of(pair.peer)) for pair in measurement.pairs]


def ratio(what: str, both: Both, unit: str, goal: Goal | None = None) -> Row:
    """headpond's share of the peer's, made within each pair."""
    return Row(what, *medians(both), unit, "of it", estimate_median([ours / theirs for ours, theirs in both]), goal)


def itself(what: str, both: Both, unit: str, goal: Goal | None = None) -> Row:
    """headpond's own value is what the goal is about; the peer's stands beside it."""
    return Row(what, *medians(both), unit, unit, estimate_median([ours for ours, _ in both]), goal)


def alone(what: str, ours: Sequence[float], unit: str, goal: Goal | None = None) -> Row:
    """headpond's own value, where there is no peer."""
    return Row(what, statistics.median(ours), None, unit, unit, estimate_median(ours), goal)


def samples_of(measurement: Measurement, name: str) -> tuple[list[list[float]], list[list[float]]]:
    return [p.headpond[name] for p in measurement.pairs], [p.peer[name] for p in measurement.pairs]


def percentiles(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], share: float) -> Both:
    return [(percentile(a, share), percentile(b, share)) for a, b in zip(ours, theirs, strict=True)]


def medians(both: Both) -> tuple[float, float]:
    """(headpond's, the peer's) over the pairs."""
    return statistics.median(a for a, _ in both), statistics.median(b for _, b in both)


def flat(runs: Sequence[Sequence[float]]) -> list[float]:
    return [sample for run in runs for sample in run]
