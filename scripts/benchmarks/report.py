"""Tables from the raw samples: what docs/benchmarks.md shows, and what a command prints. No I/O.

The goals stand here. A ratio or difference is made within each pair; its median and interval are over the pairs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from document import Document, Kind, Measurement
from pairs import MIN_PAIRS, Direction, Estimate, Goal, Verdict, estimate_median, percentile

BEGIN = "<!-- generated: begin. Do not edit; run scripts/bench render -->"
END = "<!-- generated: end -->"
BENCHMARKS = {
    "queue": "Queue: how long a job waits for an idle worker",
    "generate": "Generate: what headpond costs beside the engine alone",
    "engine": "Engine: what the loop around exllamav2 costs",
}

PICKUP_P50_GOAL = Goal(Direction.AT_MOST, 3.0)
PICKUP_RATIO_GOAL = Goal(Direction.AT_LEAST, 15.0)
THROUGHPUT_GOALS = {
    "scripted": Goal(Direction.AT_LEAST, 0.97),
    "llama.cpp": Goal(Direction.AT_LEAST, 0.95),
    "SmolLM2-135M on exllamav2": Goal(Direction.AT_LEAST, 0.97),
}
"""By how the name of a measurement begins. Another has no goal."""
FIRST_TOKEN_GOAL = Goal(Direction.AT_MOST, 5.0)
STEP_GAP_GOAL = Goal(Direction.AT_MOST, 1.0)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table. estimate: what is compared with the goal; None where there is nothing to compare."""

    what: str
    headpond: float
    peer: float
    unit: str
    compared: str = ""
    estimate: Estimate | None = None
    goal: Goal | None = None

    @property
    def verdict(self) -> Verdict | None:
        return self.goal.judge(self.estimate) if self.goal and self.estimate else None


def rows_of(measurement: Measurement) -> list[Row]:
    """Raises KeyError or ValueError if the samples are not those of its kind."""
    return _ROWS[measurement.kind](measurement)


def _pickup(measurement: Measurement) -> list[Row]:
    ours, theirs = _samples(measurement, "pickup_ms")
    p50s = _percentiles(ours, theirs, 0.5)
    mine, other = _medians(p50s)
    return [
        Row("p50", mine, other, "ms", "times quicker", estimate_median([b / a for a, b in p50s]), PICKUP_RATIO_GOAL),
        Row("p50 of headpond by itself", mine, other, "ms", "ms", estimate_median([a for a, _ in p50s]),
            PICKUP_P50_GOAL),
        Row("p99 of all samples", percentile(_all(ours), 0.99), percentile(_all(theirs), 0.99), "ms"),
    ]  # fmt: skip


def _throughput(measurement: Measurement) -> list[Row]:
    rates = [
        (pair.headpond["tokens"] / pair.headpond["seconds"], pair.peer["tokens"] / pair.peer["seconds"])
        for pair in measurement.pairs
    ]
    mine, other = _medians(rates)
    goal = next((goal for name, goal in THROUGHPUT_GOALS.items() if measurement.name.startswith(name)), None)
    return [Row("throughput", mine, other, "tokens/s", "of it", estimate_median([a / b for a, b in rates]), goal)]


def _first_token(measurement: Measurement) -> list[Row]:
    ours, theirs = _samples(measurement, "first_token_ms")
    p50s = _percentiles(ours, theirs, 0.5)
    mine, other = _medians(p50s)
    return [
        Row("p50", mine, other, "ms", "ms added", estimate_median([a - b for a, b in p50s]), FIRST_TOKEN_GOAL),
        Row("p99 of all samples", percentile(_all(ours), 0.99), percentile(_all(theirs), 0.99), "ms"),
    ]


def _step_gap(measurement: Measurement) -> list[Row]:
    ours, theirs = _samples(measurement, "gap_ms")
    gap_p50s, gap_p99s = _percentiles(ours, theirs, 0.5), _percentiles(ours, theirs, 0.99)
    turn_p99s = _percentiles(*_samples(measurement, "turn_ms"), 0.99)
    return [
        Row("p99 of headpond by itself", *_medians(gap_p99s), "ms", "ms", estimate_median([a for a, _ in gap_p99s]),
            STEP_GAP_GOAL),
        Row("p50", *_medians(gap_p50s), "ms", "ms added", estimate_median([a - b for a, b in gap_p50s])),
        Row("p99 from a step's call to the next one's", *_medians(turn_p99s), "ms", "ms added",
            estimate_median([a - b for a, b in turn_p99s])),
    ]  # fmt: skip


