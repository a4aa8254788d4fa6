"""What is reported of `peers`, with its goals. No I/O."""

from __future__ import annotations

from collections.abc import Callable

from document import Kind, Measurement, Samples
from pairs import Direction, Estimate, Goal, percentile
from rows import Row, by_pair, flat, itself, medians, percentiles, ratio, samples_of

JOBS = {Kind.PEERS_1: 1, Kind.PEERS_4: 4, Kind.PEERS_8: 8}
"""How many are asked for at once, of each measurement of speed."""
SERVER_GOAL = Goal(Direction.AT_LEAST, 1.0)
DBGPT_GOAL = Goal(Direction.AT_LEAST, 1.5)
SPEED_GOALS = {
    (Kind.PEERS_8, "the bare HTTP server"): SERVER_GOAL,
    (Kind.PEERS_8, "DB-GPT"): DBGPT_GOAL,
    (Kind.PEERS_8, "DB-GPT with portable kernels"): DBGPT_GOAL,
}
"""By the measurement, and how the name ends that its peer has in it."""
LOSS_GOAL = Goal(Direction.AT_MOST, 0.0)


def _speed(measurement: Measurement) -> list[Row]:
    rates = by_pair(measurement, lambda samples: samples["tokens"] / samples["seconds"])
    ours, theirs = samples_of(measurement, "first_token_ms")
    goal = next(
        (
            goal
            for (kind, peer), goal in SPEED_GOALS.items()
            if kind is measurement.kind and measurement.name.endswith(peer)
        ),
        None,
    )
    return [
        ratio("throughput", rates, "tokens/s", goal),
        ratio("time to the first text, p50", percentiles(ours, theirs, 0.5), "ms"),
        Row("p99 of all samples", percentile(flat(ours), 0.99), percentile(flat(theirs), 0.99), "ms"),
    ]


def _crash(measurement: Measurement) -> list[Row]:
    def of(name: str) -> Callable[[Samples], float]:
        return lambda samples: float(samples[name])

    lines = medians(by_pair(measurement, of("code_lines")))
    return [
        _worst("jobs that the program had to ask for anew", measurement, "jobs_lost", "jobs"),
        _worst("tokens shown again", measurement, "tokens_again", "tokens"),
        _worst("tokens missing", measurement, "tokens_missing", "tokens"),
        itself("from the kill to the last answer, headpond by itself", by_pair(measurement, of("recovered_s")), "s"),
        Row("lines of the program", *lines, "lines"),
    ]


def _worst(what: str, measurement: Measurement, name: str, unit: str) -> Row:
    """A loss: the worst run of each side, for a median would hide the only one that lost anything."""
    ours, theirs = zip(*by_pair(measurement, lambda samples: float(samples[name])), strict=True)
    worst = max(ours)
    estimate = Estimate(worst, worst, worst, len(ours))
    return Row(f"{what}, worst run", worst, max(theirs), unit, unit, estimate, LOSS_GOAL)


PEER_ROWS: dict[Kind, Callable[[Measurement], list[Row]]] = {
    **dict.fromkeys(JOBS, _speed),
    Kind.PEERS_CRASH: _crash,
}
"""In the order in which they run."""
