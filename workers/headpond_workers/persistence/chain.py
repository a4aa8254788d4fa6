"""Reading a model's state: the head, the chain of segments behind it, snapshots and their parts, each checked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from headpond.errors import BlobCorrupt, BlobMissing, MalformedDocument, UnsupportedSchema
from headpond_workers.persistence.documents import MAX_HEAD_BYTES, MAX_SEGMENT_BYTES, Head, Segment
from headpond_workers.persistence.items import Item
from headpond_workers.persistence.journal_id import JournalId
from headpond_workers.persistence.records import Record
from headpond_workers.persistence.snapshot_documents import (
    MAX_PART_BYTES,
    MAX_SNAPSHOT_BYTES,
    Part,
    PartRef,
    Snapshot,
)
from headpond_workers.persistence.state_keys import StateKeys
from headpond_workers.storage.blobs import Blobs

T = TypeVar("T")
OnRead = Callable[[int, int], None]
"""Called after each segment read: how many were read, how many there are to read at most."""


@dataclass(frozen=True, slots=True)
class HeadAt:
    """A head as it was read or written, with the etag that a swap of it needs."""

    head: Head
    etag: str


class StateChain:
    """What stands in storage of one model. Holds nothing but its arguments; as thread-safe as `blobs`.

    Raises BlobCorrupt for a document that is gone, unreadable, of another history or out of order, UnsupportedSchema
    for one of a newer headpond; any call may raise StorageUnavailable.
    """

    def __init__(self, blobs: Blobs, model: str) -> None:
        self.blobs = blobs
        self.model = model
        self.keys = StateKeys(model)

    def read_head(self) -> HeadAt | None:
        """None if this model has no state in storage."""
        key = self.keys.head
        try:
            blob = self.blobs.get(key, max_bytes=MAX_HEAD_BYTES)
        except BlobMissing:
            return None
        head = _readable(key, Head.unpack, blob.body)
        if head.segment is not None:
            epoch, seq = self.keys.parse_segment(head.segment, found_in=key)
            if seq != head.seq or epoch > head.epoch:
                raise BlobCorrupt(key, f"epoch {head.epoch}, seq {head.seq} do not fit its segment {head.segment}")
        if head.snapshot is not None:
            _, seq = self.keys.parse_snapshot(head.snapshot, found_in=key)
            if seq != head.snapshot_seq:
                raise BlobCorrupt(key, f"snapshot_seq {head.snapshot_seq} does not fit its snapshot {head.snapshot}")
        return HeadAt(head, blob.etag)

    def segments(self, head: Head, *, above: int | None = None, on_read: OnRead | None = None) -> Iterator[Segment]:
        """Every segment that `head` leads to, newest first, down to that after seq `above`; None: to the floor. Stop
        when you have what you need."""
        down_to = head.floor if above is None else max(above, head.floor)
        return self._walk(
            head.segment, seq=head.seq, epoch=head.epoch, last=head.watermark, lineage=head.lineage, down_to=down_to,
            found_in=self.keys.head, on_read=on_read,
        )  # fmt: skip

    def segments_of(self, snapshot: Snapshot, *, above: int) -> Iterator[Segment]:
        """The segments that a snapshot includes, newest first, down to that after seq `above`."""
        return self._walk(
            snapshot.segment, seq=snapshot.seq, epoch=snapshot.epoch, last=snapshot.watermark, lineage=snapshot.lineage,
            down_to=above, found_in=self.keys.snapshot(epoch=snapshot.epoch, seq=snapshot.seq), on_read=None,
        )  # fmt: skip

    def records(self, head: Head) -> Iterator[Record]:
        """Every record of the chain, newest first."""
        for segment in self.segments(head):
            yield from reversed(segment.records)

    def snapshots(self, head: Head) -> Iterator[Snapshot]:
        """The snapshots that are kept, newest first."""
        key: str | None = head.snapshot
        below, found_in = head.seq + 1, self.keys.head
        while key is not None:
            epoch, seq = self.keys.parse_snapshot(key, found_in=found_in)
            if seq >= below:
                raise BlobCorrupt(key, f"it follows a snapshot of seq {below}")
            if seq < head.floor:
                return
            snapshot = self._read(key, Snapshot.unpack, max_bytes=MAX_SNAPSHOT_BYTES, found_in=found_in)
            self._check_history(key, snapshot.model, snapshot.lineage, head.lineage)
            if (snapshot.epoch, snapshot.seq) != (epoch, seq):
                raise BlobCorrupt(key, f"it says that it is epoch {snapshot.epoch}, seq {snapshot.seq}")
            yield snapshot
            below, found_in = seq, key
            key = snapshot.prev

    def snapshot(self, head: Head) -> Snapshot | None:
        """The newest snapshot."""
        return next(self.snapshots(head), None)

    def part(self, ref: PartRef) -> tuple[Item, ...]:
        """The items of one part, sorted by key."""
        self.keys.check_part(ref.key, found_in=self.keys.snapshots)
        body = self._get(ref.key, max_bytes=MAX_PART_BYTES, found_in="a snapshot")
        if hashlib.sha256(body).digest() != ref.sha256:
            raise BlobCorrupt(ref.key, "it is not the part that its snapshot names: its SHA-256 differs")
        part = _readable(ref.key, Part.unpack, body)
        if (part.model, part.items[0].key, part.items[-1].key) != (self.model, ref.first, ref.last):
            raise BlobCorrupt(ref.key, f"it does not hold the items of '{self.model}' that its snapshot says")
        return part.items

    def _walk(
        self, key: str | None, *, seq: int, epoch: int, last: JournalId, lineage: str, down_to: int, found_in: str,
        on_read: OnRead | None,
    ) -> Iterator[Segment]:  # fmt: skip
        """last: no entry of the first segment is above."""
        newest, above, strict = seq, last, False
        while key is not None and seq > down_to:
            segment = self._read_segment(key, found_in=found_in)
            self._check_history(key, segment.model, segment.lineage, lineage)
            in_order = segment.last is None or segment.last < above or (segment.last == above and not strict)
            if segment.seq != seq or segment.epoch > epoch or not in_order:
                raise BlobCorrupt(
                    key, f"epoch {segment.epoch}, seq {segment.seq}, last {segment.last} break the chain's order"
                )
            if on_read is not None:
                on_read(newest - seq + 1, newest - down_to)
            yield segment
            seq, epoch, found_in = seq - 1, segment.epoch, key
            key = segment.prev
            if segment.first is not None:
                above, strict = segment.first, True

    def _read_segment(self, key: str, *, found_in: str) -> Segment:
        epoch, seq = self.keys.parse_segment(key, found_in=found_in)
        segment = self._read(key, Segment.unpack, max_bytes=MAX_SEGMENT_BYTES, found_in=found_in)
        if (segment.epoch, segment.seq) != (epoch, seq):
            raise BlobCorrupt(key, f"it says that it is epoch {segment.epoch}, seq {segment.seq}")
        return segment

    def _check_history(self, key: str, model: str, lineage: str, wanted: str) -> None:
        if (model, lineage) != (self.model, wanted):
            raise BlobCorrupt(key, f"it is of '{model}', lineage {lineage}, not {wanted}")

    def _read(self, key: str, unpack: Callable[[bytes], T], *, max_bytes: int, found_in: str) -> T:
        return _readable(key, unpack, self._get(key, max_bytes=max_bytes, found_in=found_in))

    def _get(self, key: str, *, max_bytes: int, found_in: str) -> bytes:
        try:
            return self.blobs.get(key, max_bytes=max_bytes).body
        except BlobMissing as error:
            # Not BlobMissing: to a reader that would mean "no such job", and this is a loss.
            raise BlobCorrupt(key, f"{found_in} leads to it, and it is gone") from error


def _readable(key: str, unpack: Callable[[bytes], T], body: bytes) -> T:
    try:
        return unpack(body)
    except UnsupportedSchema:
        raise
    except MalformedDocument as error:
        raise BlobCorrupt(key, error.reason) from error
