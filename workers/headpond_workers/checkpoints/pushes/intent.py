"""The document `headpond/intent`: what a push that is under way may refer to. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from headpond_workers.storage.sealed import Fields, check_common, check_counts, check_texts, is_txn, require, seal

SCHEMA = "headpond/intent"
VERSION = 1
MAX_INTENT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """txn: of the push; also its key. objects: keys that it puts or refers to, its manifest included. gc_txn: of the
    `gc/state` that it was planned with; empty if there was none. revision: a random txn of this body, since an intent
    is swapped."""

    txn: str
    created_ms: int
    writer: str
    model: str
    host: str
    pid: int
    objects: tuple[str, ...] = field(repr=False)
    gc_txn: str
    revision: str

    def __post_init__(self) -> None:
        check_common(SCHEMA, self.txn, self.created_ms, self.writer)
        check_texts(SCHEMA, model=self.model, host=self.host)
        check_counts(SCHEMA, pid=self.pid)
        require(is_txn(self.revision), SCHEMA, f"revision {self.revision[:40]!r}")
        require(not self.gc_txn or is_txn(self.gc_txn), SCHEMA, f"gc_txn {self.gc_txn[:40]!r}")

    def pack(self) -> bytes:
        return seal(
            SCHEMA,
            VERSION,
            {
                "txn": self.txn,
                "created_ms": self.created_ms,
                "writer": self.writer,
                "model": self.model,
                "host": self.host,
                "pid": self.pid,
                "objects": list(self.objects),
                "gc_txn": self.gc_txn,
                "revision": self.revision,
            },
            max_bytes=MAX_INTENT_BYTES,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Raises MalformedDocument, UnsupportedSchema."""
        fields = Fields.unseal(data, schema=SCHEMA, v=VERSION, max_bytes=MAX_INTENT_BYTES)
        return cls(
            txn=fields.take("txn", str),
            created_ms=fields.take("created_ms", int),
            writer=fields.take("writer", str),
            model=fields.take("model", str),
            host=fields.take("host", str),
            pid=fields.take("pid", int),
            objects=tuple(fields.take_list("objects", str)),
            gc_txn=fields.take("gc_txn", str),
            revision=fields.take("revision", str),
        )
