"""Removing jobs for good: from Redis at once, from storage once its persister has made a state without them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from headpond import upkeep
from headpond.errors import PurgeRefused
from headpond.queue import JobQueue
from headpond.replies import journal_place

POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class PurgedJobs:
    """jobs: how many were purged. in_redis: of these, those that Redis still had. through: what storage is to be clean
    up to, a journal id; '' if it has nothing to do."""

    jobs: int
    in_redis: int
    through: str


def tenant_jobs(queue: JobQueue, tenant: str) -> Iterator[str]:
    """Ids of the jobs of a tenant that Redis holds; one may come twice. Raises RedisUnavailable."""
    cursor = "0"
    while True:
        cursor, ids = queue.run(upkeep.tenant_page(tenant, cursor))
        yield from ids
        if cursor == "0":
            return


def purge_jobs(queue: JobQueue, job_ids: Iterable[str]) -> PurgedJobs:
    """Remove jobs from Redis, whatever their state, and have them removed from storage. May be repeated.

    Raises PurgeRefused while the queue is restored, RedisUnavailable.
    """
    ids = list(dict.fromkeys(job_ids))
    in_redis, through = 0, ""
    for at in range(0, len(ids), upkeep.PURGE_PAGE):
        done = queue.run(upkeep.purge(ids[at : at + upkeep.PURGE_PAGE]))
        if not done.there:
            raise PurgeRefused(queue.name, f"it is {done.state}, and nothing is purged before it is open")
        in_redis += sum(done.there)
        through = done.through
    return PurgedJobs(len(ids), in_redis, through)


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
