"""From records to the state that they come to: for each id, what happened to it, in order. Pure.

Only what a state depends on is kept: a submit, a drop, or a whole document makes what came before it worthless. So a
stretch of the chain is folded in the memory of its newest records, whether or not the state before it is known.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from headpond_workers.persistence.documents import Segment
from headpond_workers.persistence.items import COMMIT, JOB, SESSION, CommitItem, DroppedItem, Item, JobItem, SessionItem
from headpond_workers.persistence.progress import Progress
from headpond_workers.persistence.records import (
    BackRecord,
    CommitRecord,
    DropRecord,
    EndRecord,
    Record,
    SessionRecord,
    SubmitRecord,
)

Change = Record | Progress


def item_key(change: Change) -> str:
    """The key of the item that it changes."""
    match change:
        case CommitRecord():
            return f"{COMMIT}/{change.id}"
        case SessionRecord():
            return f"{SESSION}/{change.id}"
        case _:
            return f"{JOB}/{change.id}"


def begins_anew(change: Change) -> bool:
    """What its item was before does not matter."""
    return isinstance(change, SubmitRecord | DropRecord | CommitRecord | SessionRecord)


class Changes:
    """What a stretch of the chain changes. Segments are added newest first, as the chain is read."""

    def __init__(self) -> None:
        self._of_key: dict[str, list[Change]] = {}
        """Newest first."""

    def add_older(self, segment: Segment) -> None:
        for progress in reversed(segment.progress):
            self._note(progress)
        for record in reversed(segment.records):
            self._note(record)

    def keys(self) -> list[str]:
        """Of the items that are changed, sorted."""
        return sorted(self._of_key)

    def apply(self, key: str, item: Item | None) -> Item | None:
        """What became of an item. item: as it was before the stretch; None if there was none."""
        return apply(reversed(self._of_key.get(key, [])), item)

    def _note(self, change: Change) -> None:
        newer = self._of_key.setdefault(item_key(change), [])
        if newer and begins_anew(newer[-1]):
            return
        # Of a job before its end only what was asked is needed.
        if not (newer and isinstance(newer[-1], EndRecord)) or begins_anew(change):
            newer.append(change)


def apply(changes: Iterable[Change], item: Item | None) -> Item | None:
    """What becomes of an item by changes to it, oldest first."""
    for change in changes:
        item = _step(change, item)
    return item


def dropped(key: str) -> DroppedItem:
    kind, _, name = key.partition("/")
    return DroppedItem(kind, name)


def _step(change: Change, item: Item | None) -> Item | None:
    match change:
        case SubmitRecord():
            return JobItem(change.id, change.data, change.row, change.due_ms, change.deadline_ms)
        case DropRecord():
            return None
        case CommitRecord():
            return CommitItem(change.id, change.document) if change.document else None
        case SessionRecord():
            return SessionItem(change.id, change.row) if change.row else None
        case EndRecord():
            before = item if isinstance(item, JobItem) else JobItem(change.id, b"")
            row = change.row or before.row
            return replace(before, row=row, ids=(), pieces=(), state=change.state, result=change.result)
        case BackRecord() | Progress():
            # An ended state never changes; and what was dropped does not come back by a word about its lease.
            if not isinstance(item, JobItem) or item.state is not None:
                return item
            if isinstance(change, BackRecord):
                return replace(item, row=change.row or item.row)
            if change.offset > len(item.ids):
                # Tokens between are nowhere: the job goes on from those before them.
                return item
            return replace(
                item,
                row=change.row,
                ids=item.ids[: change.offset] + change.ids,
                pieces=item.pieces[: change.offset] + change.pieces,
            )
