"""`headpond storage`: what versions of models take, its collection, and its scrub; the spool is in storage_spool.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from headpond.cli.exits import INTERNAL
from headpond.errors import InvalidRequest
from headpond.terminal import escape_controls
from headpond_workers.checkpoints.collection.gc import HOUR_MS, Collected, Collector
from headpond_workers.checkpoints.collection.scrub import Scrubbed
from headpond_workers.checkpoints.collection.scrub import scrub as scrub_storage
from headpond_workers.checkpoints.document_io import now_ms
from headpond_workers.checkpoints.storage_status import Amount, StorageStatus, storage_status
from headpond_workers.cli import storage_kv
from headpond_workers.cli.config_option import AsJson, Config, say
from headpond_workers.cli.status_tables import table_console
from headpond_workers.cli.storage_blobs import is_dead, storage_blobs, writer_name
from headpond_workers.cli.storage_spool import spool

storage_app = typer.Typer(no_args_is_help=True, help="Storage: versions of models, and what waits for it.")

storage_kv.register(storage_app)

DEFAULT_GRACE_H = 24.0
LEAST_GRACE_H = 1.0
LINE_EVERY = 10
"""Percent of the work, of progress that goes to a file."""
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


@storage_app.callback()
def _storage() -> None:
    """Versions of models in storage: what they take, what can be collected, and whether it is whole. And what waits
    on disks while storage is away."""


@storage_app.command()
def status(config: Config = None, *, as_json: AsJson = False) -> None:
    """Show what versions of models take in storage, and what of it can be collected.

    The ratio is that of the bytes of all files of all versions to the bytes that are stored for them.

    Examples:

      headpond storage status

      headpond storage status --json | jq .dedup_ratio
    """
    found = storage_status(storage_blobs(config), writer=writer_name())
    if as_json:
        typer.echo(json.dumps(asdict(found) | {"dedup_ratio": found.dedup_ratio}))
    else:
        _show_status(found)


@storage_app.command()
def gc(
    config: Config = None,
    *,
    grace: Annotated[
        float,
        typer.Option(
            metavar="HOURS", min=0.0, help="How long what nothing leads to waits; longer than any push takes."
        ),
    ] = DEFAULT_GRACE_H,
    overtake_pushes: Annotated[
        bool,
        typer.Option("--overtake-pushes", help="Allow a grace below 1 hour: pushes under way may have to begin anew."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Collect what nothing leads to: condemn it, and delete what an earlier run condemned and the grace is over of.

    So bytes are given back by the second run, a grace after the first; let a timer run it once a day. It can be killed
    anywhere, and run beside pushes and workers. Nothing that a version needs is deleted, whatever the grace: of a push
    that takes longer, the work alone.

    Exit codes: 0 done; 6 another collector is at work.

    Examples:

      headpond storage gc

      headpond storage gc --dry-run --json | jq .deleted_bytes

      headpond storage gc --grace 72
    """
    if grace < LEAST_GRACE_H and not overtake_pushes:
        raise InvalidRequest(
            f"a grace of {grace:g} hours may overtake a push that is under way, which then begins anew. Give "
            f"{LEAST_GRACE_H:g} hour or more, or allow it with --overtake-pushes.",
            field="grace",
        )
    blobs = storage_blobs(config)
    with _stages() as on_progress:
        collector = Collector(
            blobs,
            writer=writer_name(),
            now_ms=now_ms,
            grace_ms=int(grace * HOUR_MS),
            on_progress=on_progress,
            is_dead=is_dead,
        )
        done = collector.preview() if dry_run else collector.collect()
    if as_json:
        typer.echo(json.dumps(asdict(done) | {"dry_run": dry_run}))
    else:
        _tell_collected(done, dry_run=dry_run)


