"""From a queue's journal to the chain in storage: read, commit, trim, in this order (S1)."""

from __future__ import annotations

import logging
from collections.abc import Callable

from headpond import upkeep
from headpond.errors import HistoryMismatch, SpoolElsewhere
from headpond.queue import JobQueue
from headpond.queue_reads import JournalEntry
from headpond.spooled import Spooled
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

    def forget(self) -> None:
        """It is not known any more what storage has of jobs that run: all of it is stored anew."""
        self._sampler.forget()

    def expect(self, at: HeadAt) -> None:
        """Storage has this head, and the next batch is for it."""
        if self.at is None or at.head.segment != self.at.head.segment:
            self._sampler.forget_fair()


def drain(journal: Journal, store: StateStore, *, writer: str, sync: Callable[[], None] | None = None) -> bool:
    """Commit what the journal holds, at most BATCH_ENTRIES, and how far jobs are. Returns whether there is more.

    Every step may be the last one before a crash: entries leave Redis only after the head that leads to them, and
    entries that come again are left out by the head's watermark.
    sync: what brings a commit to the disk, where storage does not do that itself. Called before each trim, also where
    the commit is an old one that was not trimmed: its writer may have been killed before it synced.
    Raises CommitLost if another writer was first (nothing is lost: the entries stay), HistoryMismatch, SpoolElsewhere,
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
    # After the entries: what has left the journal by then for a spool is named, and has to be committed before them.
    check_spool(queue)
    journal.at = store.commit(at, batch, writer=writer)
    journal.stored()
    if sync is not None:
        sync()
    if batch.last is None:
        return False
    if not queue.run(upkeep.trim(inc=batch.inc, through=str(batch.last), ended=journal.ended)):
        logger.warning("trim_stale model=%s inc=%d", queue.name, batch.inc)
        return False
    logger.info("committed model=%s records=%d through=%s", queue.name, len(batch.records), batch.last)
    return journal.more


def check_spool(queue: JobQueue) -> None:
    """Raises SpoolElsewhere if entries of the journal are on a host's disk: nothing may be committed before them."""
    trouble = queue.storage_trouble()
    if trouble is not None and trouble.spooled is not None:
        raise elsewhere(queue.name, trouble.spooled)


def elsewhere(model: str, named: Spooled) -> SpoolElsewhere:
    return SpoolElsewhere(model, host=named.host, folder=named.folder, first=named.first, last=named.last)


def _journal_id(entries: list[JournalEntry]) -> JournalId | None:
    return JournalId.parse(entries[0].journal_id) if entries else None
