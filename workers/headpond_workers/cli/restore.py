"""`headpond restore`: a Redis that lost its data gets it back from storage."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from headpond.connections import redis_of
from headpond.errors import InvalidRequest, RestoreRefused
from headpond.queue import Server
from headpond.settings import SPOOL_FOLDER
from headpond.terminal import escape_controls
from headpond_workers.cli.config_option import AsJson, Config, say, settings_of
from headpond_workers.cli.storage_blobs import storage_blobs, writer_name

if TYPE_CHECKING:
    from headpond_workers.persistence.restoring.restore import Restoration, Restored
    from headpond_workers.persistence.restoring.tally import Tally
    from headpond_workers.persistence.segments import StateStore


def register(app: typer.Typer) -> None:
    app.command()(restore)


def restore(
    config: Config = None,
    *,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="M", help="Only this model; may be given several times."),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            "--at",
            metavar="TIME",
            help="The state of that time: 2026-11-26T14:00:00Z (with a zone), or seconds since 1970. History goes on "
            "from there.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would come back, and do nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring jobs, results and sessions back from storage into a Redis that lost its data.

    Its queues are closed until then: submits are accepted, and nothing runs. Queued jobs come back in their order,
    running ones go on after the last token that storage has, ended ones have their results. Jobs that were submitted
    meanwhile are kept; where storage has another request under such an id, that one stands, and the id is named. Run
    it beside `headpond up`; killed anywhere, the same command goes on. Without --model: all models that this Redis
    lists and whose queues are closed. A queue that is open is not touched.

    Exit codes: 0 done; 2 there is nothing to restore, or this Redis must not be; 3 Redis or storage does not answer.

    Examples:

      headpond restore --dry-run

      headpond restore

      headpond restore --model chat --at 2026-11-26T14:00:00Z

      headpond restore --json | jq '.models[].conflict_ids'
    """
    from headpond_workers.persistence.segments import StateStore

    until_ms = None if at is None else parse_time(at)
    blobs = storage_blobs(config)
    settings = settings_of(config, needed=())
    server = Server(redis_of(settings))
    try:
        named = list(dict.fromkeys(model or ()))
        names = named or sorted(name for name, row in server.models().items() if row.storage)
        stores = {name: StateStore(blobs, name) for name in names}
        spools = settings.state_folder / SPOOL_FOLDER
        done = _restore_all(
            server, stores, spools, named=bool(named), until_ms=until_ms, dry_run=dry_run, tell=not as_json
        )
    finally:
        server.close()
    if as_json:
        typer.echo(json.dumps({"dry_run": dry_run, "models": [_as_json(each) for each in done]}))


def parse_time(text: str) -> int:
    """Milliseconds since 1970. Raises InvalidRequest."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            when = None
        if when is None or when.tzinfo is None:
            raise InvalidRequest(
                f"--at '{text[:60]}' is no time. Write 2026-11-26T14:00:00Z, with Z or an offset such as +02:00, or "
                "seconds since 1970.",
                field="at",
            ) from None
        seconds = when.timestamp()
    if not math.isfinite(seconds) or not 0 < seconds < 1e11:
        raise InvalidRequest(f"--at '{text[:60]}' is no time since 1970, in seconds.", field="at")
    return int(seconds * 1000)


def _restore_all(
    server: Server,
    stores: dict[str, StateStore],
    spools: Path,
    *,
    named: bool,
    until_ms: int | None,
    dry_run: bool,
    tell: bool,
) -> list[Restored]:
    """Those of the models that can be restored. spools: the folder of this host's. Raises RestoreRefused if there is
    none."""
    from headpond_workers.persistence.restoring.restore import Restoration
    from headpond_workers.persistence.spool import Spool
    from headpond_workers.persistence.spooling import replay

    done: list[Restored] = []
    refused: list[RestoreRefused] = []
    for name, store in stores.items():
        try:
            if store.read_head() is None:
                raise RestoreRefused(name, "storage holds no state of it. Check [storage], and the model's name")
            queue, spool, writer = server.queue(name, storage=True), Spool(spools, name), writer_name()
            restoration = Restoration(queue, store, until_ms=until_ms, writer=writer)
            if spool.has_frames:
                restoration.replay_spool = partial(replay, queue, spool, store, writer=writer)
            done.append(_restore(restoration, name, dry_run=dry_run))
        except RestoreRefused as error:
            refused.append(error)
            continue
        if tell:
            for line in _lines(done[-1], dry_run=dry_run):
                typer.echo(escape_controls(line))
    if not done:
        if refused and (named or len(refused) == 1):
            raise refused[0]
        which = "; ".join(map(str, refused)) or "this Redis lists no model with storage; name one with --model"
        raise RestoreRefused("any model", which)
    for refusal in refused:
        say(str(refusal))
    return done


def _restore(restoration: Restoration, model: str, *, dry_run: bool) -> Restored:
    with _counted(model) as on_items:
        restoration.on_items = on_items
        return restoration.preview() if dry_run else restoration.run()


@contextmanager
def _counted(model: str) -> Iterator[Callable[[int], None]]:
    """How many are in, on a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.completed:.0f} jobs"),
        TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(f"restore {model}", total=None)
        yield lambda done: bars.update(task, completed=done)


def _lines(done: Restored, *, dry_run: bool) -> Iterator[str]:
    tally = done.tally
    yield f"{done.model}: {'would be ' if dry_run else ''}restored as of {_time(done.as_of_ms)}"
    yield f"  waiting: {tally.queued} queued, {tally.delayed} delayed"
    if tally.resumed:
        yield f"  go on: {tally.resumed} of these, after {tally.tokens} tokens"
    ended = ", ".join(f"{count} {state}" for state, count in sorted(tally.ended.items())) or "none"
    yield f"  ended: {ended}"
    if tally.sessions or tally.turns:
        yield f"  sessions: {tally.sessions}, with {tally.turns} turns"
    yield from _meanwhile(tally)
    if tally.unusable:
        named = ", ".join(tally.unusable_ids)
        yield f"  left out, for storage lacks their requests or they cannot be read: {tally.unusable}: {named}"
    if done.lost_ms and done.as_of_ms:
        yield (
            f"  what was acknowledged from then to {_time(done.met_ms)}, when this Redis was first used, is lost "
            f"({done.lost_ms / 1000:.1f} s at most)"
        )
    if done.fork:
        yield "  its history goes on from there: what came after is reached by another --at alone"


def _meanwhile(tally: Tally) -> Iterator[str]:
    if tally.merged or tally.kept:
        yield f"  submitted meanwhile, and in storage too: {tally.merged + tally.kept}"
    if tally.conflicts:
        more = "" if tally.conflicts == len(tally.conflict_ids) else ", ..."
        yield (
            f"  submitted meanwhile under an id of another request in storage, and gone: {tally.conflicts}: "
            f"{', '.join(tally.conflict_ids)}{more}. Submit them under new ids"
        )


def _as_json(done: Restored) -> dict[str, object]:
    fields = asdict(done)
    tally = fields.pop("tally")
    return {**fields, "lost_ms": done.lost_ms, **tally, "jobs": done.tally.jobs}


def _time(ms: int) -> str:
    if ms == 0:
        return "an unknown time"
    return f"{datetime.fromtimestamp(ms / 1000, tz=UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC"
