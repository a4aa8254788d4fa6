"""The generated part on state in storage of docs/reliability.md, from the records beside it. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from state_plan import KILLS, Blow
from state_record import LOSS_FIELDS, OUTAGE_FIELDS, Record

BEGIN = "<!-- generated from state: begin. Do not edit; run scripts/chaos state render -->"
END = "<!-- generated from state: end -->"


def render(records: Sequence[tuple[str, Record]]) -> str:
    """records: with the names of their files."""
    if not records:
        return "No run is recorded yet. To make one: `scripts/chaos state --json docs/reliability/state.json`\n"
    kills = sum(record.kills for _, record in records)
    losses = sum(len(record.losses) for _, record in records)
    jobs = sum(record.jobs["acknowledged"] for _, record in records)
    wrong = sum(len(record.wrong) for _, record in records)
    lines = [
        f"**{kills:,} counted kills in {len(records)} {'run' if len(records) == 1 else 'runs'}, all of Redis lost "
        f"{losses} times, {jobs:,} jobs; {wrong or 'nothing'} went wrong.**\n",
        f"| run | {' | '.join(f'kills: {kind}' for kind in KILLS)} | outages of storage | longest | cuts | jobs | that "
        'waited for storage (`durability="storage"`) | turns of sessions | that came back | comparisons | read | '
        "compared with an undisturbed run | wrong |",
        f"|{'---|' * (len(KILLS) + 12)}",
        *(_row(name, record) for name, record in records),
        "",
        "Each loss of Redis:\n",
        "| run | jobs in it | not ended | running | changes that storage lacked | from the time that is stated to the "
        "loss | acknowledged jobs lost | durable results compared | readers amid a job | kills of the restore |",
        f"|{'---|' * 10}",
        *(line for name, record in records for line in _losses(name, record)),
        "",
        *(line for name, record in records for line in _details(name, record)),
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, record: Record) -> str:
    counted = record.counted()
    lengths = [row[OUTAGE_FIELDS.index("lasts_s")] for row in record.outages]
    cells = [
        f"[{name.removesuffix('.json')}](reliability/{name})",
        *(f"{counted[kind]:,}" for kind in KILLS),
        f"{len(lengths)}",
        f"{max(lengths, default=0.0):.0f} s",
        f"{counted[Blow.CUT]}",
        *(f"{record.jobs[field]:,}" for field in ("acknowledged", "stored", "turns", "remade")),
        f"{len(record.comparisons) + len(record.losses)}",
        f"{record.readings['tokens']:,} tokens",
        f"{record.jobs['compared']:,}",
        f"{len(record.wrong)}",
    ]
    return f"| {' | '.join(cells)} |"


def _losses(name: str, record: Record) -> list[str]:
    lines = []
    for row in record.losses:
        loss = dict(zip(LOSS_FIELDS, row, strict=True))
        cells = [
            name.removesuffix(".json"), *(f"{loss[field]:,}" for field in ("jobs", "not_ended", "running", "tail")),
            f"{loss['interval_ms'] / 1000:.1f} s", *(f"{loss[f]:,}" for f in ("lost", "durable", "readers", "kills")),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _details(name: str, record: Record) -> list[str]:
    machine, p = record.machine, record.parameters
    changes = ", with changes that are in no commit" if machine["dirty"] else ""
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    waiting = f"{p['durable_producers']} of which wait{'s' * (p['durable_producers'] == 1)} for storage"
    if both := p.get("durable_talking_producers"):  # older records have none
        waiting += f", {both} of these with turns of sessions"
    return [
        f"- `{name.removesuffix('.json')}`: seed {record.seed}, {record.started[:10]}, commit "
        f"`{(machine['commit'] or 'unknown')[:12]}`{changes}, {record.seconds:.0f} s. {p['workers']} workers, "
        f"{p['persisters']} persisters, {p['producers']} producers, {waiting}; "
        f"lease {p['lease_s']:g} s, a blow every {p['interval_s']:g} s on average. {record.processes:,} processes; at "
        f"most {record.jobs['most_leases']} leases of a job; {record.jobs['unknown']} submits of which "
        f"it was not known in time whether storage had them. {record.readings['readings']:,} readings, "
        f"{record.readings['restarted']} chunks of them restarted, {record.readings['resumed']} tries to go on after a "
        f"loss. {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB, Python {machine['python']}, "
        f"{versions}.",
        *(f"    - {what}" for what in record.wrong),
    ]
