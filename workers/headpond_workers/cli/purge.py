"""`headpond purge`: jobs removed for good, wherever headpond keeps them."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from headpond.cli.exits import BAD_INPUT, TRY_LATER
from headpond.cli.jobs import UrlOption
from headpond.errors import ConfigError, InvalidRequest, JobGone
from headpond.jobs import JobId
from headpond.operators import Operator
from headpond.purging import await_clean, purge_jobs, tenant_jobs
from headpond.queue import JobQueue
from headpond.settings import Settings, find_config, load_settings
from headpond_workers.cli.config_option import AsJson, Config, say

NO_STORAGE, CLEAN, NOT_YET = "none", "clean", "not yet"
SHOWN_IDS = 20


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one model's jobs. storage: 'none' where it has none, 'clean', or 'not yet'."""

    model: str
    jobs: list[str]
    in_redis: int
    storage: str


def register(app: typer.Typer) -> None:
    app.command()(purge)


def purge(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="A job, MODEL/NAME.")] = None,
    config: Config = None,
    *,
    tenant: Annotated[str | None, typer.Option("--tenant", help="All jobs of a tenant.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="With --tenant: of this model alone.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say which jobs these are, and remove nothing.")] = False,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait until storage is clean.")] = 120.0,
    as_json: AsJson = False,
    redis: UrlOption = None,
) -> None:
    """Remove jobs for good: request, tokens, result, whatever their state. A running one is stopped.

    Redis is clean at once. In storage the persister makes a snapshot without the jobs, and deletes all segments and
    snapshots from before: no restore goes back further than that. Waits until that is done. The embedded servers then
    write their files anew. May be repeated.

    Exit codes: 0 done; 4 no such job; 6 storage is not clean yet: call it again.

    Examples:

      headpond purge chat/order-17

      headpond purge --tenant acme --dry-run

      headpond purge --tenant acme --model chat --yes --json
    """
    if (job is None) == (tenant is None) or (job is not None and model is not None):
        raise InvalidRequest("name one JOB, or give --tenant T, with --model M or without", field="purge")
    settings = _settings(config)
    until = time.monotonic() + timeout
    with _operator(redis, config=config, settings=settings) as operator:
        found = _find(operator, settings, job=job, tenant=tenant, model=model)
        total = sum(map(len, found.values()))
        if dry_run:
            _tell([Done(name, ids, 0, "") for name, ids in found.items()], as_json=as_json, dry_run=True)
            return
        if total and not yes:
            _confirm(found, total)
        done = [_purge(operator.queue(name), ids, until=until) for name, ids in found.items() if ids]
        waits = any(each.storage == NOT_YET for each in done)
        if done and not waits and redis is None and settings is not None:
            _write_anew(operator, settings, until=until, storage=any(each.storage == CLEAN for each in done))
    _tell(done, as_json=as_json, dry_run=False)
    if waits:
        say("Storage is not clean yet. Is the persister running? Call it again to wait: headpond logs persister")
        raise typer.Exit(TRY_LATER)


def _find(
    operator: Operator, settings: Settings | None, *, job: str | None, tenant: str | None, model: str | None
) -> dict[str, list[str]]:
    """Ids by model."""
    if job is not None:
        name = JobId.parse(job)
        queue = operator.queue(name.model)
        # Storage may know a job that Redis has dropped.
        if queue.run_row(job) is None and queue.data(job) is None and not operator.has_storage(name.model):
            raise JobGone(job)
        return {name.model: [job]}
    found = {}
    for each in operator.models() if model is None else [model]:
        ids = list(tenant_jobs(operator.queue(each), tenant or ""))
        if operator.has_storage(each):
            ids += _stored(settings, each, tenant or "")
        found[each] = sorted(set(ids))
    return found


def _stored(settings: Settings | None, model: str, tenant: str) -> Iterator[str]:
    # boto3 takes a while to import, which no purge without storage should wait for.
    from headpond_workers.persistence.purge_search import stored_jobs
    from headpond_workers.persistence.s3 import S3Blobs
    from headpond_workers.persistence.segments import StateStore
    from headpond_workers.persistence.storage_settings import storage_of

    address = None if settings is None else storage_of(settings)
    if address is None:
        raise ConfigError(
            f"'{model}' has jobs in storage, and no storage is configured here. Call it where headpond.toml names it",
            where="[storage]",
        )
    return stored_jobs(StateStore(S3Blobs(address), model), tenant)


def _purge(queue: JobQueue, ids: list[str], *, until: float) -> Done:
    purged = purge_jobs(queue, ids)
    if not purged.through:
        return Done(queue.name, ids, purged.in_redis, NO_STORAGE)
    clean = await_clean(queue, purged.through, timeout_s=max(0.0, until - time.monotonic()))
    return Done(queue.name, ids, purged.in_redis, CLEAN if clean else NOT_YET)


def _write_anew(operator: Operator, settings: Settings, *, until: float, storage: bool) -> None:
    """The embedded servers keep removed bytes in their files until they write them anew."""
    from headpond_workers.supervision.erasure import rewrite_log, vacuum_volumes

    if settings.redis.url is None and not rewrite_log(operator.server, timeout_s=max(1.0, until - time.monotonic())):
        say("Valkey has not written its append-only file anew yet; what was removed stands in it until it does.")
    if storage and settings.storage.endpoint_url is None:
        vacuum_volumes(settings.state_folder)


def _confirm(found: dict[str, list[str]], total: int) -> None:
    if not sys.stdin.isatty():
        say("Nobody is there to be asked: give --yes to remove the jobs, or --dry-run to see which they are.")
        raise typer.Exit(BAD_INPUT)
    jobs = [name for ids in found.values() for name in ids]
    for name in jobs[:SHOWN_IDS]:
        say(f"  {name}")
    if total > SHOWN_IDS:
        say(f"  and {total - SHOWN_IDS} more")
    if not typer.confirm(f"Remove {total} {_jobs(total)} for good?"):
        raise typer.Exit(BAD_INPUT)


def _tell(done: list[Done], *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"dry_run": dry_run, "models": [asdict(each) for each in done]}))
        return
    for each in done:
        if dry_run:
            for name in each.jobs:
                typer.echo(name)
        else:
            left = {NO_STORAGE: "", CLEAN: ", and storage is clean", NOT_YET: ", and storage is not clean yet"}
            count = len(each.jobs)
            typer.echo(f"{each.model}: {count} {_jobs(count)} purged, {each.in_redis} in Redis{left[each.storage]}")
    if not any(each.jobs for each in done):
        say("There are no such jobs.")


def _jobs(count: int) -> str:
    return "job" if count == 1 else "jobs"


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
