"""From a queue's journal to the chain in storage: read, commit, trim, in this order (S1)."""

from __future__ import annotations

import logging
from collections.abc import Callable

from headpond import upkeep
from headpond.errors import HistoryMismatch
from headpond.queue import JobQueue, JournalEntry
from headpond.results import build_result
from headpond.wire import pack_result
from headpond_workers.persistence.batch import Batch
from headpond_workers.persistence.journal_id import JournalId
from headpond_workers.persistence.records import EndRecord, Record, SubmitRecord
from headpond_workers.persistence.segments import StateStore

logger = logging.getLogger(__name__)

BATCH_ENTRIES = 1000


def drain(queue: JobQueue, store: StateStore, *, writer: str, sync: Callable[[], None] | None = None) -> int:
    """Commit what the journal holds, at most BATCH_ENTRIES; return how many entries that were.

    Every step may be the last one before a crash: entries leave Redis only after the head that leads to them, and
    entries that come again are left out by the head's watermark.
    sync: what brings a commit to the disk, where storage does not do that itself. Called before each trim, also where
    the commit is an old one that was not trimmed: its writer may have been killed before it synced.
    Raises CommitLost if another writer was first (nothing is lost: the entries stay), HistoryMismatch,
    StorageUnavailable, RedisUnavailable.
    """
    # The incarnation is read before the entries: a server that goes back in time in between makes the trim stale.
    meta = queue.meta()
    inc, lineage = int(meta.get("inc", "0")), meta.get("lineage", "")
    entries = queue.journal(limit=BATCH_ENTRIES)
    if not entries:
        return 0
    at = store.read_head()
    if at is None or at.head.lineage != lineage:
        found = "no history" if at is None else f"lineage {at.head.lineage}"
        raise HistoryMismatch(store.head_key, found=found, wanted=f"lineage {lineage}")
    records: list[Record] = []
    for entry in entries:
        if JournalId.parse(entry.journal_id) > at.head.watermark:
            record = _record(queue, entry)
            if record is not None:
                records.append(record)
    first, last = JournalId.parse(entries[0].journal_id), JournalId.parse(entries[-1].journal_id)
    store.commit(at, Batch(first=first, last=last, inc=inc, records=tuple(records)), writer=writer)
    if sync is not None:
        sync()
    ended = [entry.job_id for entry in entries if entry.kind == "end"]
    if not queue.run(upkeep.trim(inc=inc, through=str(last), ended=ended)):
        logger.warning("trim_stale model=%s inc=%d", queue.name, inc)
        return 0
    logger.info("committed model=%s entries=%d through=%s", queue.name, len(entries), last)
    return len(entries)


def _record(queue: JobQueue, entry: JournalEntry) -> Record | None:
    journal_id = JournalId.parse(entry.journal_id)
    if entry.kind == "submit":
        data = queue.data(entry.job_id)
        if data is None:
            logger.error("journal_without_data model=%s job=%s", queue.name, entry.job_id)
            return None
        return SubmitRecord(journal_id, entry.job_id, data)
    row = queue.run_row(entry.job_id)
    if row is None or not row.state.ended:
        logger.error("journal_without_end model=%s job=%s", queue.name, entry.job_id)
        return None
    document = queue.result(entry.job_id)
    if document is None:
        # No worker ended it: its text and tokens are in its stream.
        document = pack_result(build_result(entry.job_id, row, None, queue.events(entry.job_id)))
    return EndRecord(journal_id, entry.job_id, row.state, document)
