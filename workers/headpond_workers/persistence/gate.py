"""Opens a queue once what Redis holds and what storage holds are known to belong together (Q2).

A Redis that lost its data is empty, and looks like a new one. Working on it would start a second history beside
the one in storage. So with storage a new queue is closed, and only this comparison opens it: each history has a
lineage, in the queue's meta and in the head. A server that went back in time has the lineage, and less than storage:
that is put back first.
"""

from __future__ import annotations

import logging
import secrets

from headpond import upkeep
from headpond.errors import BlobChanged
from headpond.queue import JobQueue
from headpond_workers.persistence.restoring.reconcile import reconcile
from headpond_workers.persistence.segments import HeadAt, StateStore

logger = logging.getLogger(__name__)


def open_queue(queue: JobQueue, store: StateStore, *, writer: str) -> bool:
    """Open the queue if its history is the one in storage, or if both are new. False: it is closed, and its meta
    says why, or it is being restored. Raises RedisUnavailable, StorageUnavailable, BlobCorrupt, CommitLost,
    ServerWentBack."""
    meta = queue.meta()
    state = meta.get("state")
    if state == "open" and meta.get("lineage"):
        return True
    if state == "restoring":
        return False
    at = store.read_head() or _begin(queue, store, writer=writer)
    meta = queue.meta()
    if meta.get("lineage") != at.head.lineage:
        queue.run(upkeep.open_queue("close", reason=_why_closed(queue.name, at, ours=meta.get("lineage"))))
        logger.error("queue_closed model=%s reason=lineage", queue.name)
        return False
    inc = int(meta.get("inc", "0"))
    if rolled_to := meta.get("rolled_to"):
        opened = reconcile(queue, store, at, inc=inc, rolled_to=rolled_to, writer=writer)
    else:
        opening = upkeep.open_queue("open", lineage=at.head.lineage, least_inc=at.head.inc, inc=inc)
        opened = queue.run(opening)[1] == "open"
    if opened:
        logger.info("queue_opened model=%s lineage=%s", queue.name, at.head.lineage)
    return opened


def _why_closed(model: str, at: HeadAt, *, ours: str | None) -> str:
    lineage = at.head.lineage
    if ours is None:
        return (
            f"this Redis holds nothing of '{model}', and storage holds its history (lineage {lineage}). Bring it back "
            f"with: headpond restore --model {model}. To begin anew instead, use a new bucket."
        )
    return (
        f"storage holds another history of '{model}' (lineage {lineage}) than this Redis. Point [storage] at the "
        "bucket of this Redis, or use a new bucket to begin anew."
    )


def _begin(queue: JobQueue, store: StateStore, *, writer: str) -> HeadAt:
    """A first head for the lineage of this queue. Its lineage goes to Redis first: a crash between leaves a queue
    that is still closed, and the next call finds the same lineage."""
    lineage, _ = queue.run(upkeep.open_queue("claim", lineage=secrets.token_hex(16)))
    try:
        return store.create_head(lineage=lineage, writer=writer, inc=int(queue.meta().get("inc", "0")))
    except BlobChanged:
        at = store.read_head()
        if at is None:
            raise
        return at
