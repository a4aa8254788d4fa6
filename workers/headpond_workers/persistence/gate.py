"""Opens a queue once what Redis holds and what storage holds are known to belong together (Q2).

A Redis that lost its data is empty, and looks like a new one. Working on it would start a second history beside
the one in storage. So with storage a new queue is closed, and only this comparison opens it: each history has a
lineage, in the queue's meta and in the head.
"""

from __future__ import annotations

import logging
import secrets

from headpond import upkeep
from headpond.errors import BlobChanged
from headpond.queue import JobQueue
from headpond_workers.persistence.segments import HeadAt, StateStore

logger = logging.getLogger(__name__)


def open_queue(queue: JobQueue, store: StateStore, *, writer: str) -> bool:
    """Open the queue if its history is the one in storage, or if both are new. False: it is closed, and its meta
    says why. Raises RedisUnavailable, StorageUnavailable, BlobCorrupt."""
    meta = queue.meta()
    if meta.get("state") == "open" and meta.get("lineage"):
        return True
    at = store.read_head() or _begin(queue, store, writer=writer)
    if queue.meta().get("lineage") != at.head.lineage:
        queue.run(
            upkeep.open_queue(
                "close",
                reason=f"storage holds another history of '{queue.name}' (lineage {at.head.lineage}) than this Redis. "
                "Point [storage] at the bucket of this Redis, or use a new bucket to begin anew.",
            )
        )
        logger.error("queue_closed model=%s reason=lineage", queue.name)
        return False
    _, state = queue.run(upkeep.open_queue("open", lineage=at.head.lineage, least_inc=at.head.inc))
    logger.info("queue_opened model=%s lineage=%s", queue.name, at.head.lineage)
    return state == "open"


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
