"""`headpond purge`: jobs removed for good, wherever headpond keeps them."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Annotated

import typer

from headpond.cli.exits import BAD_INPUT, TRY_LATER
from headpond.cli.jobs import UrlOption
from headpond.errors import ConfigError, InvalidRequest, JobGone
from headpond.jobs import JobId
from headpond.operators import Operator
from headpond.purging import await_clean, owned_jobs, purge_jobs, tenant_sessions
from headpond.queue import JobQueue
from headpond.session_moves import parse_session, the_one
from headpond.settings import Settings, find_config, load_settings
from headpond.upkeep import Owner
from headpond_workers.cli.config_option import AsJson, Config, say

NO_STORAGE, CLEAN, NOT_YET = "none", "clean", "not yet"
SHOWN_IDS = 20


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one model's jobs. storage: 'none' where it has none, 'clean', or 'not yet'."""

    model: str
    jobs: list[str]
    sessions: list[str]
    in_redis: int
    storage: str


@dataclass(frozen=True, slots=True)
class Found:
    """What of one model is to go."""

    jobs: list[str]
    sessions: list[str] = field(default_factory=list)


def register(app: typer.Typer) -> None:
    app.command()(purge)


def purge(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="A job, MODEL/NAME.")] = None,
    config: Config = None,
    *,
    tenant: Annotated[str | None, typer.Option("--tenant", help="All jobs of a tenant.")] = None,
    session: Annotated[str | None, typer.Option("--session", help="A session, MODEL/NAME, with all its jobs.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Of this model alone.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say which jobs these are, and remove nothing.")] = False,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait until storage is clean.")] = 120.0,
    as_json: AsJson = False,
    redis: UrlOption = None,
) -> None:
    """Remove jobs for good: request, tokens, result, whatever their state. A running one is stopped.

    Of a tenant and of a session also the conversations; what a job that is named alone has told a session stays there.

    Redis is clean at once. In storage the persister makes a snapshot without the jobs, and deletes all segments and
    snapshots from before: no restore goes back further than that. Waits until that is done. The embedded servers then
    write their files anew. May be repeated.

    Exit codes: 0 done; 4 no such job; 6 storage is not clean yet: call it again.

    Examples:

      headpond purge chat/order-17

      headpond purge --tenant acme --dry-run

      headpond purge --tenant acme --model chat --yes --json

      headpond purge --session chat/support-4
    """
    if [job, tenant, session].count(None) != 2 or (job is not None and model is not None):
        raise InvalidRequest(
            "name one JOB, or give --tenant T or --session S, these with --model M or without", field="purge"
        )
    settings = _settings(config)
    until = time.monotonic() + timeout
    with _operator(redis, config=config, settings=settings) as operator:
        found = _find(operator, settings, job=job, tenant=tenant, session=session, model=model)
        if dry_run:
            done = [Done(name, what.jobs, what.sessions, 0, "") for name, what in found.items()]
            _tell(done, as_json=as_json, dry_run=True)
            return
        if not yes and any(what.jobs or what.sessions for what in found.values()):
            _confirm(found)
        done = [_purge(operator.queue(name), what, until=until) for name, what in found.items()]
        waits = any(each.storage == NOT_YET for each in done)
        if done and not waits and redis is None and settings is not None:
            _write_anew(operator, settings, until=until, storage=any(each.storage == CLEAN for each in done))
    _tell(done, as_json=as_json, dry_run=False)
    if waits:
        say("Storage is not clean yet. Is the persister running? Call it again to wait: headpond logs persister")
        raise typer.Exit(TRY_LATER)


def _find(
    operator: Operator,
    settings: Settings | None,
    *,
    job: str | None,
    tenant: str | None,
    session: str | None,
    model: str | None,
) -> dict[str, Found]:
    """What to remove, by model."""
    if job is not None:
        named = JobId.parse(job)
        queue = operator.queue(named.model)
        # Storage may know a job that Redis has dropped.
        if queue.run_row(job) is None and queue.data(job) is None and not operator.has_storage(named.model):
            raise JobGone(job)
        return {named.model: Found([job])}
    if session is not None:
        said, name = parse_session(session, model)
        having = [
            each
            for each in ([said] if said else operator.models())
            if (queue := operator.queue(each)).session_row(name) is not None or queue.session_jobs(name)
        ]
        owner = the_one(name, having) if said is None else said
        return {owner: Found(_jobs_of(operator, settings, owner, Owner.SESSION, name), [name])}
    found = {}
    for each in operator.models() if model is None else [model]:
        jobs = _jobs_of(operator, settings, each, Owner.TENANT, tenant or "")
        found[each] = Found(jobs, tenant_sessions(operator.queue(each), tenant or ""))
    return found


