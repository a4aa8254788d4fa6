"""One model's state in storage: commits to the chain of segments, and what can be asked of it.

A commit puts a segment under a key of its own, then swaps the head by its etag. Only the swap decides:

- Killed between the two: the segment is an orphan, which nothing leads to. The next commit wants the same key,
  finds it taken and the head where it was, and goes round it by a higher epoch. It never reads what it found
  there: it might be the segment of a commit that is still on its way.
- Two writers at once: whoever swaps first wins; the other's etag is that of an older head, so its segment stays an
  orphan and its call ends with CommitLost. A writer that was asleep for an hour is such a loser.
- Killed after the swap, before the journal was trimmed: the same entries come again, and those at or below the
  watermark are left out.
- Unknown outcome (StorageUnavailable): read the head again, commit again. If the first commit did count, the
  watermark says so; if it was only late, one of the two swaps fails.
"""

from __future__ import annotations

import logging
import secrets
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import replace

from headpond.errors import BlobChanged, CommitLost, StaleIncarnation
from headpond.jobs import JobState
from headpond_workers.persistence.batch import Batch
from headpond_workers.persistence.chain import HeadAt, OnRead, StateChain
from headpond_workers.persistence.documents import Head, Segment
from headpond_workers.persistence.fold import Change, apply, begins_anew, dropped, item_key
from headpond_workers.persistence.items import JOB, DroppedItem, Item, JobItem
from headpond_workers.persistence.journal_id import JOURNAL_START, JournalId
from headpond_workers.persistence.segment_cuts import cut
from headpond_workers.persistence.state_point import StatePoint, changed_keys, state_at
from headpond_workers.storage.blobs import Blobs

__all__ = ["HeadAt", "StateStore"]

logger = logging.getLogger(__name__)


