"""What is reported of `storage`, with its goals. No I/O."""

from __future__ import annotations

from collections.abc import Callable

from document import Kind, Measurement, Samples
from pairs import Direction, Goal, percentile
from rows import Both, Row, alone, by_pair, flat, itself, medians, percentiles, ratio, samples_of

PUSH_GOAL = Goal(Direction.AT_LEAST, 0.9)
PULL_GOAL = Goal(Direction.AT_LEAST, 0.85)
CHANGED_GOAL = Goal(Direction.AT_MOST, 1.05)
AGAIN_GOAL = Goal(Direction.AT_LEAST, 10.0)
ALIAS_P99_GOAL = Goal(Direction.AT_MOST, 100.0)
LEAST_THROUGHPUT_GOAL = Goal(Direction.AT_LEAST, 0.5)
FIRST_JOB_GOAL = Goal(Direction.AT_MOST, 1.0)


def _rate(samples: Samples) -> float:
    return float(samples["bytes"] / samples["seconds"] / 1e6)


def _push(measurement: Measurement) -> list[Row]:
    return [ratio("rate", by_pair(measurement, _rate), "MB/s", PUSH_GOAL)]


def _pull(measurement: Measurement) -> list[Row]:
    into_memory = [
        (_rate(pair.headpond), pair.peer["bytes"] / pair.peer["memory_s"] / 1e6) for pair in measurement.pairs
    ]
    return [
        ratio("rate", by_pair(measurement, _rate), "MB/s", PULL_GOAL),
        ratio("rate, beside the same GETs into memory alone, no file written", into_memory, "MB/s"),
    ]


def _beside(measurement: Measurement, ours: str, limit: str, *, scale: float = 1.0) -> Both:
    """Two values of headpond's own runs: the one that a goal is about, and what it is compared with."""
    return [(pair.headpond[ours] / scale, pair.headpond[limit] / scale) for pair in measurement.pairs]


def _changed(measurement: Measurement) -> list[Row]:
    return [
        ratio("bytes", _beside(measurement, "bytes", "changed_bytes", scale=1e6), "MB", CHANGED_GOAL),
        ratio(
            "bytes, with a grown header", _beside(measurement, "grown_bytes", "grown_changed_bytes", scale=1e6), "MB",
            CHANGED_GOAL,
        ),
    ]  # fmt: skip


def _again(measurement: Measurement) -> list[Row]:
    seconds = _beside(measurement, "seconds", "first_s")
    faster = [(1 / ours, 1 / first) for ours, first in seconds]
    return [
        Row("seconds", *medians(seconds), "s"),
        ratio("pushes a second", faster, "/s", AGAIN_GOAL),
    ]


def _alias(measurement: Measurement) -> list[Row]:
    ours, theirs = samples_of(measurement, "switch_ms")
    return [
        itself("p99 of headpond by itself, of each run", percentiles(ours, theirs, 0.99), "ms", ALIAS_P99_GOAL),
        Row("p50 of all samples", percentile(flat(ours), 0.5), percentile(flat(theirs), 0.5), "ms"),
        Row("p99 of all samples", percentile(flat(ours), 0.99), percentile(flat(theirs), 0.99), "ms"),
    ]


def _rollover(measurement: Measurement) -> list[Row]:
    ours = [pair.headpond for pair in measurement.pairs]
    shares = [samples["least_tokens_per_s"] / samples["before_tokens_per_s"] for samples in ours]
    beyond_s = [samples["first_s"] - samples["load_s"] for samples in ours]
    return [
        alone("least throughput, of that before", shares, "of it", LEAST_THROUGHPUT_GOAL),
        alone("first token of the new version, beyond a worker's loading", beyond_s, "s", FIRST_JOB_GOAL),
        alone("loading of a worker", [samples["load_s"] for samples in ours], "s"),
        alone("all workers changed", [samples["all_changed_s"] for samples in ours], "s"),
    ]


STORAGE_ROWS: dict[Kind, Callable[[Measurement], list[Row]]] = {
    Kind.PUSH: _push,
    Kind.PULL: _pull,
    Kind.CHANGED: _changed,
    Kind.PUSH_AGAIN: _again,
    Kind.ALIAS: _alias,
    Kind.ROLLOVER: _rollover,
}
