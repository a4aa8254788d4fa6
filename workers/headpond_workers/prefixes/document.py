"""What storage has of a stored prefix: its data, and then a small document that names it. docs/kv-format.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from headpond.errors import MalformedDocument
from headpond.jobs import MODEL_NAME
from headpond_workers.prefixes.blocks import BLOCK_TOKENS, HASH_BYTES
from headpond_workers.prefixes.folders import is_fingerprint
from headpond_workers.storage.sealed import Fields, check_common, check_counts, require, seal

PREFIX_SCHEMA = "headpond/stored-prefix"
PREFIX_VERSION = 1
MAX_DOCUMENT_BYTES = 1 << 20
ROOT = "kv/"


def model_root(model: str, fingerprint: str | None = None) -> str:
    """What all keys of a model's prefixes begin with, or of one fingerprint's."""
    return f"{ROOT}{model}/" if fingerprint is None else f"{ROOT}{model}/{fingerprint}/"


def document_key(model: str, fingerprint: str, name: str) -> str:
    return f"{model_root(model, fingerprint)}prefixes/{name}"


def data_key(model: str, fingerprint: str, sha256: bytes) -> str:
    return f"{model_root(model, fingerprint)}data/{sha256.hex()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPrefixDocument:
    """hashes: `block_hashes` of its ids. size: of the file, in bytes; sha256: of all of it."""

    txn: str
    created_ms: int
    writer: str
    model: str
    fingerprint: str
    tokens: int
    hashes: tuple[bytes, ...] = field(repr=False)
    size: int
    sha256: bytes

    def __post_init__(self) -> None:
        check_common(PREFIX_SCHEMA, self.txn, self.created_ms, self.writer)
        check_counts(PREFIX_SCHEMA, tokens=self.tokens, size=self.size)
        require(MODEL_NAME.fullmatch(self.model) is not None, PREFIX_SCHEMA, f"model {self.model[:80]!r}")
        require(is_fingerprint(self.fingerprint), PREFIX_SCHEMA, "its fingerprint is not 64 hex digits")
        require(len(self.sha256) == 32, PREFIX_SCHEMA, "its sha256 is not 32 bytes")
        fits = len(self.hashes) == self.tokens // BLOCK_TOKENS and all(len(h) == HASH_BYTES for h in self.hashes)
        require(fits, PREFIX_SCHEMA, f"{len(self.hashes)} hashes for {self.tokens} tokens")

    @property
    def data_key(self) -> str:
        return data_key(self.model, self.fingerprint, self.sha256)

    def pack(self) -> bytes:
        """Raises MalformedDocument if it is too large."""
        return seal(
            PREFIX_SCHEMA,
            PREFIX_VERSION,
            {
                "txn": self.txn,
                "created_ms": self.created_ms,
                "writer": self.writer,
                "model": self.model,
                "fingerprint": self.fingerprint,
                "tokens": self.tokens,
                "hashes": b"".join(self.hashes),
                "size": self.size,
                "sha256": self.sha256,
            },
            max_bytes=MAX_DOCUMENT_BYTES,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Raises MalformedDocument, UnsupportedSchema."""
        fields = Fields.unseal(data, schema=PREFIX_SCHEMA, v=PREFIX_VERSION, max_bytes=MAX_DOCUMENT_BYTES)
        packed = fields.take("hashes", bytes)
        if len(packed) % HASH_BYTES:
            raise MalformedDocument(PREFIX_SCHEMA, f"hashes has {len(packed)} bytes")
        return cls(
            txn=fields.take("txn", str),
            created_ms=fields.take("created_ms", int),
            writer=fields.take("writer", str),
            model=fields.take("model", str),
            fingerprint=fields.take("fingerprint", str),
            tokens=fields.take("tokens", int),
            hashes=tuple(packed[at : at + HASH_BYTES] for at in range(0, len(packed), HASH_BYTES)),
            size=fields.take("size", int),
            sha256=fields.take("sha256", bytes),
        )
