"""All that a Redis holds of one model's jobs and sessions, read while nobody changes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headpond.folding import fold_tokens
from headpond.keys import queue_keys
from headpond.queue import JobQueue
from headpond.wire import RunRow, unpack_run
from headpond_workers.persistence.fold import item_key
from headpond_workers.persistence.spool import Spool

IDS_A_CALL = 200
JOURNAL_LIMIT = 1_000_000
SESSION_KINDS = ("commit", "session")


@dataclass(frozen=True, slots=True)
class ImageJob:
    """ids: shape (n,), its tokens as its stream comes to, empty once that is gone. result: document; empty without."""

    row: RunRow
    data: bytes = field(repr=False)
    ids: tuple[int, ...] = field(repr=False)
    result: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class RedisImage:
    """sessions: rows by name. turns: documents by id of their commit. tail: (kind, id) of what the journal, and a
    spool, still tell of; kind as of an item."""

    jobs: Mapping[str, ImageJob]
    sessions: Mapping[str, bytes]
    turns: Mapping[str, bytes]
    tail: frozenset[tuple[str, str]]


def read_image(queue: JobQueue) -> RedisImage:
    """Raises RedisUnavailable, MalformedDocument."""
    keys = queue_keys(queue.name)
    read = queue.server.read
    ids = [raw.decode() for raw in read("HKEYS", keys.named("run"))]
    jobs = {}
    for some in _some(ids):
        raws = zip(
            some, read("HMGET", keys.named("run"), *some), read("HMGET", keys.named("data"), *some),
            read("HMGET", keys.named("result"), *some), strict=True,
        )  # fmt: skip
        for job_id, row, data, result in raws:
            if row is not None:
                tokens = tuple(fold_tokens(queue.events(job_id)).ids)
                jobs[job_id] = ImageJob(unpack_run(row), data or b"", tokens, result or b"")
    tail = frozenset(
        (entry.kind if entry.kind in SESSION_KINDS else "job", entry.job_id)
        for entry in queue.journal(limit=JOURNAL_LIMIT)
    )
    return RedisImage(jobs, _hash(queue, "sessions"), _hash(queue, "turns"), tail | _spooled(queue))


def _spooled(queue: JobQueue) -> frozenset[tuple[str, str]]:
    """As `tail`, of what stands in a spool instead of the journal. Raises BlobCorrupt."""
    trouble = queue.storage_trouble()
    if trouble is None or trouble.spooled is None:
        return frozenset()
    spool = Spool(Path(trouble.spooled.folder).parent, queue.name)
    keys = (item_key(record) for document in spool.documents() for record in document.batch.records)
    return frozenset((kind, name) for kind, _, name in (key.partition("/") for key in keys))


def _hash(queue: JobQueue, name: str) -> dict[str, bytes]:
    raw: dict[bytes, bytes] = queue.server.read("HGETALL", queue_keys(queue.name).named(name))
    return {key.decode(): value for key, value in raw.items()}


def _some(ids: list[str]) -> Iterator[list[str]]:
    for at in range(0, len(ids), IDS_A_CALL):
        yield ids[at : at + IDS_A_CALL]
