"""What is removed of a model's state: what lies before the floor, and what nothing names.

The floor rises by a swap of the head, and only then is anything deleted, so that a process may be killed at any moment:
the next round finds the rest by listing.

A part, or a snapshot, that nothing names may be one that another process is about to name. So only what was listed
before a snapshot of our own counted is deleted: whoever had put it by then began from the snapshot before, and its swap
is refused. Keys of parts are random, and those of segments rise: none that is deleted is ever named later, however long
a deleter slept.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

from headpond.errors import BlobCorrupt, CommitLost
from headpond_workers.persistence.chain import HeadAt
from headpond_workers.persistence.journal_id import JOURNAL_START, JournalId
from headpond_workers.persistence.segments import StateStore
from headpond_workers.persistence.snapshot_documents import Snapshot
from headpond_workers.persistence.snapshots import SWAP_TRIES

logger = logging.getLogger(__name__)

LEAST_SNAPSHOTS = 2
"""Fewer are never cut by age."""


@dataclass(frozen=True, slots=True)
class Listed:
    """Keys of parts and snapshots that were there at one moment."""

    parts: frozenset[str]
    snapshots: frozenset[str]


def list_unsettled(store: StateStore) -> Listed:
    """What is there before a snapshot is made. Raises StorageUnavailable."""
    return Listed(
        frozenset(store.blobs.list_keys(store.keys.parts)), frozenset(store.blobs.list_keys(store.keys.snapshots))
    )


def raise_floor(
    store: StateStore, at: HeadAt, *, history_ms: int, purged: JournalId = JOURNAL_START, writer: str
) -> HeadAt:
    """Let the history begin at a later snapshot: the newest one that was made history_ms ago or before, and not before
    the one that knows of all that was purged, up to the journal id `purged`.

    Commits may go on meanwhile. Raises CommitLost if another snapshot was made, or the head is swapped again and again;
    BlobCorrupt, StorageUnavailable.
    """
    kept, newest = list(store.snapshots(at.head)), at.head.snapshot
    floor = max(at.head.floor, _old_enough(kept, until_ms=at.head.as_of_ms - history_ms), _without(kept, purged))
    for _ in range(SWAP_TRIES):
        if floor <= at.head.floor:
            return at
        try:
            return store.swap(at, replace(at.head, floor=floor), writer=writer)
        except CommitLost:
            current = store.read_head()
            if current is None or (current.head.lineage, current.head.snapshot) != (at.head.lineage, newest):
                raise
            at = current
    raise CommitLost(store.head_key)


def _old_enough(kept: list[Snapshot], *, until_ms: int) -> int:
    if len(kept) < LEAST_SNAPSHOTS:
        return 0
    return next((snapshot.seq for snapshot in kept if snapshot.as_of_ms <= until_ms), 0)


def _without(kept: list[Snapshot], purged: JournalId) -> int:
    """The seq of the oldest snapshot in which nothing of what was purged is left; 0 if there is none."""
    if purged == JOURNAL_START:
        return 0
    return min((snapshot.seq for snapshot in kept if snapshot.watermark >= purged), default=0)


def is_clean(store: StateStore, at: HeadAt, purged: JournalId) -> bool:
    """Whether the history begins after a purge. Raises BlobCorrupt, StorageUnavailable."""
    oldest = list(store.snapshots(at.head))[-1:]
    return bool(oldest) and oldest[0].seq == at.head.floor and oldest[0].watermark >= purged


def collect(store: StateStore, at: HeadAt, listed: Listed) -> int:
    """Delete what lies before the floor, and what is listed and not named; return how many objects that were.

    at: read or written after a snapshot that counted, and was made after `listed`. Raises BlobCorrupt,
    StorageUnavailable.
    """
    kept = list(store.snapshots(at.head))
    if at.head.floor and at.head.floor not in {snapshot.seq for snapshot in kept}:
        raise BlobCorrupt(store.keys.head, f"no snapshot of it is at its floor {at.head.floor}")
    named = {store.keys.snapshot(epoch=snapshot.epoch, seq=snapshot.seq) for snapshot in kept}
    parts = {part.key for snapshot in kept for part in snapshot.parts}
    doomed = [
        *_segments_below(store, at.head.floor),
        *(key for key in sorted(listed.snapshots) if key not in named),
        *(key for key in sorted(listed.parts) if key not in parts),
    ]
    for key in doomed:
        store.blobs.delete(key)
    if doomed:
        logger.info("state_collected model=%s floor=%d objects=%d", store.model, at.head.floor, len(doomed))
    return len(doomed)


def _segments_below(store: StateStore, floor: int) -> Iterator[str]:
    """Keys of segments up to the floor, those that nothing named among them."""
    for key in store.blobs.list_keys(store.keys.segments):
        try:
            _, seq = store.keys.parse_segment(key, found_in="a listing")
        except BlobCorrupt as error:
            # Somebody else's object; it is not for us to remove.
            logger.warning("foreign_object model=%s error=%s", store.model, error)
            continue
        if seq <= floor:
            yield key
