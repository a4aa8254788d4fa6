"""Tables from the raw samples: what docs/benchmarks.md shows, and what a command prints. No I/O.

The goals stand here, in `queue_rows`, `peer_rows`, `storage_rows` and `storage_state_rows`. A ratio or difference is
made within each pair; its median and interval are over the pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from document import Document, Kind, Measurement
from pairs import MIN_PAIRS, Direction, Goal, estimate_median, percentile
from peer_rows import PEER_ROWS
from queue_rows import QUEUE_ROWS
from rows import Row, flat, medians, percentiles, samples_of
from storage_rows import STORAGE_ROWS
from storage_state_rows import STATE_ROWS

BEGIN = "<!-- generated: begin. Do not edit; run scripts/bench render -->"
END = "<!-- generated: end -->"
BENCHMARKS = {
    "queue": "Queue: beside dramatiq's own broker, and beside raw commands",
    "generate": "Generate: what headpond costs beside the engine alone",
    "engine": "Engine: what the loop around exllamav2 costs",
    "peers": "Peers: the same model served by others",
    "storage": "Storage: versions of models, beside boto3 alone",
    "state": "State: what it costs to keep it in storage, and how it comes back",
}

QUEUE_NAMES = tuple(kind.value for kind in QUEUE_ROWS)
"""What `scripts/bench queue` measures, in its order."""
PEER_NAMES = tuple(kind.value for kind in PEER_ROWS)
"""What `scripts/bench peers` measures, in its order."""
STORAGE_NAMES = tuple(kind.value for kind in STORAGE_ROWS)
"""What `scripts/bench storage` measures, in its order."""
STATE_NAMES = tuple(kind.value for kind in STATE_ROWS)
"""What `scripts/bench state` measures, in its order."""
NAMES = {"queue": QUEUE_NAMES, "peers": PEER_NAMES, "storage": STORAGE_NAMES, "state": STATE_NAMES}
"""Of the benchmarks that can be run in part."""

THROUGHPUT_GOALS = {
    "scripted": Goal(Direction.AT_LEAST, 0.97),
    "llama.cpp": Goal(Direction.AT_LEAST, 0.95),
    "SmolLM2-135M on exllamav2": Goal(Direction.AT_LEAST, 0.97),
}
"""By how the name of a measurement begins. Another has no goal."""
FIRST_TOKEN_GOAL = Goal(Direction.AT_MOST, 5.0)
STEP_GAP_GOAL = Goal(Direction.AT_MOST, 1.0)


def rows_of(measurement: Measurement) -> list[Row]:
    """Raises KeyError or ValueError if the samples are not those of its kind."""
    return _ROWS[measurement.kind](measurement)


def _throughput(measurement: Measurement) -> list[Row]:
    rates = [
        (pair.headpond["tokens"] / pair.headpond["seconds"], pair.peer["tokens"] / pair.peer["seconds"])
        for pair in measurement.pairs
    ]
    mine, other = medians(rates)
    goal = next((goal for name, goal in THROUGHPUT_GOALS.items() if measurement.name.startswith(name)), None)
    return [Row("throughput", mine, other, "tokens/s", "of it", estimate_median([a / b for a, b in rates]), goal)]


def _first_token(measurement: Measurement) -> list[Row]:
    ours, theirs = samples_of(measurement, "first_token_ms")
    p50s = percentiles(ours, theirs, 0.5)
    mine, other = medians(p50s)
    return [
        Row("p50", mine, other, "ms", "ms added", estimate_median([a - b for a, b in p50s]), FIRST_TOKEN_GOAL),
        Row("p99 of all samples", percentile(flat(ours), 0.99), percentile(flat(theirs), 0.99), "ms"),
    ]


def _step_gap(measurement: Measurement) -> list[Row]:
    ours, theirs = samples_of(measurement, "gap_ms")
    gap_p50s, gap_p99s = percentiles(ours, theirs, 0.5), percentiles(ours, theirs, 0.99)
    turn_p99s = percentiles(*samples_of(measurement, "turn_ms"), 0.99)
    return [
        Row("p99 of headpond by itself", *medians(gap_p99s), "ms", "ms", estimate_median([a for a, _ in gap_p99s]),
            STEP_GAP_GOAL),
        Row("p50", *medians(gap_p50s), "ms", "ms added", estimate_median([a - b for a, b in gap_p50s])),
        Row("p99 from a step's call to the next one's", *medians(turn_p99s), "ms", "ms added",
            estimate_median([a - b for a, b in turn_p99s])),
    ]  # fmt: skip


_ROWS: dict[Kind, Callable[[Measurement], list[Row]]] = {
    **QUEUE_ROWS,
    **PEER_ROWS,
    **STORAGE_ROWS,
    **STATE_ROWS,
    Kind.THROUGHPUT: _throughput,
    Kind.FIRST_TOKEN: _first_token,
    Kind.STEP_GAP: _step_gap,
}


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


def missing(document: Document) -> list[str]:
    """Names of the measurements of a benchmark that a document lacks."""
    made = {measurement.kind.value for measurement in document.measurements}
    return [name for name in NAMES.get(document.benchmark, ()) if name not in made]


def _section(name: str, document: Document | None) -> str:
    title = f"## {BENCHMARKS.get(name, name)}\n\n"
    if document is None:
        return f"{title}Not run yet. To run it: `scripts/bench {name}`\n"
    return title + _provenance(document) + _not_run(document) + "".join(map(_table, document.measurements))


def _not_run(document: Document) -> str:
    lacks = missing(document)
    left_out = "".join(f"Not run: {name}. {_one_line(why)}\n\n" for name, why in document.not_run.items())
    if not lacks:
        return left_out
    return f"{left_out}Not run yet: {', '.join(lacks)}. To run everything: `scripts/bench {document.benchmark}`\n\n"


def _one_line(reason: str) -> str:
    return " ".join(reason.split())


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
    peer = "" if row.peer is None else f"{_number(row.peer)} {row.unit}"
    cells = [row.what, f"{_number(row.headpond)} {row.unit}", peer]
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
