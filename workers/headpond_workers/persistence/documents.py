"""The documents of a model's state in storage: the head, and segments of its journal.

Each is a sealed msgpack map {schema, v, txn, created_ms, writer, ..., digest} (sealed.py, docs/storage-format.md).

What holds between them:

- Segments are written once, and count only if the head leads to them: head.segment, then `prev` of each.
- Along that chain, from the newest: seq falls by exactly 1 down to 1, which alone has no prev; epoch never rises;
  journal ids fall, and those of two segments never overlap; the lineage is one.
- head.seq is the seq of head.segment; head.watermark is at or above its last journal id, and never falls; nor do
  head.epoch and head.inc.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Self

from headpond.errors import MalformedDocument
from headpond.jobs import MODEL_NAME, JobState
from headpond_workers.persistence.sealed import (
    MAX_COUNT,
    MAX_TEXT,
    Fields,
    check_common,
    check_counts,
    check_texts,
    require,
    seal,
)

HEAD_SCHEMA = "headpond/head"
HEAD_VERSION = 1
SEGMENT_SCHEMA = "headpond/segment"
SEGMENT_VERSION = 1
MAX_HEAD_BYTES = 64 << 10
MAX_SEGMENT_BYTES = 64 << 20
MAX_RECORD_BYTES = 48 << 20
"""Of one record's data or result: far above the largest request and answer."""
_JOURNAL_ID = re.compile(r"(0|[1-9][0-9]{0,15})-(0|[1-9][0-9]{0,15})")


@dataclass(frozen=True, slots=True, order=True)
class JournalId:
    """`<inc>-<seq>`: the place of one entry in a model's journal. Ordered by both numbers."""

    inc: int
    seq: int

    def __str__(self) -> str:
        return f"{self.inc}-{self.seq}"

    @classmethod
    def parse(cls, text: str) -> JournalId:
        """Raises MalformedDocument."""
        match = _JOURNAL_ID.fullmatch(text)
        if match is None or max(inc := int(match[1]), seq := int(match[2])) > MAX_COUNT:
            raise MalformedDocument("journal id", f"{text[:60]!r} is not <incarnation>-<sequence>")
        return cls(inc, seq)


JOURNAL_START = JournalId(0, 0)
"""Below every entry."""


@dataclass(frozen=True, slots=True)
class SubmitRecord:
    """A job was accepted. data: its entry in Redis, packed."""

    journal_id: JournalId
    id: str
    data: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _check_record(self.id, self.data)


@dataclass(frozen=True, slots=True)
class EndRecord:
    """A job ended. result: its result in Redis, packed; empty if it ended without one."""

    journal_id: JournalId
    id: str
    state: JobState
    result: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _check_record(self.id, self.result)
        require(self.state.ended, SEGMENT_SCHEMA, f"'{self.state}' is not the end of a job")


Record = SubmitRecord | EndRecord