def _jobs_of(operator: Operator, settings: Settings | None, model: str, owner: Owner, name: str) -> list[str]:
    ids = set(owned_jobs(operator.queue(model), owner, name))
    if operator.has_storage(model):
        ids.update(_stored(settings, model, owner, name))
    return sorted(ids)


def _stored(settings: Settings | None, model: str, owner: Owner, name: str) -> Iterator[str]:
    # boto3 takes a while to import, which no purge without storage should wait for.
    from headpond_workers.persistence.purge_search import stored_jobs
    from headpond_workers.persistence.segments import StateStore
    from headpond_workers.storage.s3 import S3Blobs
    from headpond_workers.storage.settings import storage_of

    address = None if settings is None else storage_of(settings)
    if address is None:
        raise ConfigError(
            f"'{model}' has jobs in storage, and no storage is configured here. Call it where headpond.toml names it",
            where="[storage]",
        )
    return stored_jobs(StateStore(S3Blobs(address), model), owner, name)


def _purge(queue: JobQueue, what: Found, *, until: float) -> Done:
    purged = purge_jobs(queue, what.jobs, sessions=what.sessions)
    storage = NO_STORAGE
    if purged.through:
        clean = await_clean(queue, purged.through, timeout_s=max(0.0, until - time.monotonic()))
        storage = CLEAN if clean else NOT_YET
    return Done(queue.name, what.jobs, what.sessions, purged.in_redis, storage)


def _write_anew(operator: Operator, settings: Settings, *, until: float, storage: bool) -> None:
    """The embedded servers keep removed bytes in their files until they write them anew."""
    from headpond_workers.supervision.erasure import rewrite_log, vacuum_volumes

    if settings.redis.url is None and not rewrite_log(operator.server, timeout_s=max(1.0, until - time.monotonic())):
        say("Valkey has not written its append-only file anew yet; what was removed stands in it until it does.")
    if storage and settings.storage.endpoint_url is None:
        vacuum_volumes(settings.state_folder)


def _confirm(found: dict[str, Found]) -> None:
    if not sys.stdin.isatty():
        say("Nobody is there to be asked: give --yes to remove the jobs, or --dry-run to see which they are.")
        raise typer.Exit(BAD_INPUT)
    jobs = [name for what in found.values() for name in what.jobs]
    sessions = [f"{model}/{name}" for model, what in found.items() for name in what.sessions]
    for name in jobs[:SHOWN_IDS]:
        say(f"  {name}")
    if len(jobs) > SHOWN_IDS:
        say(f"  and {len(jobs) - SHOWN_IDS} more")
    for name in sessions:
        say(f"  session {name}")
    if not typer.confirm(f"Remove {_count(len(jobs), 'job')} and {_count(len(sessions), 'session')} for good?"):
        raise typer.Exit(BAD_INPUT)


def _tell(done: list[Done], *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"dry_run": dry_run, "models": [asdict(each) for each in done]}))
        return
    for each in done:
        if dry_run:
            for name in [*each.jobs, *(f"session {each.model}/{name}" for name in each.sessions)]:
                typer.echo(name)
        elif each.jobs or each.sessions:
            left = {NO_STORAGE: "", CLEAN: "; storage is clean", NOT_YET: "; storage is not clean yet"}
            sessions = f", {_count(len(each.sessions), 'session')}" if each.sessions else ""
            jobs = f"{_count(len(each.jobs), 'job')} ({each.in_redis} in Redis)"
            typer.echo(f"{each.model}: purged {jobs}{sessions}{left[each.storage]}")
    if not any(each.jobs or each.sessions for each in done):
        say("There are no such jobs.")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _settings(config: Config) -> Settings | None:
    file = config or find_config()
    return None if file is None else load_settings(file, environment=os.environ, needed=())


@contextmanager
def _operator(redis: str | None, *, config: Config, settings: Settings | None) -> Iterator[Operator]:
    from headpond.connections import redis_of

    # A configuration that is named decides; else as for every other operator's command.
    address = redis_of(settings) if redis is None and config is not None and settings is not None else None
    with Operator(redis if address is None else address.url) as operator:
        yield operator
