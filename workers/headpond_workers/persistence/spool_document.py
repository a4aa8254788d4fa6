"""The document of one frame of a spool: a batch that waits on a host's disk for storage to come back. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from headpond_workers.persistence.batch import Batch
from headpond_workers.persistence.documents import MAX_SEGMENT_BYTES
from headpond_workers.persistence.fair import pack_fair, unpack_fair
from headpond_workers.persistence.journal_id import JournalId
from headpond_workers.persistence.progress import Progress
from headpond_workers.persistence.records import pack_record, unpack_record
from headpond_workers.storage.sealed import Fields, check_common, check_counts, check_texts, seal

SPOOL_SCHEMA = "headpond/spool"
SPOOL_VERSION = 1
RECORDS_VERSION = 2
"""Of a segment whose records and progress are written as here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolDocument:
    """lineage: of the history that the batch belongs to."""

    txn: str
    created_ms: int
    writer: str
    model: str
    lineage: str
    batch: Batch

    def __post_init__(self) -> None:
        check_common(SPOOL_SCHEMA, self.txn, self.created_ms, self.writer)
        check_texts(SPOOL_SCHEMA, model=self.model, lineage=self.lineage)
        check_counts(SPOOL_SCHEMA, inc=self.batch.inc, as_of_ms=self.batch.as_of_ms)

    def pack(self) -> bytes:
        batch = self.batch
        return seal(
            SPOOL_SCHEMA,
            SPOOL_VERSION,
            {
                "txn": self.txn,
                "created_ms": self.created_ms,
                "writer": self.writer,
                "model": self.model,
                "lineage": self.lineage,
                "first": None if batch.first is None else str(batch.first),
                "last": None if batch.last is None else str(batch.last),
                "inc": batch.inc,
                "as_of_ms": batch.as_of_ms,
                "records": [pack_record(record) for record in batch.records],
                "progress": [progress.pack() for progress in batch.progress],
                "fair": pack_fair(batch.fair),
            },
            max_bytes=MAX_SEGMENT_BYTES,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Raises MalformedDocument, UnsupportedSchema."""
        fields = Fields.unseal(data, schema=SPOOL_SCHEMA, v=SPOOL_VERSION, max_bytes=MAX_SEGMENT_BYTES)
        first, last = fields.take_optional("first", str), fields.take_optional("last", str)
        return cls(
            txn=fields.take("txn", str),
            created_ms=fields.take("created_ms", int),
            writer=fields.take("writer", str),
            model=fields.take("model", str),
            lineage=fields.take("lineage", str),
            batch=Batch(
                first=None if first is None else JournalId.parse(first),
                last=None if last is None else JournalId.parse(last),
                inc=fields.take("inc", int),
                as_of_ms=fields.take("as_of_ms", int),
                records=tuple(unpack_record(record, v=RECORDS_VERSION) for record in fields.take_maps("records")),
                progress=tuple(Progress.unpack(entry) for entry in fields.take_maps("progress")),
                fair=unpack_fair(fields.take_any("fair"), schema=SPOOL_SCHEMA),
            ),
        )
