"""A server that went back in time: what storage has and it forgot is put back before anything ends (S3)."""

from __future__ import annotations

import logging
from dataclasses import replace

from headpond.queue import JobQueue
from headpond.restoring import begin_reconciling, end_reconciling
from headpond_workers.persistence.journal_id import JournalId
from headpond_workers.persistence.restoring.fair_queue import as_queue_has_it
from headpond_workers.persistence.restoring.filling import Filling
from headpond_workers.persistence.segments import HeadAt, StateStore

logger = logging.getLogger(__name__)


def reconcile(queue: JobQueue, store: StateStore, at: HeadAt, *, inc: int, rolled_to: str, writer: str) -> bool:
    """Put back what storage has after `rolled_to`, and open the queue. Returns whether it is open.

    at: the head of this queue's history. inc, rolled_to: of one read of its meta. Killed anywhere, the next call begins
    anew. Raises ServerWentBack, CommitLost, RedisUnavailable, StorageUnavailable, BlobCorrupt.
    """
    # First of all a new head: a batch that some persister read before the server went back is not committed any more.
    at = store.swap(at, replace(at.head, inc=max(at.head.inc, inc)), writer=writer)
    lineage, after = at.head.lineage, JournalId.parse(rolled_to)
    if at.head.watermark > after:
        fair = as_queue_has_it(store.state(at.head).fair)
        began = queue.run(begin_reconciling(lineage=lineage, inc=inc, least_inc=at.head.inc, fair=fair))
        if began.state != "reconciling":
            return began.state == "open"
        inc = began.inc
        filling = Filling(queue, inc, beside=True)
        filling.put(store.changed_after(at.head, after))
        filling.rejournal()
        tally = filling.tally
        logger.warning(
            "reconciled model=%s rolled_to=%s put_back=%d merged=%d kept=%d dropped=%d conflicts=%s unusable=%s",
            queue.name, rolled_to, tally.jobs, tally.merged, tally.kept, tally.dropped, tally.conflict_ids,
            tally.unusable_ids,
        )  # fmt: skip
    return queue.run(end_reconciling(lineage=lineage, inc=inc, least_inc=at.head.inc)).state == "open"
