"""What storage folds to is Redis less what the journal still tells of (invariant 8): each rule says what is not so.

No I/O. A rule that finds nothing yields nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from redis_image import ImageJob, RedisImage

from headpond.jobs import JobState
from headpond_workers.persistence.items import CommitItem, Item, JobItem, SessionItem


def compare(items: Iterable[Item], image: RedisImage) -> list[str]:
    """All that is wrong. A job that runs may have more tokens in Redis; any other has the same."""
    found: list[str] = []
    jobs: dict[str, JobItem] = {}
    commits: dict[str, bytes] = {}
    sessions: dict[str, bytes] = {}
    keys: list[str] = []
    for item in items:
        keys.append(item.key)
        match item:
            case JobItem():
                jobs[item.id] = item
            case CommitItem():
                commits[item.id] = item.document
            case SessionItem():
                sessions[item.id] = item.row
    if keys != sorted(set(keys)):
        found.append("storage: its items are not in order, or one comes twice")
    found += _both_have("job", jobs, image.jobs, image)
    for job_id, here in image.jobs.items():
        stored = jobs.get(job_id)
        if stored is not None and ("job", job_id) not in image.tail:
            found += (f"{job_id}: {what}" for what in _job(stored, here))
        if here.row.durable and (stored is None or stored.state is not here.row.state):
            found.append(f"{job_id}: Redis says that its end is durable, and storage does not have it")
    for kind, in_storage, in_redis in (("commit", commits, image.turns), ("session", sessions, image.sessions)):
        found += _both_have(kind, in_storage, in_redis, image)
        for name in sorted(in_storage.keys() & in_redis.keys()):
            if in_storage[name] != in_redis[name] and (kind, name) not in image.tail:
                found.append(f"{kind} {name}: storage and Redis have other bytes of it")
    return found


def missing(acknowledged: Iterable[str], image: RedisImage) -> Iterator[str]:
    """A Redis that was killed, and never lost its data, has every job that was acknowledged."""
    for job_id in sorted(set(acknowledged) - image.jobs.keys()):
        yield f"{job_id}: it was acknowledged, and Redis does not have it"


def _both_have(kind: str, stored: Mapping[str, object], here: Mapping[str, object], image: RedisImage) -> Iterator[str]:
    """The same names, but for those that the journal tells of."""
    for names, which in ((here.keys() - stored.keys(), "Redis"), (stored.keys() - here.keys(), "storage")):
        for name in sorted(names):
            if (kind, name) not in image.tail:
                yield f"{kind} {name}: {which} alone has it, and the journal does not tell of it"


def _job(stored: JobItem, here: ImageJob) -> Iterator[str]:
    row = here.row
    if stored.data != here.data:
        yield "its request in storage is another one than in Redis"
    if row.state.ended:
        if stored.state is not row.state:
            yield f"Redis has it {row.state.value}, storage {stored.state.value if stored.state else 'not ended'}"
        elif here.result and stored.result != here.result:
            yield "its result in storage has other bytes than in Redis"
        elif row.state is JobState.FINISHED and not stored.result:
            yield "it is finished, and storage has no result of it"
        return
    if stored.state is not None:
        yield f"storage has it {stored.state.value}, Redis {row.state.value}"
    elif here.ids[: len(stored.ids)] != stored.ids:
        yield f"the {len(stored.ids)} tokens of it in storage are not the first of the {len(here.ids)} in Redis"
    elif row.state is not JobState.RUNNING and len(here.ids) != len(stored.ids):
        yield f"it does not run, and storage has {len(stored.ids)} of its {len(here.ids)} tokens"
