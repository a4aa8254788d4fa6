"""The documents of a snapshot: itself, and parts that hold its items. Pure. See docs/storage-format.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Self

from headpond.jobs import MODEL_NAME
from headpond_workers.persistence.fair import Fair, pack_fair, unpack_fair
from headpond_workers.persistence.items import PART_SCHEMA, Item, pack_item, unpack_item
from headpond_workers.persistence.journal_id import JournalId
from headpond_workers.storage.sealed import (
    MAX_TEXT,
    Fields,
    check_common,
    check_counts,
    check_texts,
    require,
    seal,
)

SNAPSHOT_SCHEMA = "headpond/snapshot"
SNAPSHOT_VERSION = 1
PART_VERSION = 1
MAX_SNAPSHOT_BYTES = 16 << 20
MAX_PART_BYTES = 64 << 20
MAX_KEY = MAX_TEXT + 20
"""Characters of an item's key: `<kind>/<id>`."""
_SHA256_BYTES = 32


@dataclass(frozen=True, slots=True)
class PartRef:
    """One part, as a snapshot names it. first, last: keys of its first and last item. items: how many. size: bytes."""

    key: str
    first: str
    last: str
    items: int
    size: int
    sha256: bytes

    def __post_init__(self) -> None:
        check_texts(SNAPSHOT_SCHEMA, key=self.key)
        check_counts(SNAPSHOT_SCHEMA, items=self.items, size=self.size)
        in_order = 0 < len(self.first) <= MAX_KEY and len(self.last) <= MAX_KEY and self.first <= self.last
        require(in_order and self.items >= 1, SNAPSHOT_SCHEMA, f"part {self.key} is empty or out of order")
        require(len(self.sha256) == _SHA256_BYTES, SNAPSHOT_SCHEMA, f"part {self.key} has no SHA-256")

    @classmethod
    def unpack(cls, fields: Fields) -> Self:
        return cls(
            fields.take("key", str),
            fields.take("first", str),
            fields.take("last", str),
            fields.take("items", int),
            fields.take("size", int),
            fields.take("sha256", bytes),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that the chain up to and with segment `seq` comes to. Its parts are sorted and do not overlap.

    epoch: at least that of the segment. segment: its key. inc, watermark, as_of_ms: as in the head then. prev: key of
    the snapshot before; None without one.
    """

    txn: str
    created_ms: int
    writer: str
    model: str
    lineage: str
    epoch: int
    seq: int
    inc: int
    watermark: JournalId
    as_of_ms: int
    segment: str
    prev: str | None
    fair: Fair | None = field(repr=False)
    parts: tuple[PartRef, ...] = field(repr=False)

    def __post_init__(self) -> None:
        check_common(SNAPSHOT_SCHEMA, self.txn, self.created_ms, self.writer)
        check_texts(SNAPSHOT_SCHEMA, lineage=self.lineage, segment=self.segment)
        check_counts(SNAPSHOT_SCHEMA, epoch=self.epoch, seq=self.seq, inc=self.inc, as_of_ms=self.as_of_ms)
        require(min(self.epoch, self.seq) >= 1, SNAPSHOT_SCHEMA, "epoch or seq is below 1")
        require(MODEL_NAME.fullmatch(self.model) is not None, SNAPSHOT_SCHEMA, f"model {self.model[:80]!r}")
        require(self.watermark.inc <= self.inc, SNAPSHOT_SCHEMA, f"watermark {self.watermark} is above inc {self.inc}")
        sorted_parts = all(a.last < b.first for a, b in pairwise(self.parts))
        require(sorted_parts, SNAPSHOT_SCHEMA, "its parts overlap, or are out of order")

    @property
    def size(self) -> int:
        """Bytes of its parts."""
        return sum(part.size for part in self.parts)

    def pack(self) -> bytes:
        return seal(
            SNAPSHOT_SCHEMA,
            SNAPSHOT_VERSION,
            {
                "txn": self.txn,
                "created_ms": self.created_ms,
                "writer": self.writer,
                "model": self.model,
                "lineage": self.lineage,
                "epoch": self.epoch,
                "seq": self.seq,
                "inc": self.inc,
                "watermark": str(self.watermark),
                "as_of_ms": self.as_of_ms,
                "segment": self.segment,
                "prev": self.prev,
                "fair": pack_fair(self.fair),
                "parts": [
                    {
                        "key": part.key,
                        "first": part.first,
                        "last": part.last,
                        "items": part.items,
                        "size": part.size,
                        "sha256": part.sha256,
                    }
                    for part in self.parts
                ],
            },
            max_bytes=MAX_SNAPSHOT_BYTES,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Raises MalformedDocument, UnsupportedSchema."""
        fields = Fields.unseal(data, schema=SNAPSHOT_SCHEMA, v=SNAPSHOT_VERSION, max_bytes=MAX_SNAPSHOT_BYTES)
        return cls(
            txn=fields.take("txn", str),
            created_ms=fields.take("created_ms", int),
            writer=fields.take("writer", str),
            model=fields.take("model", str),
            lineage=fields.take("lineage", str),
            epoch=fields.take("epoch", int),
            seq=fields.take("seq", int),
            inc=fields.take("inc", int),
            watermark=JournalId.parse(fields.take("watermark", str)),
            as_of_ms=fields.take("as_of_ms", int),
            segment=fields.take("segment", str),
            prev=fields.take_optional("prev", str),
            fair=unpack_fair(fields.take_any("fair"), schema=SNAPSHOT_SCHEMA),
            parts=tuple(PartRef.unpack(part) for part in fields.take_maps("parts")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some items of a snapshot, at least one, sorted by key."""

    txn: str
    created_ms: int
    writer: str
    model: str
    items: tuple[Item, ...] = field(repr=False)

    def __post_init__(self) -> None:
        check_common(PART_SCHEMA, self.txn, self.created_ms, self.writer)
        require(MODEL_NAME.fullmatch(self.model) is not None, PART_SCHEMA, f"model {self.model[:80]!r}")
        in_order = all(a.key < b.key for a, b in pairwise(self.items))
        require(in_order and bool(self.items), PART_SCHEMA, "its items are out of order, or there is none")

    def pack(self) -> bytes:
        return seal(
            PART_SCHEMA,
            PART_VERSION,
            {
                "txn": self.txn,
                "created_ms": self.created_ms,
                "writer": self.writer,
                "model": self.model,
                "items": [pack_item(item) for item in self.items],
            },
            max_bytes=MAX_PART_BYTES,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Raises MalformedDocument, UnsupportedSchema."""
        fields = Fields.unseal(data, schema=PART_SCHEMA, v=PART_VERSION, max_bytes=MAX_PART_BYTES)
        return cls(
            txn=fields.take("txn", str),
            created_ms=fields.take("created_ms", int),
            writer=fields.take("writer", str),
            model=fields.take("model", str),
            items=tuple(unpack_item(item) for item in fields.take_maps("items")),
        )
