"""From entries of a queue's journal to records of a segment: what the entries refer to is read from the queue."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from headpond.errors import MalformedDocument
from headpond.queue import JobQueue
from headpond.queue_reads import JournalEntry
from headpond.results import build_result
from headpond.wire import RunRow, pack_result, unpack_run
from headpond_workers.persistence.journal_id import JournalId
from headpond_workers.persistence.records import (
    BackRecord,
    CommitRecord,
    DropRecord,
    EndRecord,
    Record,
    SessionRecord,
    SubmitRecord,
    record_bytes,
)

logger = logging.getLogger(__name__)

ENTRIES_A_READ = 100
MAX_BATCH_BYTES = 16 << 20
"""Of the records that are in memory at once; those of one read may be more."""


def read_records(queue: JobQueue, entries: Sequence[JournalEntry]) -> tuple[tuple[Record, ...], int]:
    """Records of the first entries, and how many entries these are: fewer than all where the records become too many
    bytes. An entry of which nothing is left has no record. Raises RedisUnavailable, MalformedDocument."""
    records: list[Record] = []
    size = taken = 0
    while taken < len(entries) and size < MAX_BATCH_BYTES:
        some = entries[taken : taken + ENTRIES_A_READ]
        found = _read(queue, some)
        records += found
        size += sum(map(record_bytes, found))
        taken += len(some)
    return tuple(records), taken


def _read(queue: JobQueue, entries: Sequence[JournalEntry]) -> list[Record]:
    submitted = _ids(entries, "submit")
    data = _packed(queue, "data", submitted)
    due, deadlines = _times(queue, "delayed", submitted), _times(queue, "deadlines", submitted)
    rows = _packed(queue, "run", _ids(entries, "submit", "end", "back"))
    results = _packed(queue, "result", _ids(entries, "end"))
    records: list[Record] = []
    for entry in entries:
        journal_id, name = JournalId.parse(entry.journal_id), entry.job_id
        row = rows.get(name) or b""
        match entry.kind:
            case "submit":
                if (asked := data[name]) is not None:
                    records.append(SubmitRecord(journal_id, name, asked, row, due[name], deadlines[name]))
                else:
                    # It was dropped since, which a later entry tells.
                    logger.warning("journal_without_data model=%s job=%s", queue.name, name)
            case "end":
                if (end := _end(queue, journal_id, name, row, results[name])) is not None:
                    records.append(end)
            case "back":
                if row:
                    records.append(BackRecord(journal_id, name, row))
            case "drop":
                records.append(DropRecord(journal_id, name))
            case "commit":
                records.append(CommitRecord(journal_id, name, queue.turn(name) or b""))
            case "session":
                records.append(SessionRecord(journal_id, name, entry.row))
            case _:
                # Not passed over: the trim would take it away for good.
                raise MalformedDocument("journal entry", f"{journal_id} is of the unknown kind {entry.kind[:40]!r}")
    return records


def _end(queue: JobQueue, journal_id: JournalId, job_id: str, row: bytes, document: bytes | None) -> EndRecord | None:
    job = read_row(job_id, row)
    if job is None or not job.state.ended:
        logger.warning("journal_without_end model=%s job=%s", queue.name, job_id)
        return None
    if document is None:
        # No worker ended it: its text and tokens are in its stream.
        try:
            document = pack_result(build_result(job_id, job, None, queue.events(job_id)))
        except MalformedDocument as error:
            logger.error("stream_unreadable model=%s job=%s error=%s", queue.name, job_id, error)
            document = b""
    return EndRecord(journal_id, job_id, job.state, document, row)


def read_row(job_id: str, row: bytes) -> RunRow | None:
    """A run row. None for none, and for one that cannot be read: as in scripts, one bad row stops no queue."""
    try:
        return unpack_run(row) if row else None
    except MalformedDocument as error:
        logger.error("run_row_unreadable job=%s error=%s", job_id, error)
        return None


def has_tokens(row: bytes) -> bool:
    """Whether a job that has not ended has tokens."""
    job = read_row("", row)
    return job is not None and not job.state.ended and job.offset > 0


def _ids(entries: Iterable[JournalEntry], *kinds: str) -> list[str]:
    return list(dict.fromkeys(entry.job_id for entry in entries if entry.kind in kinds))


def _packed(queue: JobQueue, name: str, ids: list[str]) -> dict[str, bytes | None]:
    return dict(zip(ids, queue.packed(name, ids), strict=True)) if ids else {}


def _times(queue: JobQueue, name: str, ids: list[str]) -> dict[str, int]:
    return dict(zip(ids, queue.times(name, ids), strict=True)) if ids else {}