class StateStore(StateChain):
    """The state of one model. Holds nothing but its arguments; as thread-safe as `blobs`.

    Reading raises BlobCorrupt for a document that breaks the rules of documents.py, UnsupportedSchema for one of a
    newer headpond; any call may raise StorageUnavailable.
    """

    def __init__(
        self, blobs: Blobs, model: str, *, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    ) -> None:
        super().__init__(blobs, model)
        self.now_ms = now_ms
        self.head_key = self.keys.head

    def create_head(self, *, lineage: str, writer: str, inc: int = 0) -> HeadAt:
        """Begin a history without segments. Raises BlobChanged if the model has one: read that."""
        head = Head(
            txn=new_txn(),
            created_ms=self.now_ms(),
            writer=writer,
            lineage=lineage,
            epoch=1,
            seq=0,
            inc=inc,
            watermark=JOURNAL_START,
            segment=None,
        )
        return HeadAt(head, self.blobs.put_new(self.head_key, head.pack()))

    def commit(self, at: HeadAt, batch: Batch, *, writer: str) -> HeadAt:
        """Make a batch part of the chain; return the head for the next commit.

        Records at or below the watermark are left out. The head keeps the highest incarnation. When this returns, the
        journal may be trimmed up to `batch.last`.

        Raises CommitLost if the head is no longer `at`; a long batch may then have been committed in part, as the
        watermark shows. Raises StaleIncarnation, with nothing written.
        """
        if batch.inc < at.head.inc:
            raise StaleIncarnation(self.head_key, inc=batch.inc, head_inc=at.head.inc)
        pieces = cut(batch, watermark=at.head.watermark)
        if not pieces and batch.inc > at.head.inc:
            return self.swap(at, replace(at.head, inc=batch.inc), writer=writer)
        for piece in pieces:
            at = self._commit_segment(at, piece, writer=writer)
        return at

    def swap(self, at: HeadAt, head: Head, *, writer: str) -> HeadAt:
        """Replace the head `at` by what is in `head`; the epoch rises if the writer is another. Raises CommitLost."""
        head = replace(
            head, txn=new_txn(), created_ms=self.now_ms(), writer=writer, epoch=max(head.epoch, next_epoch(at, writer))
        )
        try:
            return HeadAt(head, self.blobs.put_if(self.head_key, head.pack(), etag=at.etag))
        except BlobChanged as error:
            raise CommitLost(self.head_key) from error

    def state(self, head: Head, *, until_ms: int | None = None) -> StatePoint:
        """What the chain of `head` comes to, now or at a moment; see `state_at`."""
        return state_at(self, head, until_ms=until_ms)

    def items(self, head: Head, *, until_ms: int | None = None) -> Iterator[Item]:
        """Every item of the state once, sorted by key; memory is bounded as in `StatePoint`."""
        return self.state(head, until_ms=until_ms).items()

    def changed_after(self, head: Head, journal_id: JournalId) -> Iterator[Item | DroppedItem]:
        """Each item with a record after `journal_id`, as it is now; DroppedItem for what is no more. Sorted by key.

        If the chain is kept from a later entry on only: every item, and nothing of those that are no more.
        """
        keys = changed_keys(self.segments(head), after=journal_id)
        point = self.state(head)
        if keys is None:
            yield from point.items()
            return
        there = iter(point.items(only=keys))
        item = next(there, None)
        for key in sorted(keys):
            if item is not None and item.key == key:
                yield item
                item = next(there, None)
            else:
                yield dropped(key)

    def find_item(self, key: str, *, on_read: OnRead | None = None) -> Item | None:
        """One item; None if storage does not have it. key: as in items.py."""
        at = self.read_head()
        if at is None:
            return None
        changes: list[Change] = []
        for segment in self.segments(at.head, above=at.head.snapshot_seq, on_read=on_read):
            for change in reversed([*segment.records, *segment.progress]):
                if item_key(change) == key:
                    changes.append(change)
                    if begins_anew(change):
                        return apply(reversed(changes), None)
        return apply(reversed(changes), self._find_in_snapshot(at.head, key))

    def find_job(self, job_id: str, *, on_read: OnRead | None = None) -> JobItem | None:
        """A job as storage knows it; None if it does not.

        The newest record of an id speaks for it: a job submitted anew under an old id hides the old end.
        """
        item = self.find_item(f"{JOB}/{job_id}", on_read=on_read)
        return item if isinstance(item, JobItem) else None

    def find_result(self, job_id: str, *, on_read: OnRead | None = None) -> tuple[JobState, bytes] | None:
        """How the job ended, and its packed result. None if storage has no such job, or its end is not there yet."""
        job = self.find_job(job_id, on_read=on_read)
        return None if job is None or job.state is None else (job.state, job.result)

    def find_data(self, job_id: str) -> bytes | None:
        """The packed request of the job; None if storage does not have it."""
        job = self.find_job(job_id)
        return None if job is None else job.data or None

    def _find_in_snapshot(self, head: Head, key: str) -> Item | None:
        snapshot = self.snapshot(head)
        if snapshot is None:
            return None
        place = bisect_left(snapshot.parts, key, key=lambda ref: ref.last)
        if place == len(snapshot.parts) or snapshot.parts[place].first > key:
            return None
        return next((item for item in self.part(snapshot.parts[place]) if item.key == key), None)

    def _commit_segment(self, at: HeadAt, batch: Batch, *, writer: str) -> HeadAt:
        old = at.head
        epoch, step = next_epoch(at, writer), 1
        as_of_ms = max(old.as_of_ms, batch.as_of_ms)
        while True:
            segment = Segment(
                txn=new_txn(),
                created_ms=self.now_ms(),
                writer=writer,
                model=self.model,
                lineage=old.lineage,
                epoch=epoch,
                seq=old.seq + 1,
                prev=old.segment,
                first=batch.first,
                last=batch.last,
                inc=batch.inc,
                as_of_ms=as_of_ms,
                records=batch.records,
                progress=batch.progress,
                fair=batch.fair,
            )
            key = self.keys.segment(epoch=epoch, seq=segment.seq)
            body = segment.pack()
            try:
                self.blobs.put_new(key, body)
            except BlobChanged as error:
                current = self.read_head()
                if current is None or current.etag != at.etag:
                    raise CommitLost(self.head_key) from error
                # The steps double: a run of orphans, left by one crash after another, is passed in few tries.
                logger.info("segment_key_taken model=%s key=%s next_epoch=%d", self.model, key, epoch + step)
                epoch, step = epoch + step, step * 2
                continue
            head = replace(
                old,
                epoch=epoch,
                seq=segment.seq,
                inc=batch.inc,
                watermark=batch.last or old.watermark,
                segment=key,
                as_of_ms=as_of_ms,
                above_bytes=old.above_bytes + len(body),
            )
            committed = self.swap(at, head, writer=writer)
            logger.debug(
                "segment_committed model=%s key=%s records=%d bytes=%d", self.model, key, len(batch.records), len(body)
            )
            return committed


def next_epoch(at: HeadAt, writer: str) -> int:
    """Of what `writer` commits next."""
    return at.head.epoch if at.head.writer == writer else at.head.epoch + 1


def new_txn() -> str:
    return secrets.token_hex(16)
