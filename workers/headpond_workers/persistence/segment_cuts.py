"""Cuts a batch into segments that are small enough to send again, and to hold in memory. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from headpond_workers.persistence.batch import Batch
from headpond_workers.persistence.journal_id import JournalId
from headpond_workers.persistence.progress import Progress
from headpond_workers.persistence.records import record_bytes

T = TypeVar("T")
SEGMENT_TARGET_BYTES = 8 << 20
SEGMENT_TARGET_RECORDS = 20_000


def cut(batch: Batch, *, watermark: JournalId) -> list[Batch]:
    """The batch without what is at or below the watermark, one or more for as many segments; none if nothing is left.

    Progress and fair-queueing state stand in the last ones, after all records: their jobs are known by then. Only with
    the last is everything there that `as_of_ms` promises.
    """
    pieces: list[Batch] = []
    if batch.first is not None and batch.last is not None and batch.last > watermark:
        fresh = [record for record in batch.records if record.journal_id > watermark]
        groups = _groups(fresh, record_bytes) or [[]]
        for number, group in enumerate(groups, start=1):
            begin = group[0].journal_id if group else batch.last
            if number == 1 and batch.first > watermark:
                begin = batch.first
            end = batch.last if number == len(groups) else group[-1].journal_id
            pieces.append(Batch(first=begin, last=end, inc=batch.inc, records=tuple(group)))
    for progress in _groups(batch.progress, Progress.size):
        room = pieces and sum(map(record_bytes, pieces[-1].records)) < SEGMENT_TARGET_BYTES and not pieces[-1].progress
        if room:
            pieces[-1] = replace(pieces[-1], progress=tuple(progress))
        else:
            pieces.append(Batch(first=None, last=None, inc=batch.inc, progress=tuple(progress)))
    if pieces:
        pieces[-1] = replace(pieces[-1], as_of_ms=batch.as_of_ms, fair=batch.fair)
    return pieces


def _groups(values: Iterable[T], size_of: Callable[[T], int]) -> list[list[T]]:
    """In their order; each within the targets, or of one value."""
    groups: list[list[T]] = []
    size = 0
    for value in values:
        more = size_of(value)
        full = not groups or size + more > SEGMENT_TARGET_BYTES or len(groups[-1]) == SEGMENT_TARGET_RECORDS
        if full:
            groups.append([])
            size = 0
        groups[-1].append(value)
        size += more
    return groups