@storage_app.command()
def scrub(config: Config = None, *, as_json: AsJson = False) -> None:
    """Read every object that a complete version names, check each chunk, and quarantine versions that have a bad one.

    A quarantined version is never loaded. Push its files again, which puts the bad parts anew, and promote that.

    Exit codes: 0 all is whole; 1 something is bad.

    Examples:

      headpond storage scrub

      headpond storage scrub --json | jq '.findings[].versions'
    """
    blobs = storage_blobs(config)
    with _bytes_bar("scrub") as on_bytes:
        done = scrub_storage(blobs, writer=writer_name(), on_bytes=on_bytes)
    if as_json:
        typer.echo(json.dumps(asdict(done)))
    else:
        _tell_scrubbed(done)
    if done.findings:
        raise typer.Exit(INTERNAL)


storage_app.command()(spool)


def _show_status(found: StorageStatus) -> None:
    table = Table("what", box=None, pad_edge=False)
    for title in ("objects", "bytes"):
        table.add_column(title, justify="right")
    amounts: list[tuple[str, Amount]] = [
        ("chunks", found.stored),
        ("  needed", found.needed),
        ("manifests", found.manifests),
        ("condemned", found.condemned),
        ("to condemn", found.unreferenced),
    ]
    for what, amount in amounts:
        table.add_row(what, str(amount.objects), size_text(amount.bytes))
    console = table_console()
    console.print(table)
    states = ", ".join(f"{count} {state}" for state, count in sorted(found.versions.items())) or "none"
    ratio = "-" if found.dedup_ratio is None else f"{found.dedup_ratio:.2f}"
    for line in (
        f"versions: {states}; {size_text(found.version_bytes)} of files",
        f"dedup ratio: {ratio}",
        f"pushes under way or given up: {found.intents}",
        *(
            f"round {round_.number}: condemned {_time(round_.condemned_ms)}, to be deleted from "
            f"{_time(round_.not_before_ms)} on"
            for round_ in found.rounds
        ),
        *([f"a collector is at work: {found.holder}"] if found.holder else []),
    ):
        console.print(Text(escape_controls(line)))


def _tell_collected(done: Collected, *, dry_run: bool) -> None:
    would = "would be " if dry_run else ""
    say(f"pushes given up: {done.intents} intents {would}dropped, {done.versions} pending versions {would}deleted")
    rounds = ", ".join(map(str, done.rounds)) or "none due"
    say(f"{would}deleted: {done.deleted} objects, {size_text(done.deleted_bytes)} (rounds: {rounds}; {done.kept} kept)")
    until = f", to be deleted by a run after {_time(done.not_before_ms)}" if done.round else ""
    say(f"{would}condemned: {done.condemned} objects, {size_text(done.condemned_bytes)}{until}")


def _tell_scrubbed(done: Scrubbed) -> None:
    for finding in done.findings:
        say(f"BAD: {finding.key}: {finding.reason}. Quarantined: {', '.join(finding.versions)}")
    say(f"read: {done.objects} objects, {size_text(done.bytes)}, of {done.versions} versions; {len(done.findings)} bad")


@contextmanager
def _stages() -> Iterator[Callable[[str, int, int], None]]:
    """One line a stage; on a terminal a bar."""
    console = Console(stderr=True)
    if not console.is_terminal:
        seen: set[str] = set()

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in seen:
                seen.add(stage)
                say(f"{stage}{f' ({total} objects)' if total else ''}")

        yield tell
        return
    with Progress(TextColumn("{task.description}"), BarColumn(), console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total or None)
            bars.update(tasks[stage], completed=done)

        yield show


@contextmanager
def _bytes_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with its rate on a terminal; elsewhere a line each tenth."""
    console = Console(stderr=True)
    if not console.is_terminal:
        told = 0

        def tell(done: int, total: int) -> None:
            nonlocal told
            percent = 100 * done // total if total else 100
            if percent >= told + LINE_EVERY:
                told = percent - percent % LINE_EVERY
                say(f"{what}: {told}% of {size_text(total)}")

        yield tell
        return
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def size_text(count: float) -> str:
    """1536 as `1.5 KiB`."""
    for unit in _UNITS:
        if count < 1024 or unit == _UNITS[-1]:
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == _UNITS[0] else f"{count:.1f} {unit}"


def _time(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, tz=UTC):%Y-%m-%d %H:%M} UTC"
