"""What is reported of state in storage, with its goals. No I/O."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from document import Kind, Measurement, Samples
from pairs import Direction, Goal, estimate_median, percentile
from rows import Row, alone, by_pair, flat, medians, percentiles, ratio

SCRIPTED_PERSISTING_GOAL = Goal(Direction.AT_LEAST, 0.99)
LLAMACPP_PERSISTING_GOAL = Goal(Direction.AT_LEAST, 0.97)
OUTAGE_GOAL = Goal(Direction.AT_LEAST, 0.97)
LOSS_GOAL = Goal(Direction.AT_MOST, 1.0)
PUTS_GOAL = Goal(Direction.AT_MOST, 2.0)
RESTORE_GOAL = Goal(Direction.AT_MOST, 10.0)
LINEAR_GOAL = Goal(Direction.AT_MOST, 1.1)
STORED_PREFIX_GOAL = Goal(Direction.AT_LEAST, 5.0)


def _rate(samples: Samples) -> float:
    return float(samples["tokens"] / samples["seconds"])


def _throughput(goal: Goal) -> Callable[[Measurement], list[Row]]:
    def rows(measurement: Measurement) -> list[Row]:
        return [ratio("throughput", by_pair(measurement, _rate), "tokens/s", goal)]

    return rows


def _outage(measurement: Measurement) -> list[Row]:
    ends = [pair.headpond for pair in measurement.pairs if "caught_up_s" in pair.headpond]
    waiting, caught_up_s = (max(end[name] for end in ends) for name in ("waiting_entries", "caught_up_s"))
    return [
        ratio("throughput", by_pair(measurement, _rate), "tokens/s", OUTAGE_GOAL),
        Row("journal entries that waited at the end, at most", waiting, None, "entries"),
        Row("until they were in storage after it came back, at most", caught_up_s, None, "s"),
    ]


def _loss_window(measurement: Measurement) -> list[Row]:
    windows = [pair.headpond["window_s"] for pair in measurement.pairs]
    commits = [pair.peer["commit_s"] for pair in measurement.pairs]
    p99s = percentiles(windows, commits, 0.99)
    beyond = estimate_median([window - commit for window, commit in p99s])
    return [
        Row("p99 of each run, and of one commit", *medians(p99s), "s", "s beyond one commit", beyond, LOSS_GOAL),
        Row("p99 of all samples", percentile(flat(windows), 0.99), percentile(flat(commits), 0.99), "s"),
        Row("p50 of all samples", percentile(flat(windows), 0.5), percentile(flat(commits), 0.5), "s"),
    ]


def _puts(measurement: Measurement) -> list[Row]:
    ours = [pair.headpond for pair in measurement.pairs]
    seconds = sum(samples["seconds"] for samples in ours)
    return [
        alone("of each stretch", [samples["puts"] / samples["seconds"] for samples in ours], "puts/s", PUTS_GOAL),
        Row("of all together, snapshots too", sum(samples["puts"] for samples in ours) / seconds, None, "puts/s"),
    ]


def _restore(measurement: Measurement) -> list[Row]:
    few = [pair.peer for pair in measurement.pairs]
    many = [pair.headpond for pair in measurement.pairs]
    each_ms = [
        tuple(samples["seconds"] / samples["jobs"] * 1000 for samples in (pair.headpond, pair.peer))
        for pair in measurement.pairs
    ]
    peak_mib = statistics.median(samples["persister_peak_bytes"] for samples in many) / (1 << 20)
    return [
        alone(f"{few[0]['jobs']} jobs", [samples["seconds"] for samples in few], "s", RESTORE_GOAL),
        alone(f"{many[0]['jobs']} jobs", [samples["seconds"] for samples in many], "s"),
        ratio("for each job, of many and of few", [(ours, theirs) for ours, theirs in each_ms], "ms", LINEAR_GOAL),
        Row(f"memory of the persister that stored the {many[0]['jobs']}, at its peak", peak_mib, None, "MiB"),
    ]


def _stored_prefix(measurement: Measurement) -> list[Row]:
    rows = []
    for tier, name in (("local", "from the local disk"), ("storage", "from storage")):
        seconds = [(pair.headpond[f"{tier}_s"], pair.peer["prefill_s"]) for pair in measurement.pairs]
        rows.append(Row(f"first token, {name}", *medians(seconds), "s"))
        faster = [(1 / ours, 1 / theirs) for ours, theirs in seconds]
        rows.append(ratio(f"first tokens a second, {name}", faster, "/s", STORED_PREFIX_GOAL))
    return rows


STATE_ROWS: dict[Kind, Callable[[Measurement], list[Row]]] = {
    Kind.PERSISTING_SCRIPTED: _throughput(SCRIPTED_PERSISTING_GOAL),
    Kind.PERSISTING_LLAMACPP: _throughput(LLAMACPP_PERSISTING_GOAL),
    Kind.OUTAGE_SCRIPTED: _outage,
    Kind.OUTAGE_LLAMACPP: _outage,
    Kind.LOSS_WINDOW: _loss_window,
    Kind.PUTS: _puts,
    Kind.RESTORE: _restore,
    Kind.STORED_PREFIX: _stored_prefix,
}
