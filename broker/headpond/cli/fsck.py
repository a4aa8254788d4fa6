"""`headpond fsck`: compare where each job is with where its row says that it is."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from headpond import upkeep
from headpond.cli.exits import FAULTS_LEFT
from headpond.cli.jobs import JsonOption, UrlOption
from headpond.counts import counted
from headpond.keys import queue_keys
from headpond.operators import Operator
from headpond.queue import JobQueue
from headpond.terminal import escape_controls

NAMES = frozenset({"fsck"})
LEFT = "left"


def fsck(
    models: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="Default: every model.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Put back what is out of place.")] = False,
    as_json: JsonOption = False,
    redis: UrlOption = None,
) -> None:
    """Look for jobs that are not where their rows say, such as waiting ones that stand in no lane.

    Workers and producers may go on meanwhile. Without --repair nothing is changed.

    Exit codes: 0 no fault, or each one repaired; 7 faults are left.

    Examples:

      headpond fsck

      headpond fsck chat --repair

      headpond fsck --json | jq '.models[].faults[]'
    """
    checked: list[dict[str, Any]] = []
    left = 0
    with Operator(redis) as operator:
        for model in dict.fromkeys(models or operator.models()):
            jobs, faults = _check(operator.queue(model), repair=repair)
            left += sum(fault.remedy == LEFT for fault in faults)
            checked.append(
                {
                    "model": model,
                    "jobs": jobs,
                    "faults": [{"id": f.id, "what": f.what, "remedy": f.remedy} for f in faults],
                }
            )
            if not as_json:
                for fault in faults:
                    typer.echo(escape_controls(f"{fault.id}: {fault.what}; {fault.remedy}"))
                typer.echo(f"{model}: {counted(jobs, 'job')}, {counted(len(faults), 'fault')}")
    if as_json:
        typer.echo(json.dumps({"models": checked, "left": left}))
    if left:
        if not repair:
            typer.echo("Nothing was changed. To put back what can be: headpond fsck --repair", err=True)
        raise typer.Exit(FAULTS_LEFT)


def register(app: typer.Typer) -> None:
    app.command()(fsck)


def _check(queue: JobQueue, *, repair: bool) -> tuple[int, list[upkeep.Fault]]:
    """How many jobs the queue holds, and its faults. A row may be met twice while others come and go."""
    total = int(queue.server.read("HLEN", queue_keys(queue.name).named("run")))
    faults: dict[tuple[str, str], upkeep.Fault] = {}
    for looked, page in _pages(queue, repair=repair):
        for fault in page.faults:
            # What a first look has mended, a second one finds in order; what it could not is told once.
            faults.setdefault((fault.id, fault.what), fault)
        _show_progress(queue.name, looked, total)
    _clear_progress()
    return total, list(faults.values())


def _pages(queue: JobQueue, *, repair: bool) -> Iterator[tuple[int, upkeep.FsckPage]]:
    cursor, looked = "0", 0
    while True:
        page = queue.run(upkeep.fsck(cursor, repair=repair))
        looked += page.looked
        yield looked, page
        cursor = page.cursor
        if cursor == "0":
            return


def _show_progress(model: str, looked: int, total: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{model}: {min(looked, total)} of {total}")
        sys.stderr.flush()


def _clear_progress() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
