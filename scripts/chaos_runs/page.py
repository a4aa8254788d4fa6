"""The generated part of docs/reliability.md, from the records beside it. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from faults import KILLS, FaultKind
from machine_steps import MachineRun, render_steps
from record import Record

BEGIN = "<!-- generated: begin. Do not edit; run scripts/chaos render -->"
END = "<!-- generated: end -->"


def render(records: Sequence[tuple[str, Record]]) -> str:
    """records: with the names of their files."""
    if not records:
        return "No run is recorded yet. To make one: `scripts/chaos --kills 1000 --json docs/reliability/chaos.json`\n"
    kills = sum(record.counted()[kind] for _, record in records for kind in KILLS)
    wrong = sum(len(record.wrong) for _, record in records)
    jobs = sum(len(record.jobs) for _, record in records)
    lines = [
        f"**{kills:,} counted kills in {len(records)} runs, {jobs:,} jobs; {wrong or 'nothing'} went wrong.**\n",
        "| run | kills: worker | kills: server | stops | cuts | jobs | most leases of a job | tokens | read | compared "
        "with an undisturbed run | wrong |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(_row(name, record) for name, record in records),
        "",
        *(line for name, record in records for line in _details(name, record)),
    ]
    return "\n".join(lines)


def generated(records: Sequence[tuple[str, Record]], runs: list[MachineRun]) -> str:
    """All of the generated part."""
    return f"{render(records)}\n\n{render_steps(runs)}"


def replace_between(text: str, generated: str, begin: str, end: str) -> str:
    """The page with the part between two markers anew. Raises ValueError if the markers are not there, in order, once
    each."""
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed or begin in rest or end in tail or end in head:
        raise ValueError(f"docs/reliability.md must hold, once each and in this order: {begin} {end}")
    return f"{head}{begin}\n\n{generated}\n{end}{tail}"


def _row(name: str, record: Record) -> str:
    counted = record.counted()
    cells = [
        f"[{name.removesuffix('.json')}](reliability/{name})",
        *(f"{counted[kind]:,}" for kind in FaultKind),
        f"{len(record.jobs):,}",
        f"{max(record.column('attempts'), default=0)}",
        f"{sum(record.column('tokens')):,}",
        f"{record.readings['tokens']:,}",
        f"{record.undisturbed:,}" if record.undisturbed else "not promised",
        f"{len(record.wrong)}",
    ]
    return f"| {' | '.join(cells)} |"


def _details(name: str, record: Record) -> list[str]:
    machine, p = record.machine, record.parameters
    changes = ", with changes that are in no commit" if machine["dirty"] else ""
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    ends = len(record.faults) - sum(record.counted().values())
    return [
        f"- `{name.removesuffix('.json')}`: engine {record.engine}, seed {record.seed}, {record.started[:10]}, commit "
        f"`{(machine['commit'] or 'unknown')[:12]}`{changes}. {p['workers']} workers of {p['slots']} slots, "
        f"{p['jobs']} jobs waiting or running, lease {p['lease_s']:g} s, a fault every {p['interval_s']:g} s on "
        f"average, of the kinds {', '.join(p['kinds'])}, for {record.seconds:.0f} s; {record.workers_started:,} worker "
        f"processes; {ends} faults did not count. {record.readings['readings']:,} readings, "
        f"{record.readings['restarted']} chunks of them restarted. {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']:g} GiB, Python {machine['python']}, {versions}.",
        *(f"    - {what}" for what in record.wrong),
    ]
