"""From a queue's journal to the chain in storage: read, commit, trim, in this order (S1)."""

from __future__ import annotations

import logging

from headpond import upkeep
from headpond.errors import HistoryMismatch
from headpond.queue import JobQueue, JournalEntry
from headpond_workers.persistence.batch import Batch
from headpond_workers.persistence.journal_id import JournalId
from headpond_workers.persistence.journal_records import has_tokens, read_records
from headpond_workers.persistence.records import SubmitRecord
from headpond_workers.persistence.sampler import Sampler
from headpond_workers.persistence.segments import HeadAt, StateStore

logger = logging.getLogger(__name__)

BATCH_ENTRIES = 1000


class Journal:
    """The journal of one queue as this process reads it. Remembers what of running jobs it has stored."""

    def __init__(self, queue: JobQueue) -> None:
        self.queue = queue
        self._sampler = Sampler(queue)
        self._inc = 0
        self.at: HeadAt | None = None
        """The head that the last commit of this process left."""
        self.ended: list[str] = []
        """Of the last batch: ids of jobs whose end is in it."""
        self.more = False
        """The journal holds more than the last batch."""

    def read_batch(self) -> Batch | None:
        """The oldest entries, at most BATCH_ENTRIES, with what they refer to, and tokens of jobs that run.

        None if there is nothing new. Raises RedisUnavailable, MalformedDocument.
        """
        # Before the entries: whatever is acknowledged by then is among them, and a server that goes back in time in
        # between makes the trim stale.
        as_of_ms = self.queue.server.now_ms()
        inc = int(self.queue.meta().get("inc", "0"))
        if inc != self._inc:
            self._sampler.forget()
            self._inc = inc
        entries = self.queue.journal(limit=BATCH_ENTRIES)
        records, taken = read_records(self.queue, entries)
        self.more = taken < len(entries) or taken == BATCH_ENTRIES
        entries = entries[:taken]
        if self.more:
            as_of_ms = entries[-1].at_ms
        self.ended = [entry.job_id for entry in entries if entry.kind == "end"]
        submitted = {entry.job_id for entry in entries if entry.kind == "submit"}
        others = {entry.job_id for entry in entries if entry.kind == "back"}
        others |= {record.id for record in records if isinstance(record, SubmitRecord) and has_tokens(record.row)}
        progress, fair = self._sampler.sample(others, anew=submitted)
        if not entries and not progress:
            return None
        return Batch(
            first=_journal_id(entries[:1]), last=_journal_id(entries[-1:]), inc=inc, as_of_ms=as_of_ms,
            records=records, progress=progress, fair=fair,
        )  # fmt: skip

    def stored(self) -> None:
        """The last batch is in storage, or where it will come from."""
        self._sampler.stored()

    def expect(self, at: HeadAt) -> None:
        """Storage has this head, and the next batch is for it."""
        if self.at is None or at.head.segment != self.at.head.segment:
            self._sampler.forget_fair()


def drain(journal: Journal, store: StateStore, *, writer: str) -> bool:
    """Commit what the journal holds, at most BATCH_ENTRIES, and how far jobs are. Returns whether there is more.

    Every step may be the last one before a crash: entries leave Redis only after the head that leads to them, and
    entries that come again are left out by the head's watermark.
    Raises CommitLost if another writer was first (nothing is lost: the entries stay), HistoryMismatch,
    StorageUnavailable, RedisUnavailable.
    """
    queue = journal.queue
    meta = queue.meta()
    if meta.get("state") in ("restoring", "reconciling"):
        # What of these entries counts is known once storage's part is back.
        return False
    lineage = meta.get("lineage", "")
    at = store.read_head()
    if at is None or at.head.lineage != lineage:
        found = "no history" if at is None else f"lineage {at.head.lineage}"
        raise HistoryMismatch(store.head_key, found=found, wanted=f"lineage {lineage}")
    journal.expect(at)
    batch = journal.read_batch()
    if batch is None or queue.meta().get("inc") != meta.get("inc"):
        # Where the server went back in time meanwhile, not all of the batch is of one life.
        return False
    journal.at = store.commit(at, batch, writer=writer)
    journal.stored()
    if batch.last is None:
        return False
    if not queue.run(upkeep.trim(inc=batch.inc, through=str(batch.last), ended=journal.ended)):
        logger.warning("trim_stale model=%s inc=%d", queue.name, batch.inc)
        return False
    logger.info("committed model=%s records=%d through=%s", queue.name, len(batch.records), batch.last)
    return journal.more


def _journal_id(entries: list[JournalEntry]) -> JournalId | None:
    return JournalId.parse(entries[0].journal_id) if entries else None
