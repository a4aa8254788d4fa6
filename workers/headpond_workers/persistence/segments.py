"""One model's state in storage: a head, and the chain of segments behind it.

    state/<model>/head
    state/<model>/segments/<epoch, 10 digits>-<seq, 10 digits>

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
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

from headpond.errors import (
    BlobChanged,
    BlobCorrupt,
    BlobMissing,
    CommitLost,
    MalformedDocument,
    StaleIncarnation,
    UnsupportedSchema,
)
from headpond.jobs import JobState, check_model_name
from headpond_workers.persistence.blobs import Blobs
from headpond_workers.persistence.documents import (
    JOURNAL_START,
    MAX_HEAD_BYTES,
    MAX_SEGMENT_BYTES,
    EndRecord,
    Head,
    JournalId,
    Record,
    Segment,
    SubmitRecord,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Called after each segment read: how many were read, how many the chain has."""
SEGMENT_TARGET_BYTES = 8 << 20
"""A longer batch becomes several commits: small enough to send again, and to hold in memory."""
SEGMENT_TARGET_RECORDS = 20_000
_SEGMENT_NAME = re.compile(r".*/([0-9]{10,16})-([0-9]{10,16})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class HeadAt:
    """A head as it was read or written, with the etag that a swap of it needs."""

    head: Head
    etag: str


class StateStore:
    """The state of one model. Holds nothing but its arguments; as thread-safe as `blobs`.

    Reading raises BlobCorrupt for a document that breaks the rules of documents.py, UnsupportedSchema for one of a
    newer headpond; any call may raise StorageUnavailable.
    """

    def __init__(
        self, blobs: Blobs, model: str, *, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    ) -> None:
        self._blobs = blobs
        self._model = check_model_name(model)
        self._now_ms = now_ms
        self.head_key = f"state/{model}/head"

    def segment_key(self, *, epoch: int, seq: int) -> str:
        return f"state/{self._model}/segments/{epoch:010d}-{seq:010d}"

    def read_head(self) -> HeadAt | None:
        """None if this model has no state in storage."""
        try:
            blob = self._blobs.get(self.head_key, max_bytes=MAX_HEAD_BYTES)
        except BlobMissing:
            return None
        head = _readable(self.head_key, Head.unpack, blob.body)
        if head.segment is not None:
            epoch, seq = self._parse_key(head.segment, found_in=self.head_key)
            if seq != head.seq or epoch > head.epoch:
                raise BlobCorrupt(
                    self.head_key, f"epoch {head.epoch}, seq {head.seq} do not fit its segment {head.segment}"
                )
        return HeadAt(head, blob.etag)

    def create_head(self, *, lineage: str, writer: str, inc: int = 0) -> HeadAt:
        """Begin a history without segments. Raises BlobChanged if the model has one: read that."""
        head = Head(
            txn=_new_txn(),
            created_ms=self._now_ms(),
            writer=writer,
            lineage=lineage,
            epoch=1,
            seq=0,
            inc=inc,
            watermark=JOURNAL_START,
            segment=None,
        )
        return HeadAt(head, self._blobs.put_new(self.head_key, head.pack()))

    def commit(
        self, at: HeadAt, records: Sequence[Record], *, first: JournalId, last: JournalId, inc: int, writer: str
    ) -> HeadAt:
        """Make the journal from `first` to `last` part of the chain; return the head for the next commit.

        records: of the entries in that stretch, in their order; those at or below the watermark are left out. inc:
        the incarnation of Redis that the entries were read under; the head keeps the highest. When this returns,
        the journal may be trimmed up to `last`.

        Raises CommitLost if the head is no longer `at`; a long batch may then have been committed in part, as the
        watermark shows. Raises StaleIncarnation; MalformedDocument for records out of order, with nothing written.
        """
        if inc < at.head.inc:
            raise StaleIncarnation(self.head_key, inc=inc, head_inc=at.head.inc)
        if last <= at.head.watermark:
            return at if inc == at.head.inc else self._raise_inc(at, inc=inc, writer=writer)
        _check_order(records, first=first, last=last)
        fresh = [record for record in records if record.journal_id > at.head.watermark]
        batches = _split(fresh)
        for number, batch in enumerate(batches, start=1):
            begin = batch[0].journal_id if batch else last
            if number == 1 and first > at.head.watermark:
                begin = first
            end = last if number == len(batches) else batch[-1].journal_id
            at = self._commit_segment(at, batch, first=begin, last=end, inc=inc, writer=writer)
        return at

    def chain(self, head: Head, *, progress: Progress | None = None) -> Iterator[Segment]:
        """Every segment that `head` leads to, newest first. Stop when you have what you need.

        Raises BlobCorrupt where the chain is broken: a segment is gone, unreadable, of another history or out of
        order.
        """
        key, seq, epoch, above = head.segment, head.seq, head.epoch, None
        while key is not None:
            segment = self._read_segment(key)
            if (segment.model, segment.lineage) != (self._model, head.lineage):
                raise BlobCorrupt(key, f"it is of '{segment.model}', lineage {segment.lineage}, not {head.lineage}")
            in_order = segment.last < above if above else segment.last <= head.watermark
            if segment.seq != seq or segment.epoch > epoch or not in_order:
                raise BlobCorrupt(
                    key, f"epoch {segment.epoch}, seq {segment.seq}, last {segment.last} break the chain's order"
                )
            if progress is not None:
                progress(head.seq - seq + 1, head.seq)
            yield segment
            key, seq, epoch, above = segment.prev, seq - 1, segment.epoch, segment.first

    def records(self, head: Head, *, progress: Progress | None = None) -> Iterator[Record]:
        """Every record of the chain, newest first."""
        for segment in self.chain(head, progress=progress):
            yield from reversed(segment.records)

    def find_result(self, job_id: str, *, progress: Progress | None = None) -> tuple[JobState, bytes] | None:
        """How the job ended, and its packed result. None if storage has no such job, or its end is not there yet.

        The newest record of an id speaks for it: a job submitted anew under an old id hides the old end.
        """
        at = self.read_head()
        if at is None:
            return None
        for record in self.records(at.head, progress=progress):
            if record.id == job_id:
                return (record.state, record.result) if isinstance(record, EndRecord) else None
        return None

    def find_data(self, job_id: str, *, progress: Progress | None = None) -> bytes | None:
        """The packed request of the job; None if storage does not have it."""
        at = self.read_head()
        if at is None:
            return None
        for record in self.records(at.head, progress=progress):
            if record.id == job_id and isinstance(record, SubmitRecord):
                return record.data
        return None

    def _commit_segment(
        self, at: HeadAt, records: tuple[Record, ...], *, first: JournalId, last: JournalId, inc: int, writer: str
    ) -> HeadAt:
        old = at.head
        epoch, step = _epoch(old, writer), 1
        while True:
            segment = Segment(
                txn=_new_txn(),
                created_ms=self._now_ms(),
                writer=writer,
                model=self._model,
                lineage=old.lineage,
                epoch=epoch,
                seq=old.seq + 1,
                prev=old.segment,
                first=first,
                last=last,
                records=records,
            )
            key = self.segment_key(epoch=epoch, seq=segment.seq)
            head = replace(
                old,
                txn=_new_txn(),
                created_ms=segment.created_ms,
                writer=writer,
                epoch=epoch,
                seq=segment.seq,
                inc=inc,
                watermark=last,
                segment=key,
            )
            body = segment.pack()
            try:
                self._blobs.put_new(key, body)
            except BlobChanged as error:
                current = self.read_head()
                if current is None or current.etag != at.etag:
                    raise CommitLost(self.head_key) from error
                # The steps double: a run of orphans, left by one crash after another, is passed in few tries.
                logger.info("segment_key_taken model=%s key=%s next_epoch=%d", self._model, key, epoch + step)
                epoch, step = epoch + step, step * 2
                continue
            committed = self._swap(at, head)
            logger.debug(
                "segment_committed model=%s key=%s records=%d bytes=%d", self._model, key, len(records), len(body)
            )
            return committed

    def _raise_inc(self, at: HeadAt, *, inc: int, writer: str) -> HeadAt:
        head = replace(
            at.head,
            txn=_new_txn(),
            created_ms=self._now_ms(),
            writer=writer,
            epoch=_epoch(at.head, writer),
            inc=inc,
        )
        return self._swap(at, head)

    def _swap(self, at: HeadAt, head: Head) -> HeadAt:
        try:
            return HeadAt(head, self._blobs.put_if(self.head_key, head.pack(), etag=at.etag))
        except BlobChanged as error:
            raise CommitLost(self.head_key) from error

    def _read_segment(self, key: str) -> Segment:
        epoch, seq = self._parse_key(key, found_in=self.head_key)
        try:
            blob = self._blobs.get(key, max_bytes=MAX_SEGMENT_BYTES)
        except BlobMissing as error:
            # Not BlobMissing: to a reader that would mean "no such job", and this is a loss.
            raise BlobCorrupt(key, f"the chain of {self.head_key} leads to it, and it is gone") from error
        segment = _readable(key, Segment.unpack, blob.body)
        if (segment.epoch, segment.seq) != (epoch, seq):
            raise BlobCorrupt(key, f"it says that it is epoch {segment.epoch}, seq {segment.seq}")
        return segment

    def _parse_key(self, key: str, *, found_in: str) -> tuple[int, int]:
        """Epoch and seq in a segment's key. A document leads to no other object than a segment of its model."""
        match = _SEGMENT_NAME.fullmatch(key)
        epoch, seq = (int(match[1]), int(match[2])) if match else (0, 0)
        if key != self.segment_key(epoch=epoch, seq=seq):
            raise BlobCorrupt(found_in, f"{key[:200]!r} is no segment of '{self._model}'")
        return epoch, seq


def _epoch(head: Head, writer: str) -> int:
    return head.epoch if head.writer == writer else head.epoch + 1


def _new_txn() -> str:
    return secrets.token_hex(16)


def _readable(key: str, unpack: Callable[[bytes], T], body: bytes) -> T:
    try:
        return unpack(body)
    except UnsupportedSchema:
        raise
    except MalformedDocument as error:
        raise BlobCorrupt(key, error.reason) from error


def _check_order(records: Sequence[Record], *, first: JournalId, last: JournalId) -> None:
    ids = [first, *(record.journal_id for record in records), last]
    rising = all(a < b for a, b in pairwise(ids[1:-1]))
    if not rising or ids[0] > ids[1] or ids[-2] > ids[-1]:
        raise MalformedDocument("journal batch", f"its records are not in order from {first} to {last}")


def _split(records: Sequence[Record]) -> list[tuple[Record, ...]]:
    """At least one batch; each within the targets, or a single record."""
    batches: list[tuple[Record, ...]] = []
    batch: list[Record] = []
    size = 0
    for record in records:
        more = len(record.data if isinstance(record, SubmitRecord) else record.result) + len(record.id) + 100
        if batch and (size + more > SEGMENT_TARGET_BYTES or len(batch) == SEGMENT_TARGET_RECORDS):
            batches.append(tuple(batch))
            batch, size = [], 0
        batch.append(record)
        size += more
    return [*batches, tuple(batch)]
