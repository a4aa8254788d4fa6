"""The documents of a model's state in storage that each commit writes: the head, and segments of its journal. Pure.

Each is a sealed msgpack map {schema, v, txn, created_ms, writer, ..., digest} (sealed.py, docs/storage-format.md).
Version 1 had neither snapshots nor progress; it is upgraded when it is read.

What holds between them:

- Segments are written once, and count only if the head leads to them: head.segment, then `prev` of each.
- Along that chain, from the newest: seq falls by exactly 1, down to 1, which alone has no prev, or to head.floor;
  epoch never rises; journal ids fall, and those of two segments never overlap; the lineage is one.
- head.seq is the seq of head.segment; head.watermark is at or above its last journal id, and never falls; nor do the
  head's epoch, inc, as_of_ms, snapshot_seq and floor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Self

from headpond.jobs import MODEL_NAME
from headpond_workers.persistence.fair import Fair, pack_fair, unpack_fair
from headpond_workers.persistence.journal_id import JournalId
from headpond_workers.persistence.progress import Progress
from headpond_workers.persistence.records import SEGMENT_SCHEMA, Record, pack_record, unpack_record
from headpond_workers.storage.sealed import Fields, check_common, check_counts, check_texts, require, seal

HEAD_SCHEMA = "headpond/head"
HEAD_VERSION = 2
SEGMENT_VERSION = 2
MAX_HEAD_BYTES = 64 << 10
MAX_SEGMENT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The one mutable object of a model's state: what it points to is the state.

    lineage: names this history of the model; a Redis with another belongs to another history. epoch: raised by
    each change of writer. seq: number of the newest segment. inc: the highest incarnation of Redis that was seen.
    watermark: the last journal entry in the chain. as_of_ms: by Redis's clock; whatever was acknowledged before is in
    the chain. segment: key of the newest; None while there is none. snapshot: key of the newest; snapshot_seq: of the
    last segment that it includes. floor: the `snapshot_seq` of the oldest snapshot that is kept; 0 while all is.
    above_bytes: of the segments above snapshot_seq. snapshot_bytes: of the parts of the newest snapshot.
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
    as_of_ms: int = 0
    snapshot: str | None = None
    snapshot_seq: int = 0
    floor: int = 0
    above_bytes: int = 0
    snapshot_bytes: int = 0

    def __post_init__(self) -> None:
        check_common(HEAD_SCHEMA, self.txn, self.created_ms, self.writer)
        check_texts(HEAD_SCHEMA, lineage=self.lineage)
        check_counts(
            HEAD_SCHEMA, epoch=self.epoch, seq=self.seq, inc=self.inc, as_of_ms=self.as_of_ms,
            snapshot_seq=self.snapshot_seq, floor=self.floor, above_bytes=self.above_bytes,
            snapshot_bytes=self.snapshot_bytes,
        )  # fmt: skip
        require(self.epoch >= 1, HEAD_SCHEMA, "epoch is below 1")
        require((self.segment is None) == (self.seq == 0), HEAD_SCHEMA, f"seq={self.seq} segment={self.segment}")
        require(self.watermark.inc <= self.inc, HEAD_SCHEMA, f"watermark {self.watermark} is above inc {self.inc}")
        require(
            (self.snapshot is None) == (self.snapshot_seq == 0) and self.floor <= self.snapshot_seq <= self.seq,
            HEAD_SCHEMA,
            f"seq={self.seq} snapshot_seq={self.snapshot_seq} floor={self.floor} snapshot={self.snapshot}",
        )

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
                "as_of_ms": self.as_of_ms,
                "segment": self.segment,
                "snapshot": self.snapshot,
                "snapshot_seq": self.snapshot_seq,
                "floor": self.floor,
                "above_bytes": self.above_bytes,
                "snapshot_bytes": self.snapshot_bytes,
            },
            max_bytes=MAX_HEAD_BYTES,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Raises MalformedDocument, UnsupportedSchema."""
        fields = Fields.unseal(data, schema=HEAD_SCHEMA, v=HEAD_VERSION, max_bytes=MAX_HEAD_BYTES)
        old = fields.v == 1

        def count(name: str) -> int:
            return 0 if old else fields.take(name, int)

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
            as_of_ms=count("as_of_ms"),
            snapshot=fields.take_optional("snapshot", str),
            snapshot_seq=count("snapshot_seq"),
            floor=count("floor"),
            above_bytes=count("above_bytes"),
            snapshot_bytes=count("snapshot_bytes"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of a model's journal, `first` to `last`, in order; both None if it has nothing but progress.

    prev: key of the one before. inc: the incarnation that it was read under. as_of_ms: as in the head. progress:
    tokens of jobs that had not ended. fair: what tenants have paid; None if that is as in the segment before.
    """

    txn: str
    created_ms: int
    writer: str
    model: str
    lineage: str
    epoch: int
    seq: int
    prev: str | None
    first: JournalId | None
    last: JournalId | None
    inc: int
    as_of_ms: int = 0
    records: tuple[Record, ...] = field(repr=False)
    progress: tuple[Progress, ...] = field(default=(), repr=False)
    fair: Fair | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_common(SEGMENT_SCHEMA, self.txn, self.created_ms, self.writer)
        check_texts(SEGMENT_SCHEMA, lineage=self.lineage)
        check_counts(SEGMENT_SCHEMA, epoch=self.epoch, seq=self.seq, inc=self.inc, as_of_ms=self.as_of_ms)
        require(min(self.epoch, self.seq) >= 1, SEGMENT_SCHEMA, "epoch or seq is below 1")
        require(MODEL_NAME.fullmatch(self.model) is not None, SEGMENT_SCHEMA, f"model {self.model[:80]!r}")
        require((self.prev is None) == (self.seq == 1), SEGMENT_SCHEMA, f"seq={self.seq} prev={self.prev}")
        ids = [record.journal_id for record in self.records]
        if self.first is None or self.last is None:
            require(self.first is self.last and not ids, SEGMENT_SCHEMA, f"first={self.first} last={self.last}")
            return
        inside = self.first <= self.last and (not ids or (self.first <= ids[0] and ids[-1] <= self.last))
        rising = all(a < b for a, b in pairwise(ids))
        require(inside and rising, SEGMENT_SCHEMA, f"records not in order from {self.first} to {self.last}")
        require(self.last.inc <= self.inc, SEGMENT_SCHEMA, f"last {self.last} is above inc {self.inc}")

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
                "first": _text(self.first),
                "last": _text(self.last),
                "inc": self.inc,
                "as_of_ms": self.as_of_ms,
                "records": [pack_record(record) for record in self.records],
                "progress": [progress.pack() for progress in self.progress],
                "fair": pack_fair(self.fair),
            },
            max_bytes=MAX_SEGMENT_BYTES,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Raises MalformedDocument, UnsupportedSchema."""
        fields = Fields.unseal(data, schema=SEGMENT_SCHEMA, v=SEGMENT_VERSION, max_bytes=MAX_SEGMENT_BYTES)
        first, last = (_journal_id(fields.take_optional(name, str)) for name in ("first", "last"))
        old = fields.v == 1
        return cls(
            txn=fields.take("txn", str),
            created_ms=fields.take("created_ms", int),
            writer=fields.take("writer", str),
            model=fields.take("model", str),
            lineage=fields.take("lineage", str),
            epoch=fields.take("epoch", int),
            seq=fields.take("seq", int),
            prev=fields.take_optional("prev", str),
            first=first,
            last=last,
            inc=(last.inc if last is not None else 0) if old else fields.take("inc", int),
            as_of_ms=0 if old else fields.take("as_of_ms", int),
            records=tuple(unpack_record(record, v=fields.v) for record in fields.take_maps("records")),
            progress=() if old else tuple(Progress.unpack(entry) for entry in fields.take_maps("progress")),
            fair=None if old else unpack_fair(fields.take_any("fair"), schema=SEGMENT_SCHEMA),
        )


def _text(journal_id: JournalId | None) -> str | None:
    return None if journal_id is None else str(journal_id)


def _journal_id(text: str | None) -> JournalId | None:
    return None if text is None else JournalId.parse(text)
