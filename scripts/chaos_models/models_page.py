"""The generated part on models of docs/reliability.md, from the records beside it. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from models_record import SURVEY_FIELDS, Record
from task_plan import TaskKind

BEGIN = "<!-- generated from models: begin. Do not edit; run scripts/chaos models render -->"
END = "<!-- generated from models: end -->"


def render(records: Sequence[tuple[str, Record]]) -> str:
    """records: with the names of their files."""
    if not records:
        return "No run is recorded yet. To make one: `scripts/chaos models --json docs/reliability/models.json`\n"
    kills = sum(sum(record.counted().values()) for _, record in records)
    wrong = sum(len(record.wrong) for _, record in records)
    versions = sum(record.versions["acknowledged"] for _, record in records)
    lost = sum(record.versions["lost"] for _, record in records)
    kinds = [kind for kind in TaskKind if any(record.counted()[kind] for _, record in records)]
    lines = [
        f"**{kills:,} counted kills in {len(records)} {'run' if len(records) == 1 else 'runs'}, {versions:,} "
        f"acknowledged versions; {lost} of them lost, {wrong or 'nothing'} went wrong.**\n",
        f"| run | {' | '.join(f'kills: {kind}' for kind in kinds)} | versions acknowledged | deleted | "
        "complete, nobody told | surveys | bytes read | wrong |",
        f"|{'---|' * (len(kinds) + 7)}",
        *(_row(name, record, kinds) for name, record in records),
        "",
        *_under_load([(name, record) for name, record in records if record.jobs]),
        *(line for name, record in records for line in _details(name, record)),
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, record: Record, kinds: Sequence[TaskKind]) -> str:
    counted = record.counted()
    read = sum(row[SURVEY_FIELDS.index("bytes_read")] for row in record.surveys)
    cells = [
        f"[{name.removesuffix('.json')}](reliability/{name})",
        *(f"{counted[kind]:,}" for kind in kinds),
        f"{record.versions['acknowledged']:,}",
        f"{record.versions['deleted']:,}",
        f"{record.versions['unheard']:,}",
        f"{len(record.surveys)}",
        f"{read / (1 << 20):,.0f} MiB",
        f"{len(record.wrong)}",
    ]
    return f"| {' | '.join(cells)} |"


def _under_load(records: Sequence[tuple[str, Record]]) -> list[str]:
    """Runs with workers: what became of their jobs."""
    if not records:
        return []
    lines = [
        "With workers that follow an alias:\n",
        "| run | workers, rollover | moves of the alias | versions that answered | jobs | of these for one version "
        "(one that the alias had left) | not finished | begun anew on another version | most leases of a job | worker "
        "processes |",
        f"|{'---|' * 10}",
    ]
    for name, record in records:
        jobs, p = record.jobs, record.parameters
        cells = [
            f"[{name.removesuffix('.json')}](reliability/{name})", f"{p['workers']}, {p['rollover']}",
            *(f"{jobs[field]:,}" for field in ("moves", "versions", "submitted")),
            f"{jobs['pinned']:,} ({jobs['pinned_old']:,})" if "pinned" in jobs else "none",
            *(f"{jobs[field]:,}" for field in ("not_finished", "began_anew", "most_leases", "workers_started")),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _details(name: str, record: Record) -> list[str]:
    machine, p = record.machine, record.parameters
    changes = ", with changes that are in no commit" if machine["dirty"] else ""
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    ended = ", ".join(
        f"{kind} {sum(ends.values()):,} ({', '.join(f'{end} {count:,}' for end, count in sorted(ends.items()))})"
        for kind, ends in record.outcomes.items()
    )
    return [
        f"- `{name.removesuffix('.json')}`: seed {record.seed}, {record.started[:10]}, commit "
        f"`{(machine['commit'] or 'unknown')[:12]}`{changes}, {record.seconds:.0f} s, grace {p['grace_s']:g} s. Tasks: "
        f"{ended}. Last change in storage before its kill, by process: {_changes(record)}. "
        f"{machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']:g} GiB, Python {machine['python']}, {versions}.",
        *(f"    - {what}" for what in record.wrong),
    ]


def _changes(record: Record) -> str:
    """Where in its work each kind of process was killed."""
    told = []
    for kind in TaskKind:
        changes = record.changes(kind)
        if changes and kind not in (TaskKind.SERVER, TaskKind.PERSISTER, TaskKind.WORKER):
            each = ", ".join(f"{change or 'none'} {count:,}" for change, count in changes.most_common())
            told.append(f"{kind} ({each})")
    return "; ".join(told)