_ROWS: dict[Kind, Callable[[Measurement], list[Row]]] = {
    Kind.PICKUP: _pickup,
    Kind.THROUGHPUT: _throughput,
    Kind.FIRST_TOKEN: _first_token,
    Kind.STEP_GAP: _step_gap,
}


def _samples(measurement: Measurement, name: str) -> tuple[list[list[float]], list[list[float]]]:
    return [p.headpond[name] for p in measurement.pairs], [p.peer[name] for p in measurement.pairs]


def _percentiles(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], share: float
) -> list[tuple[float, float]]:
    """(headpond's, the peer's) of each pair."""
    return [(percentile(a, share), percentile(b, share)) for a, b in zip(ours, theirs, strict=True)]


def _medians(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(headpond's, the peer's) over the pairs."""
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def _all(runs: Sequence[Sequence[float]]) -> list[float]:
    return [sample for run in runs for sample in run]


def render(documents: Sequence[tuple[str, Document | None]]) -> str:
    """The generated part of docs/benchmarks.md, for each benchmark its document; None: it was not run."""
    return "\n".join(_section(name, document) for name, document in documents)


def replace_generated(page: str, generated: str) -> str:
    """The page with its generated part anew. Raises ValueError if the markers are not there, in order, once each."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in tail or END in head:
        raise ValueError(f"docs/benchmarks.md must hold, once each and in this order: {BEGIN} {END}")
    return f"{head}{BEGIN}\n\n{generated}\n{END}{tail}"


def _section(name: str, document: Document | None) -> str:
    title = f"## {BENCHMARKS.get(name, name)}\n\n"
    if document is None:
        return f"{title}Not run yet. To run it: `scripts/bench {name}`\n"
    return title + _provenance(document) + "".join(map(_table, document.measurements))


def _provenance(document: Document) -> str:
    machine = document.machine
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    changes = {True: ", with changes that are in no commit", False: "", None: ""}[machine["dirty"]]
    quick = "A quick run, which proves nothing. " if document.quick else ""
    return (
        f"{quick}Measured {document.started[:10]} at commit `{(machine['commit'] or 'unknown')[:12]}`{changes}, on "
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB, {machine['system']}; load average "
        f"as it began {machine['load_before']:g}. Python {machine['python']}, {versions}. It took "
        f"{document.seconds:.0f} s; seed {document.seed}. Raw samples: "
        f"[{document.benchmark}.json](benchmarks/{document.benchmark}.json).\n\n"
    )


def _table(measurement: Measurement) -> str:
    lines = [
        f"### {measurement.name[0].upper()}{measurement.name[1:]}\n",
        f"- Both: {measurement.workload}.",
        f"- headpond: {measurement.headpond}.",
        f"- Peer: {measurement.peer}.\n",
        "| | headpond | peer | median of the pairs (95 % interval) | goal | |",
        "|---|---|---|---|---|---|",
        *map(_line, rows_of(measurement)),
    ]
    return "\n".join(lines) + "\n\n"


def _line(row: Row) -> str:
    cells = [row.what, f"{_number(row.headpond)} {row.unit}", f"{_number(row.peer)} {row.unit}"]
    if row.estimate is None:
        cells += ["", "", ""]
    else:
        e = row.estimate
        cells.append(f"{_number(e.median)} ({_number(e.low)} to {_number(e.high)}) {row.compared}")
        cells.append(f"{row.goal.direction.value} {row.goal.bound:g}" if row.goal else "")
        few = f" ({e.pairs} pairs; {MIN_PAIRS} are needed)" if e.pairs < MIN_PAIRS else ""
        cells.append(f"{row.verdict.value}{few}" if row.verdict else "")
    return f"| {' | '.join(cells)} |"


def _number(value: float) -> str:
    """Three significant digits, and never fewer decimals than a ratio of about 1 needs."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    if 0 < abs(value) < 0.1:
        return f"{value:.4f}"
    return f"{value:.3f}" if 0.1 <= abs(value) < 2 else f"{value:.2f}"


def summary(document: Document) -> list[dict[str, object]]:
    """The rows of all measurements for programs."""
    return [
        {
            "measurement": measurement.name,
            "what": row.what,
            "headpond": row.headpond,
            "peer": row.peer,
            "unit": row.unit,
            "compared": row.compared or None,
            "median": row.estimate.median if row.estimate else None,
            "interval": [row.estimate.low, row.estimate.high] if row.estimate else None,
            "goal": f"{row.goal.direction.value} {row.goal.bound:g}" if row.goal else None,
            "verdict": row.verdict.value if row.verdict else None,
        }
        for measurement in document.measurements
        for row in rows_of(measurement)
    ]
