"""What is reported of `queue`, with its goals. No I/O."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from document import Kind, Measurement, Samples
from pairs import Direction, Goal, estimate_median, percentile
from rows import Row, by_pair, flat, itself, percentiles, ratio, samples_of

PICKUP_P50_GOAL = Goal(Direction.AT_MOST, 2.0)
PICKUP_P99_GOAL = Goal(Direction.AT_MOST, 10.0)
PICKUP_RATIO_GOAL = Goal(Direction.AT_MOST, 0.05)
SLOT_GAP_GOAL = Goal(Direction.AT_MOST, 3.0)
ENQUEUE_GOAL = Goal(Direction.AT_LEAST, 1.0)
ENQUEUE_MANY_GOAL = Goal(Direction.AT_LEAST, 3.0)
NO_OP_GOAL = Goal(Direction.AT_LEAST, 1.5)
SCRIPT_CALLS_GOAL = Goal(Direction.AT_MOST, 0.5)
APPEND_1_GOAL = Goal(Direction.AT_LEAST, 0.9)
APPEND_8_GOAL = Goal(Direction.AT_LEAST, 5.0)
READER_P50_GOAL = Goal(Direction.AT_MOST, 3.0)
RECOVERY_SPARE_S = 1.0
"""A crash is recovered from within the lease and this."""
IDLE_GOAL = Goal(Direction.AT_MOST, 1.0)
MEMORY_GOAL = Goal(Direction.AT_MOST, 1400.0)
CLAIM_GOAL = Goal(Direction.AT_MOST, 2.0)


def _pickup(measurement: Measurement) -> list[Row]:
    ours, theirs = samples_of(measurement, "pickup_ms")
    p50s, p99s = percentiles(ours, theirs, 0.5), percentiles(ours, theirs, 0.99)
    return [
        ratio("p50", p50s, "ms", PICKUP_RATIO_GOAL),
        itself("p50 of headpond by itself", p50s, "ms", PICKUP_P50_GOAL),
        itself("p99 of headpond by itself, of each run", p99s, "ms", PICKUP_P99_GOAL),
        Row("p99 of all samples", percentile(flat(ours), 0.99), percentile(flat(theirs), 0.99), "ms"),
    ]


def _slot_gap(measurement: Measurement) -> list[Row]:
    means = by_pair(measurement, lambda samples: statistics.fmean(samples["gap_ms"]))
    ours, theirs = samples_of(measurement, "gap_ms")
    return [
        itself("mean of headpond by itself", means, "ms", SLOT_GAP_GOAL),
        ratio("mean", means, "ms"),
        Row("longest of all", max(flat(ours)), max(flat(theirs)), "ms"),
    ]


def _jobs_per_s(samples: Samples) -> float:
    return float(samples["jobs"] / samples["seconds"])


def _enqueue(measurement: Measurement) -> list[Row]:
    return [ratio("rate", by_pair(measurement, _jobs_per_s), "jobs/s", ENQUEUE_GOAL)]


def _enqueue_many(measurement: Measurement) -> list[Row]:
    return [ratio("rate", by_pair(measurement, _jobs_per_s), "jobs/s", ENQUEUE_MANY_GOAL)]


def _no_op(measurement: Measurement) -> list[Row]:
    calls = by_pair(measurement, lambda samples: samples["script_calls"] / samples["jobs"])
    return [
        ratio("rate", by_pair(measurement, _jobs_per_s), "jobs/s", NO_OP_GOAL),
        itself("script calls of headpond by itself", calls, "a job", SCRIPT_CALLS_GOAL),
    ]


def _append(measurement: Measurement) -> list[Row]:
    def rate(tokens: int) -> Callable[[Samples], float]:
        return lambda samples: samples[f"tokens_{tokens}"] / samples[f"seconds_{tokens}"]

    one, eight = by_pair(measurement, rate(1)), by_pair(measurement, rate(8))
    many_beside_single = [(ours, single) for (ours, _), (_, single) in zip(eight, one, strict=True)]
    return [
        ratio("1 token an entry", one, "tokens/s", APPEND_1_GOAL),
        ratio("8 tokens an entry, beside XADDs of 1 token", many_beside_single, "tokens/s", APPEND_8_GOAL),
        ratio("8 tokens an entry, beside XADDs of 8 tokens", eight, "tokens/s"),
    ]


def _reader(measurement: Measurement) -> list[Row]:
    ours, theirs = samples_of(measurement, "latency_ms")
    p50s = percentiles(ours, theirs, 0.5)
    return [
        itself("p50 of headpond by itself", p50s, "ms", READER_P50_GOAL),
        Row("p99 of all samples", percentile(flat(ours), 0.99), percentile(flat(theirs), 0.99), "ms"),
    ]


def _recovery(measurement: Measurement) -> list[Row]:
    (lease_s,) = {pair.headpond["lease_s"] for pair in measurement.pairs}
    times = [pair.headpond["recovered_s"] for pair in measurement.pairs]
    worst = [max(run) for run in times]
    goal = Goal(Direction.AT_MOST, lease_s + RECOVERY_SPARE_S)
    return [
        Row("the last job of a run", statistics.median(worst), None, "s", "s", estimate_median(worst), goal),
        Row("the last job of the slowest run", max(worst), None, "s"),
    ]


def _idle(measurement: Measurement) -> list[Row]:
    rates = by_pair(measurement, lambda samples: samples["commands"] / samples["seconds"])
    return [itself("headpond by itself", rates, "commands/s", IDLE_GOAL), ratio("commands", rates, "commands/s")]


def _memory(measurement: Measurement) -> list[Row]:
    sizes = by_pair(measurement, lambda samples: samples["bytes"] / samples["jobs"])
    return [itself("headpond by itself", sizes, "bytes", MEMORY_GOAL), ratio("memory", sizes, "bytes")]


def _claim(measurement: Measurement) -> list[Row]:
    def p50s(name: str) -> list[tuple[float, float]]:
        return [
            (percentile(pair.headpond[f"claim_{name}_ms"], 0.5), percentile(pair.peer["claim_1k_ms"], 0.5))
            for pair in measurement.pairs
        ]

    return [ratio("p50 at 1M", p50s("1m"), "ms", CLAIM_GOAL), ratio("p50 at 100k", p50s("100k"), "ms")]


QUEUE_ROWS: dict[Kind, Callable[[Measurement], list[Row]]] = {
    Kind.PICKUP: _pickup,
    Kind.SLOT_GAP: _slot_gap,
    Kind.ENQUEUE: _enqueue,
    Kind.ENQUEUE_MANY: _enqueue_many,
    Kind.NO_OP: _no_op,
    Kind.APPEND: _append,
    Kind.READER: _reader,
    Kind.RECOVERY: _recovery,
    Kind.IDLE: _idle,
    Kind.MEMORY: _memory,
    Kind.CLAIM: _claim,
}
"""In the order in which they run."""
