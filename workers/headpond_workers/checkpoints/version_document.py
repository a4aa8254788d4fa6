"""The document `headpond/version`: one number of a model, and its state. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from headpond.errors import MalformedDocument
from headpond_workers.checkpoints.manifest import SHA256_BYTES, is_digest
from headpond_workers.storage.sealed import (
    Fields,
    check_common,
    check_counts,
    check_texts,
    is_txn,
    require,
    seal,
)

SCHEMA = "headpond/version"
VERSION = 1
MAX_VERSION_BYTES = 64 << 10
MAX_NOTE_CHARS = 1000
MAX_NUMBER = 9_999_999_999


class VersionState(StrEnum):
    """Where a version stands; see docs/checkpoint-format.md."""

    PENDING = "pending"
    COMPLETE = "complete"
    QUARANTINED = "quarantined"
    DELETING = "deleting"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionDocument:
    """push: txn of the push that made it. manifest_digest: SHA-256 (32 bytes) of the manifest's bytes. model_digest: 64
    hex digits. files: how many. parent: number; 0 for none. reason: why it is in this state; empty when complete."""

    txn: str
    created_ms: int
    writer: str
    model: str
    number: int
    state: VersionState
    push: str
    manifest: str
    manifest_digest: bytes
    model_digest: str
    size_bytes: int
    files: int
    engine: str | None = None
    parent: int = 0
    note: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        check_common(SCHEMA, self.txn, self.created_ms, self.writer)
        check_texts(SCHEMA, model=self.model, manifest=self.manifest)
        check_counts(SCHEMA, size_bytes=self.size_bytes, files=self.files, parent=self.parent)
        require(1 <= self.number <= MAX_NUMBER, SCHEMA, f"number={self.number}")
        require(self.parent < self.number, SCHEMA, f"the parent of {self.number} is {self.parent}")
        require(is_txn(self.push), SCHEMA, f"push {self.push[:40]!r}")
        require(len(self.manifest_digest) == SHA256_BYTES, SCHEMA, "manifest_digest has not 32 bytes")
        require(is_digest(self.model_digest), SCHEMA, f"model_digest {self.model_digest[:80]!r}")
        require(max(len(self.note), len(self.reason)) <= MAX_NOTE_CHARS, SCHEMA, "a note is too long")

    def pack(self) -> bytes:
        return seal(
            SCHEMA,
            VERSION,
            {
                "txn": self.txn,
                "created_ms": self.created_ms,
                "writer": self.writer,
                "model": self.model,
                "number": self.number,
                "state": self.state.value,
                "push": self.push,
                "manifest": self.manifest,
                "manifest_digest": self.manifest_digest,
                "model_digest": self.model_digest,
                "size_bytes": self.size_bytes,
                "files": self.files,
                "engine": self.engine,
                "parent": self.parent,
                "note": self.note,
                "reason": self.reason,
            },
            max_bytes=MAX_VERSION_BYTES,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Raises MalformedDocument, UnsupportedSchema."""
        fields = Fields.unseal(data, schema=SCHEMA, v=VERSION, max_bytes=MAX_VERSION_BYTES)
        try:
            state = VersionState(fields.take("state", str))
        except ValueError as error:
            raise MalformedDocument(SCHEMA, f"unknown state of a version: {str(error)[:80]}") from error
        return cls(
            txn=fields.take("txn", str),
            created_ms=fields.take("created_ms", int),
            writer=fields.take("writer", str),
            model=fields.take("model", str),
            number=fields.take("number", int),
            state=state,
            push=fields.take("push", str),
            manifest=fields.take("manifest", str),
            manifest_digest=fields.take("manifest_digest", bytes),
            model_digest=fields.take("model_digest", str),
            size_bytes=fields.take("size_bytes", int),
            files=fields.take("files", int),
            engine=fields.take_optional("engine", str),
            parent=fields.take("parent", int),
            note=fields.take("note", str),
            reason=fields.take("reason", str),
        )