def _check_record(job_id: str, payload: bytes) -> None:
    require(0 < len(job_id) <= MAX_TEXT, SEGMENT_SCHEMA, f"a job id of {len(job_id)} characters")
    require(len(payload) <= MAX_RECORD_BYTES, SEGMENT_SCHEMA, f"'{job_id}' has {len(payload)} bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The one mutable object of a model's state: what it points to is the state.

    lineage: names this history of the model; a Redis with another belongs to another history. epoch: raised by
    each change of writer. seq: how many segments the chain has. inc: the highest incarnation of Redis that was
    seen. watermark: the last journal entry in the chain. segment: key of the newest; None while there is none.
    snapshot: None in this version.
    """

    txn: str
    created_ms: int
    writer: str
    lineage: str
    epoch: int
    seq: int
    inc: int
    watermark: JournalId
    segment: str | None
    snapshot: str | None = None

    def __post_init__(self) -> None:
        check_common(HEAD_SCHEMA, self.txn, self.created_ms, self.writer)
        check_texts(HEAD_SCHEMA, lineage=self.lineage)
        check_counts(HEAD_SCHEMA, epoch=self.epoch, seq=self.seq, inc=self.inc)
        require(self.epoch >= 1, HEAD_SCHEMA, "epoch is below 1")
        require((self.segment is None) == (self.seq == 0), HEAD_SCHEMA, f"seq={self.seq} segment={self.segment}")
        require(self.watermark.inc <= self.inc, HEAD_SCHEMA, f"watermark {self.watermark} is above inc {self.inc}")

    def pack(self) -> bytes:
        return seal(
            HEAD_SCHEMA,
            HEAD_VERSION,
            {
                "txn": self.txn,
                "created_ms": self.created_ms,
                "writer": self.writer,
                "lineage": self.lineage,
                "epoch": self.epoch,
                "seq": self.seq,
                "inc": self.inc,
                "watermark": str(self.watermark),
                "segment": self.segment,
                "snapshot": self.snapshot,
            },
            max_bytes=MAX_HEAD_BYTES,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Raises MalformedDocument, UnsupportedSchema."""
        fields = Fields.unseal(data, schema=HEAD_SCHEMA, v=HEAD_VERSION, max_bytes=MAX_HEAD_BYTES)
        return cls(
            txn=fields.take("txn", str),
            created_ms=fields.take("created_ms", int),
            writer=fields.take("writer", str),
            lineage=fields.take("lineage", str),
            epoch=fields.take("epoch", int),
            seq=fields.take("seq", int),
            inc=fields.take("inc", int),
            watermark=JournalId.parse(fields.take("watermark", str)),
            segment=fields.take_optional("segment", str),
            snapshot=fields.take_optional("snapshot", str),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of a model's journal, `first` to `last`, in order. prev: key of the one before."""

    txn: str
    created_ms: int
    writer: str
    model: str
    lineage: str
    epoch: int
    seq: int
    prev: str | None
    first: JournalId
    last: JournalId
    records: tuple[Record, ...] = field(repr=False)

    def __post_init__(self) -> None:
        check_common(SEGMENT_SCHEMA, self.txn, self.created_ms, self.writer)
        check_texts(SEGMENT_SCHEMA, lineage=self.lineage)
        check_counts(SEGMENT_SCHEMA, epoch=self.epoch, seq=self.seq)
        require(min(self.epoch, self.seq) >= 1, SEGMENT_SCHEMA, "epoch or seq is below 1")
        require(MODEL_NAME.fullmatch(self.model) is not None, SEGMENT_SCHEMA, f"model {self.model[:80]!r}")
        require((self.prev is None) == (self.seq == 1), SEGMENT_SCHEMA, f"seq={self.seq} prev={self.prev}")
        ids = [record.journal_id for record in self.records]
        inside = self.first <= self.last and (not ids or (self.first <= ids[0] and ids[-1] <= self.last))
        rising = all(a < b for a, b in pairwise(ids))
        require(inside and rising, SEGMENT_SCHEMA, f"records not in order from {self.first} to {self.last}")

    def pack(self) -> bytes:
        return seal(
            SEGMENT_SCHEMA,
            SEGMENT_VERSION,
            {
                "txn": self.txn,
                "created_ms": self.created_ms,
                "writer": self.writer,
                "model": self.model,
                "lineage": self.lineage,
                "epoch": self.epoch,
                "seq": self.seq,
                "prev": self.prev,
                "first": str(self.first),
                "last": str(self.last),
                "records": [_pack_record(record) for record in self.records],
            },
            max_bytes=MAX_SEGMENT_BYTES,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Raises MalformedDocument, UnsupportedSchema."""
        fields = Fields.unseal(data, schema=SEGMENT_SCHEMA, v=SEGMENT_VERSION, max_bytes=MAX_SEGMENT_BYTES)
        return cls(
            txn=fields.take("txn", str),
            created_ms=fields.take("created_ms", int),
            writer=fields.take("writer", str),
            model=fields.take("model", str),
            lineage=fields.take("lineage", str),
            epoch=fields.take("epoch", int),
            seq=fields.take("seq", int),
            prev=fields.take_optional("prev", str),
            first=JournalId.parse(fields.take("first", str)),
            last=JournalId.parse(fields.take("last", str)),
            records=tuple(_unpack_record(record) for record in fields.take("records", list)),
        )


def _pack_record(record: Record) -> dict[str, object]:
    common = {"journal_id": str(record.journal_id), "id": record.id}
    if isinstance(record, SubmitRecord):
        return {"kind": "submit", **common, "data": record.data}
    return {"kind": "end", **common, "state": record.state.value, "result": record.result}


def _unpack_record(value: object) -> Record:
    fields = Fields.of(SEGMENT_SCHEMA, value, what="a record")
    journal_id = JournalId.parse(fields.take("journal_id", str))
    job_id = fields.take("id", str)
    kind = fields.take("kind", str)
    if kind == "submit":
        return SubmitRecord(journal_id, job_id, fields.take("data", bytes))
    if kind == "end":
        try:
            state = JobState(fields.take("state", str))
        except ValueError as error:
            raise MalformedDocument(SEGMENT_SCHEMA, f"unknown state of a job: {str(error)[:80]}") from error
        return EndRecord(journal_id, job_id, state, fields.take("result", bytes))
    raise MalformedDocument(SEGMENT_SCHEMA, f"unknown kind of record {kind[:40]!r}")
