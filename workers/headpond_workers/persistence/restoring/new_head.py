"""The head after a restore: a snapshot of what was restored, from which the history goes on (S8)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

from headpond.errors import BlobChanged, CommitLost
from headpond_workers.persistence.items import Item
from headpond_workers.persistence.segments import HeadAt, StateStore, new_txn, next_epoch
from headpond_workers.persistence.snapshot_documents import Part, PartRef, Snapshot
from headpond_workers.persistence.state_point import StatePoint, merge, spans

PART_BYTES = 8 << 20
"""Aimed at: one part is held in memory at a time."""


def commit_restored(store: StateStore, at: HeadAt, point: StatePoint, *, inc: int, now_ms: int, writer: str) -> HeadAt:
    """Make the state of `point` the one that the head leads to, under its newest number. inc: of the Redis that has it
    now. now_ms: by Redis's clock; since then, and not before, an older state is the one that counts.

    Raises CommitLost, StorageUnavailable.
    """
    old = at.head
    is_fork = point.seq < old.seq
    if not is_fork and old.snapshot_seq == old.seq:
        return store.swap(at, replace(old, inc=max(old.inc, inc)), writer=writer)
    newest = store.snapshot(old)
    # One of the same number is replaced: what it holds is in the segments, too.
    before = newest.prev if newest is not None and newest.seq == old.seq else old.snapshot
    parts = tuple(_parts(store, point, writer=writer))
    as_of_ms = max(old.as_of_ms, now_ms) if is_fork else old.as_of_ms
    epoch, step = next_epoch(at, writer), 1
    if old.segment is None:
        raise CommitLost(store.head_key)
    while True:
        snapshot = Snapshot(
            txn=new_txn(), created_ms=store.now_ms(), writer=writer, model=store.model, lineage=old.lineage,
            epoch=epoch, seq=old.seq, inc=old.inc, watermark=old.watermark, as_of_ms=as_of_ms, segment=old.segment,
            prev=before, fair=point.fair, parts=parts,
        )  # fmt: skip
        key = store.keys.snapshot(epoch=epoch, seq=old.seq)
        try:
            store.blobs.put_new(key, snapshot.pack())
            break
        except BlobChanged:
            epoch, step = epoch + step, step * 2
    head = replace(
        old, epoch=epoch, inc=max(old.inc, inc), as_of_ms=as_of_ms, snapshot=key, snapshot_seq=old.seq, above_bytes=0,
        snapshot_bytes=snapshot.size,
    )  # fmt: skip
    return store.swap(at, head, writer=writer)


def _parts(store: StateStore, point: StatePoint, *, writer: str) -> Iterator[PartRef]:
    """Those of the point's snapshot that nothing has changed since, and new ones for the rest."""
    txn, number = new_txn(), 0
    for ref, keys in spans(point.parts, point.changes.keys()):
        if ref is not None and not keys:
            yield ref
            continue
        old = point.part(ref) if ref is not None else ()
        for items in _cut(merge(old, keys, point.changes)):
            body = Part(txn=new_txn(), created_ms=store.now_ms(), writer=writer, model=store.model, items=items).pack()
            number += 1
            key = store.keys.part(txn=txn, number=number)
            store.blobs.put_new(key, body)
            yield PartRef(key, items[0].key, items[-1].key, len(items), len(body), hashlib.sha256(body).digest())


def _cut(items: Iterable[Item]) -> Iterator[tuple[Item, ...]]:
    part: list[Item] = []
    size = 0
    for item in items:
        if part and size + item.size() > PART_BYTES:
            yield tuple(part)
            part, size = [], 0
        part.append(item)
        size += item.size()
    if part:
        yield tuple(part)
