"""Removing jobs for good: from Redis at once, from storage once its persister has made a state without them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from headpond import session_operations, upkeep
from headpond.commits import unpack_session
from headpond.errors import MalformedDocument, PurgeRefused
from headpond.queue import JobQueue
from headpond.replies import journal_place
from headpond.session_operations import SessionAnswer
from headpond.upkeep import Owner, Purged

POLL_S = 0.2
MAX_SESSIONS = 1_000_000
"""Of one model, that are looked through for a tenant's."""


@dataclass(frozen=True, slots=True)
class PurgedJobs:
    """jobs: how many were purged. in_redis: of these, those that Redis still had. through: what storage is to be clean
    up to, a journal id; '' if it has nothing to do."""

    jobs: int
    in_redis: int
    through: str


def owned_jobs(queue: JobQueue, owner: Owner, name: str) -> Iterator[str]:
    """Ids of the jobs of a tenant or a session that Redis holds; one may come twice. Raises RedisUnavailable."""
    cursor = "0"
    while True:
        cursor, ids = queue.run(upkeep.jobs_of(owner, name, cursor))
        yield from ids
        if cursor == "0":
            return


def tenant_sessions(queue: JobQueue, tenant: str) -> list[str]:
    """Names of the sessions of a tenant. Raises RedisUnavailable."""
    rows = ((name, queue.session_row(name)) for name in queue.session_names(limit=MAX_SESSIONS))
    return [name for name, row in rows if row is not None and _tenant_of(name, row) == tenant]


def _tenant_of(name: str, row: bytes) -> str | None:
    """None for a session whose row cannot be read: an operator names it."""
    try:
        return unpack_session(name, row).tenant
    except MalformedDocument:
        return None


def purge_jobs(queue: JobQueue, job_ids: Iterable[str], *, sessions: Sequence[str] = ()) -> PurgedJobs:
    """Remove jobs from Redis, whatever their state, then sessions with those of their commits that no other session
    needs; and have all of it removed from storage. May be repeated.

    Raises PurgeRefused while the queue is restored, or a session is in use; RedisUnavailable.
    """
    ids = list(dict.fromkeys(job_ids))
    in_redis = 0
    for at in range(0, len(ids), upkeep.PURGE_PAGE):
        in_redis += sum(_purge(queue, ids[at : at + upkeep.PURGE_PAGE]).there)
    for name in sessions:
        answer = queue.run(session_operations.delete(name))
        if answer is SessionAnswer.BUSY:
            raise PurgeRefused(queue.name, f"a job of the session '{name}' has come since")
        if answer is SessionAnswer.CLOSED:
            raise PurgeRefused(queue.name, "it is closed, and no session is deleted before it is open")
    return PurgedJobs(len(ids), in_redis, _purge(queue, ()).through)


def _purge(queue: JobQueue, ids: Sequence[str]) -> Purged:
    done = queue.run(upkeep.purge(ids))
    if done.state in ("restoring", "reconciling"):
        raise PurgeRefused(queue.name, f"it is {done.state}, and nothing is purged before it is open")
    return done


def await_clean(queue: JobQueue, through: str, *, timeout_s: float) -> bool:
    """Wait until storage holds nothing any more of what was purged up to a journal id. False: not yet.

    Raises PurgeRefused if Redis has gone back in time since, and may have forgotten the purge; RedisUnavailable.
    """
    wanted, until = journal_place(through), time.monotonic() + timeout_s
    while True:
        meta = queue.meta()
        if journal_place(meta.get("clean", "")) >= wanted:
            return True
        if int(meta.get("inc", "0")) != wanted[0]:
            raise PurgeRefused(queue.name, "Redis has gone back in time, and may have forgotten the purge")
        if time.monotonic() >= until:
            return False
        time.sleep(POLL_S)
