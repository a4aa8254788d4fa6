"""What a model's state came to at one moment: a snapshot, and what the segments after it change."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from headpond.errors import HistoryTooShort
from headpond_workers.persistence.chain import StateChain
from headpond_workers.persistence.documents import Head, Segment
from headpond_workers.persistence.fair import Fair
from headpond_workers.persistence.fold import Changes, item_key
from headpond_workers.persistence.items import Item
from headpond_workers.persistence.journal_id import JOURNAL_START, JournalId
from headpond_workers.persistence.snapshot_documents import PartRef, Snapshot


@dataclass(slots=True)
class StatePoint:
    """seq: of the newest segment that it includes. inc, watermark, as_of_ms: as in the head of that time.

    Memory is that of the segments between two snapshots, and of one part.
    """

    chain: StateChain
    seq: int = 0
    inc: int = 0
    watermark: JournalId = JOURNAL_START
    as_of_ms: int = 0
    fair: Fair | None = None
    snapshot: Snapshot | None = None
    changes: Changes = field(default_factory=Changes)

    def items(self, *, only: Collection[str] | None = None) -> Iterator[Item]:
        """Every item once, sorted by key. only: keys of those that are wanted; parts without any are not read."""
        keys = self.changes.keys() if only is None else sorted(only)
        for ref, span in spans(self.parts, keys):
            if only is not None and not span:
                continue
            old = self.part(ref) if ref is not None else ()
            for item in merge(old, span, self.changes):
                if only is None or item.key in only:
                    yield item

    @property
    def parts(self) -> tuple[PartRef, ...]:
        """Of its snapshot."""
        return () if self.snapshot is None else self.snapshot.parts

    def part(self, ref: PartRef) -> tuple[Item, ...]:
        return self.chain.part(ref)


def state_at(chain: StateChain, head: Head, *, until_ms: int | None = None) -> StatePoint:
    """The newest state, or the newest one that was committed with an `as_of_ms` of at most until_ms. Of a batch that
    became several segments all but the last have the time of the batch before, and are taken with that.

    Raises HistoryTooShort, BlobCorrupt, StorageUnavailable.
    """
    point = StatePoint(chain)
    later: Snapshot | None = None
    for snapshot in chain.snapshots(head):
        if until_ms is None or snapshot.as_of_ms <= until_ms:
            point.snapshot = snapshot
            break
        later = snapshot
    base = point.snapshot
    if base is None and later is not None and head.floor:
        raise HistoryTooShort(chain.keys.head, oldest_ms=later.as_of_ms)
    if base is not None:
        point.seq, point.inc, point.watermark = base.seq, base.inc, base.watermark
        point.as_of_ms, point.fair = base.as_of_ms, base.fair
    above = point.seq
    segments = chain.segments(head, above=above) if later is None else chain.segments_of(later, above=above)
    newest = True
    fair: Fair | None = None
    for segment in segments:
        if until_ms is not None and segment.as_of_ms > until_ms:
            continue
        if newest:
            point.seq, point.inc, point.as_of_ms = segment.seq, segment.inc, segment.as_of_ms
            newest = False
        if segment.last is not None:
            point.watermark = max(point.watermark, segment.last)
        fair = fair or segment.fair
        point.changes.add_older(segment)
    point.fair = fair or point.fair
    return point


def spans(refs: tuple[PartRef, ...], keys: list[str]) -> Iterator[tuple[PartRef | None, list[str]]]:
    """Each part with the changed keys (sorted) that belong into it: those after the part before it, up to its last
    item; the last part has all that follow. Without parts, all keys by themselves."""
    if not refs:
        yield None, keys
    begin = 0
    for number, ref in enumerate(refs, start=1):
        end = len(keys) if number == len(refs) else bisect_left(keys, ref.last, begin)
        end += number < len(refs) and end < len(keys) and keys[end] == ref.last
        yield ref, keys[begin:end]
        begin = end


def merge(old: tuple[Item, ...], keys: list[str], changes: Changes) -> Iterator[Item]:
    """Items of a part and changes to them, both sorted by key, as they are after the changes."""
    at = 0
    for item in old:
        key = item.key
        while at < len(keys) and keys[at] < key:
            if (new := changes.apply(keys[at], None)) is not None:
                yield new
            at += 1
        if at < len(keys) and keys[at] == key:
            at += 1
        if (kept := changes.apply(key, item)) is not None:
            yield kept
    for key in keys[at:]:
        if (new := changes.apply(key, None)) is not None:
            yield new


def changed_keys(segments: Iterator[Segment], *, after: JournalId) -> set[str] | None:
    """Keys of the items that a record after `after` speaks of. segments: of the chain, newest first; they are read as
    far as needed. None if they end before: then any item may have changed."""
    keys: set[str] = set()
    seq = 0
    for segment in segments:
        seq = segment.seq
        if segment.last is not None and segment.last <= after:
            return keys
        keys.update(item_key(record) for record in segment.records if record.journal_id > after)
    return keys if seq <= 1 else None
