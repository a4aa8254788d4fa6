"""The documents of a model's state in storage: the head, and segments of its journal.

Each is a msgpack map {schema, v, txn, created_ms, writer, ..., digest} (docs/storage-format.md):

- `txn` is random and unique, so no two documents are equal; storage tells a writer's own from another's by it.
- `digest` is the last field: its value, the last 32 bytes, is the SHA-256 of all bytes before them.
- `created_ms` is for people. No decision rests on a clock.
- A document that breaks a rule of this file is neither packed nor accepted: MalformedDocument. Unknown fields are
  passed over; a newer `v` is refused with UnsupportedSchema.

What holds between them:

- Segments are written once, and count only if the head leads to them: head.segment, then `prev` of each.
- Along that chain, from the newest: seq falls by exactly 1 down to 1, which alone has no prev; epoch never rises;
  journal ids fall, and those of two segments never overlap; the lineage is one.
- head.seq is the seq of head.segment; head.watermark is at or above its last journal id, and never falls; nor do
  head.epoch and head.inc.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Self, TypeVar

from headpond.errors import MalformedDocument
from headpond.jobs import MODEL_NAME, JobState
from headpond.wire import pack_document, unpack_document

HEAD_SCHEMA = "headpond/head"
HEAD_VERSION = 1
SEGMENT_SCHEMA = "headpond/segment"
SEGMENT_VERSION = 1
MAX_HEAD_BYTES = 64 << 10
MAX_SEGMENT_BYTES = 64 << 20
MAX_RECORD_BYTES = 48 << 20
"""Of one record's data or result: far above the largest request and answer."""
MAX_COUNT = (1 << 53) - 1
"""Of any counter here: they pass through scripts, whose numbers are doubles."""
MAX_TEXT = 512
"""Characters of any name here."""
DIGEST_BYTES = 32
T = TypeVar("T")
_JOURNAL_ID = re.compile(r"(0|[1-9][0-9]{0,15})-(0|[1-9][0-9]{0,15})")
_TXN = re.compile(r"[0-9a-f]{32}")


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
        _require(self.state.ended, SEGMENT_SCHEMA, f"'{self.state}' is not the end of a job")


Record = SubmitRecord | EndRecord


def _check_record(job_id: str, payload: bytes) -> None:
    _require(0 < len(job_id) <= MAX_TEXT, SEGMENT_SCHEMA, f"a job id of {len(job_id)} characters")
    _require(len(payload) <= MAX_RECORD_BYTES, SEGMENT_SCHEMA, f"'{job_id}' has {len(payload)} bytes")


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
        _check_common(HEAD_SCHEMA, self.txn, self.created_ms, self.writer, self.lineage)
        _check_counts(HEAD_SCHEMA, epoch=self.epoch, seq=self.seq, inc=self.inc)
        _require(self.epoch >= 1, HEAD_SCHEMA, "epoch is below 1")
        _require((self.segment is None) == (self.seq == 0), HEAD_SCHEMA, f"seq={self.seq} segment={self.segment}")
        _require(self.watermark.inc <= self.inc, HEAD_SCHEMA, f"watermark {self.watermark} is above inc {self.inc}")

    def pack(self) -> bytes:
        return _seal(
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
        fields = _Fields.unseal(data, schema=HEAD_SCHEMA, v=HEAD_VERSION, max_bytes=MAX_HEAD_BYTES)
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
        _check_common(SEGMENT_SCHEMA, self.txn, self.created_ms, self.writer, self.lineage)
        _check_counts(SEGMENT_SCHEMA, epoch=self.epoch, seq=self.seq)
        _require(min(self.epoch, self.seq) >= 1, SEGMENT_SCHEMA, "epoch or seq is below 1")
        _require(MODEL_NAME.fullmatch(self.model) is not None, SEGMENT_SCHEMA, f"model {self.model[:80]!r}")
        _require((self.prev is None) == (self.seq == 1), SEGMENT_SCHEMA, f"seq={self.seq} prev={self.prev}")
        ids = [record.journal_id for record in self.records]
        inside = self.first <= self.last and (not ids or (self.first <= ids[0] and ids[-1] <= self.last))
        rising = all(a < b for a, b in pairwise(ids))
        _require(inside and rising, SEGMENT_SCHEMA, f"records not in order from {self.first} to {self.last}")

    def pack(self) -> bytes:
        return _seal(
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
        fields = _Fields.unseal(data, schema=SEGMENT_SCHEMA, v=SEGMENT_VERSION, max_bytes=MAX_SEGMENT_BYTES)
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
    if not isinstance(value, dict):
        raise MalformedDocument(SEGMENT_SCHEMA, f"a record is a {type(value).__name__}")
    fields = _Fields(SEGMENT_SCHEMA, value)
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


class _Fields:
    """Unpacked fields, each taken by name and type."""

    def __init__(self, schema: str, fields: dict[str, Any]) -> None:
        self._schema = schema
        self._fields = fields

    @classmethod
    def unseal(cls, data: bytes, *, schema: str, v: int, max_bytes: int) -> _Fields:
        """The version is looked at first: of a newer one even the digest may stand elsewhere."""
        fields = unpack_document(data, schema=schema, v=v, max_bytes=max_bytes)
        found = hashlib.sha256(memoryview(data)[:-DIGEST_BYTES]).digest()
        if fields.get("digest") != found or data[-DIGEST_BYTES:] != found:
            raise MalformedDocument(schema, "its digest is not that of its bytes")
        return cls(schema, fields)

    def take(self, name: str, kind: type[T]) -> T:
        value = self._fields.get(name)
        # An exact type: a bool is an int to isinstance.
        if type(value) is not kind:
            raise MalformedDocument(self._schema, f"{name} is a {type(value).__name__}, not a {kind.__name__}")
        return value

    def take_optional(self, name: str, kind: type[T]) -> T | None:
        return None if self._fields.get(name) is None else self.take(name, kind)


def _seal(schema: str, v: int, fields: dict[str, object], *, max_bytes: int) -> bytes:
    body = pack_document(schema, v, {**fields, "digest": bytes(DIGEST_BYTES)})
    _require(len(body) <= max_bytes, schema, f"{len(body)} bytes; at most {max_bytes} are written")
    sealed = body[:-DIGEST_BYTES]
    return sealed + hashlib.sha256(sealed).digest()


def _check_common(schema: str, txn: str, created_ms: int, writer: str, lineage: str) -> None:
    _require(_TXN.fullmatch(txn) is not None, schema, f"txn {txn[:40]!r} is not 32 hex digits")
    _check_counts(schema, created_ms=created_ms)
    for name, text in (("writer", writer), ("lineage", lineage)):
        _require(0 < len(text) <= MAX_TEXT, schema, f"{name} has {len(text)} characters")


def _check_counts(schema: str, **counts: int) -> None:
    for name, count in counts.items():
        _require(0 <= count <= MAX_COUNT, schema, f"{name}={count}")


def _require(holds: bool, schema: str, reason: str) -> None:  # noqa: FBT001 - reads as a sentence
    if not holds:
        raise MalformedDocument(schema, reason)
