"""Makes snapshots: all that the chain comes to, in sorted parts. Later ones use again the parts that did not change.

Parts and snapshot are put before the head that names them, so that a process may be killed at any moment: what nobody
names is left for the collector. Memory is that of the segments between two snapshots, one part that is read, and one
that is written.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from headpond.errors import BlobChanged, CommitLost
from headpond_workers.persistence.chain import HeadAt
from headpond_workers.persistence.documents import Head
from headpond_workers.persistence.items import Item
from headpond_workers.persistence.segments import StateStore, new_txn, next_epoch
from headpond_workers.persistence.snapshot_documents import Part, PartRef, Snapshot
from headpond_workers.persistence.state_point import StatePoint, merge, spans

logger = logging.getLogger(__name__)

Keep = Callable[[Item], bool]
"""Whether an item stays; what retention lets go is in no later snapshot."""
PART_TARGET_BYTES = 8 << 20
SEGMENTS_ABOVE = 64
BYTES_ABOVE = 16 << 20
LARGE_FACTOR = 16
"""A snapshot of so many times what stands above it is large: it is not made anew for so little, but"""
LARGE_SEGMENTS_ABOVE = 512
"""for so many segments, which a reader would otherwise have to read, and"""
LARGE_BYTES_ABOVE = 64 << 20
"""for so many bytes, which whoever folds them has in memory."""
SWAP_TRIES = 20


def is_due(head: Head) -> bool:
    """Whether enough stands above the last snapshot for another."""
    above = head.seq - head.snapshot_seq
    if head.snapshot_bytes > LARGE_FACTOR * max(head.above_bytes, BYTES_ABOVE):
        return above >= LARGE_SEGMENTS_ABOVE or head.above_bytes >= LARGE_BYTES_ABOVE
    return above >= SEGMENTS_ABOVE or head.above_bytes >= BYTES_ABOVE


def make_snapshot(
    store: StateStore,
    at: HeadAt,
    *,
    writer: str,
    keep: Keep | None = None,
    until_ms: int | None = None,
    now_ms: int = 0,
) -> HeadAt:
    """Make a snapshot of the chain that `at` leads to, and the head lead to it; commits may go on meanwhile. A chain
    without segments has none.

    keep: None keeps everything. until_ms: the snapshot holds the state of that time, as `StateStore.state` finds it,
    and stands for the chain up to `at` all the same: what came later is undone. now_ms: by Redis's clock, where it is:
    from then on, and not before, that state is what the chain comes to.

    Raises CommitLost if another snapshot was made meanwhile, or the head is swapped again and again; BlobCorrupt,
    StorageUnavailable.
    """
    if at.head.segment is None:
        return at
    before = at.head
    point = store.state(before, until_ms=until_ms)
    parts = _write_parts(store, point, writer=writer, keep=keep)
    snapshot, key = _put_snapshot(store, at, point, parts, writer=writer, now_ms=now_ms)
    for _ in range(SWAP_TRIES):
        head = replace(
            at.head,
            snapshot=key,
            snapshot_seq=snapshot.seq,
            as_of_ms=max(at.head.as_of_ms, snapshot.as_of_ms),
            above_bytes=max(0, at.head.above_bytes - before.above_bytes),
            snapshot_bytes=snapshot.size,
        )
        try:
            at = store.swap(at, head, writer=writer)
        except CommitLost:
            current = store.read_head()
            if current is None or (current.head.lineage, current.head.snapshot) != (before.lineage, before.snapshot):
                raise
            at = current
            continue
        logger.info(
            "snapshot_made model=%s key=%s parts=%d bytes=%d", store.model, key, len(snapshot.parts), snapshot.size
        )
        return at
    raise CommitLost(store.head_key)


def _write_parts(store: StateStore, point: StatePoint, *, writer: str, keep: Keep | None) -> tuple[PartRef, ...]:
    """The parts of the new snapshot, old ones among them."""
    parts = _Parts(store, writer)
    for ref, keys in spans(point.parts, point.changes.keys()):
        old: tuple[Item, ...] = ()
        if ref is not None:
            untouched = not keys and not parts.has_room_for(ref)
            if untouched and keep is None:
                parts.use_again(ref)
                continue
            old = point.part(ref)
            if untouched and keep is not None and all(map(keep, old)):
                parts.use_again(ref)
                continue
        for item in merge(old, keys, point.changes):
            if keep is None or keep(item):
                parts.add(item)
    return parts.close()


@dataclass(slots=True)
class _Parts:
    """Parts as they are written, in order; those that are used again stand between."""

    store: StateStore
    writer: str
    refs: list[PartRef] = field(default_factory=list)
    txn: str = field(default_factory=new_txn)
    items: list[Item] = field(default_factory=list)
    """Of the part that is not written yet."""
    size: int = 0
    written: int = 0

    def add(self, item: Item) -> None:
        if self.items and self.size + item.size() > PART_TARGET_BYTES:
            self._write()
        self.items.append(item)
        self.size += item.size()

    def has_room_for(self, ref: PartRef) -> bool:
        """Whether a part is better read and joined to what is to be written than used again: else small parts, which
        retention leaves behind, would stay for ever."""
        return bool(self.items) and self.size + ref.size <= PART_TARGET_BYTES

    def use_again(self, ref: PartRef) -> None:
        self._write()
        self.refs.append(ref)

    def close(self) -> tuple[PartRef, ...]:
        self._write()
        return tuple(self.refs)

    def _write(self) -> None:
        if not self.items:
            return
        key = self.store.keys.part(txn=self.txn, number=self.written)
        part = Part(
            txn=new_txn(), created_ms=self.store.now_ms(), writer=self.writer, model=self.store.model,
            items=tuple(self.items),
        )  # fmt: skip
        body = part.pack()
        # Its key is random, so nothing else is there.
        self.store.blobs.put_new(key, body)
        first, last = self.items[0].key, self.items[-1].key
        self.refs.append(PartRef(key, first, last, len(self.items), len(body), hashlib.sha256(body).digest()))
        self.written += 1
        self.items, self.size = [], 0


def _put_snapshot(
    store: StateStore, at: HeadAt, point: StatePoint, parts: tuple[PartRef, ...], *, writer: str, now_ms: int
) -> tuple[Snapshot, str]:
    head = at.head
    epoch, step = next_epoch(at, writer), 1
    prev = head.snapshot
    if head.snapshot_seq == head.seq:
        # It takes the place of one of the same moment.
        newest = store.snapshot(head)
        prev = None if newest is None else newest.prev
    while True:
        snapshot = Snapshot(
            txn=new_txn(),
            created_ms=store.now_ms(),
            writer=writer,
            model=store.model,
            lineage=head.lineage,
            epoch=epoch,
            seq=head.seq,
            inc=head.inc,
            watermark=head.watermark,
            as_of_ms=max(head.as_of_ms, now_ms),
            segment=head.segment or "",
            prev=prev,
            fair=point.fair,
            parts=parts,
        )
        key = store.keys.snapshot(epoch=epoch, seq=snapshot.seq)
        try:
            store.blobs.put_new(key, snapshot.pack())
        except BlobChanged:
            # Of a snapshot that was cut off, or of another writer: the swap of the head decides.
            logger.info("snapshot_key_taken model=%s key=%s", store.model, key)
            epoch, step = epoch + step, step * 2
            continue
        return snapshot, key
