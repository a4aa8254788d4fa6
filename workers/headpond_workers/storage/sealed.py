"""What every document in storage has in common: its first fields, and a digest of all its bytes at the end. Pure.

- `txn` is random and unique, so no two documents are equal; storage tells a writer's own from another's by it.
- `digest` is the last field: its value, the last 32 bytes, is the SHA-256 of all bytes before them.
- `created_ms` is for people. No decision rests on a clock.
- A document that breaks a rule of its class is neither packed nor accepted: MalformedDocument. Unknown fields are
  passed over; a newer `v` is refused with UnsupportedSchema, an older one is upgraded by its class.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from headpond.errors import MalformedDocument
from headpond.jobs import UNNAMED_TOKEN
from headpond.wire import pack_document, unpack_versioned

MAX_COUNT = (1 << 53) - 1
"""Of any counter here: they pass through scripts, whose numbers are doubles."""
MAX_TEXT = 512
"""Characters of any name here."""
DIGEST_BYTES = 32
T = TypeVar("T")
_TXN = re.compile(r"[0-9a-f]{32}")


class Fields:
    """Unpacked fields of a map, each taken by name and type. schema: for errors. v: of the document."""

    def __init__(self, schema: str, fields: dict[str, Any], *, v: int = 1) -> None:
        self.schema = schema
        self.v = v
        self._fields = fields

    @classmethod
    def of(cls, schema: str, value: object, *, what: str) -> Fields:
        """Those of a map inside a document. Raises MalformedDocument if it is none."""
        if not isinstance(value, dict):
            raise MalformedDocument(schema, f"{what} is a {type(value).__name__}")
        return cls(schema, value)

    @classmethod
    def unseal(cls, data: bytes, *, schema: str, v: int, max_bytes: int) -> Fields:
        """v: the newest version that is read. It is looked at first: of a newer one the digest may stand elsewhere.

        Raises MalformedDocument, UnsupportedSchema.
        """
        found_v, fields = unpack_versioned(data, schema=schema, v=v, max_bytes=max_bytes)
        found = hashlib.sha256(memoryview(data)[:-DIGEST_BYTES]).digest()
        if fields.get("digest") != found or data[-DIGEST_BYTES:] != found:
            raise MalformedDocument(schema, "its digest is not that of its bytes")
        return cls(schema, fields, v=found_v)

    def take(self, name: str, kind: type[T]) -> T:
        value = self._fields.get(name)
        # An exact type: a bool is an int to isinstance.
        if type(value) is not kind:
            raise MalformedDocument(self.schema, f"{name} is a {type(value).__name__}, not a {kind.__name__}")
        return value

    def take_optional(self, name: str, kind: type[T]) -> T | None:
        return None if self._fields.get(name) is None else self.take(name, kind)

    def take_any(self, name: str) -> object:
        """A value of any type; None if it is not there."""
        return self._fields.get(name)

    def take_list(self, name: str, kind: type[T]) -> list[T]:
        """An array of values of one type."""
        values = self.take(name, list)
        for value in values:
            if type(value) is not kind:
                raise MalformedDocument(self.schema, f"{name} holds a {type(value).__name__}, not a {kind.__name__}")
        return values

    def take_maps(self, name: str) -> list[Fields]:
        """An array of maps."""
        return [Fields(self.schema, value, v=self.v) for value in self.take_list(name, dict)]


def seal(schema: str, v: int, fields: dict[str, object], *, max_bytes: int) -> bytes:
    """The bytes of a document. Raises MalformedDocument if they are more than max_bytes."""
    body = pack_document(schema, v, {**fields, "digest": bytes(DIGEST_BYTES)})
    require(len(body) <= max_bytes, schema, f"{len(body)} bytes; at most {max_bytes} are written")
    sealed = body[:-DIGEST_BYTES]
    return sealed + hashlib.sha256(sealed).digest()


def check_common(schema: str, txn: str, created_ms: int, writer: str) -> None:
    """Raises MalformedDocument."""
    require(is_txn(txn), schema, f"txn {txn[:40]!r} is not 32 hex digits")
    check_counts(schema, created_ms=created_ms)
    check_texts(schema, writer=writer)


def check_counts(schema: str, **counts: int) -> None:
    """Raises MalformedDocument for what is no count."""
    for name, count in counts.items():
        require(0 <= count <= MAX_COUNT, schema, f"{name}={count}")


def check_texts(schema: str, **texts: str) -> None:
    """Raises MalformedDocument for a name that is empty or too long."""
    for name, text in texts.items():
        require(0 < len(text) <= MAX_TEXT, schema, f"{name} has {len(text)} characters")


def check_tokens(schema: str, ids: Sequence[int], pieces: Sequence[str]) -> None:
    """Raises MalformedDocument for what are no tokens of a job."""
    require(len(ids) == len(pieces), schema, f"{len(ids)} token ids with {len(pieces)} pieces")
    require(not ids or (min(ids) >= UNNAMED_TOKEN and max(ids) <= MAX_COUNT), schema, "a token id is out of range")


def is_txn(text: str) -> bool:
    return _TXN.fullmatch(text) is not None


def require(holds: bool, schema: str, reason: str) -> None:  # noqa: FBT001 - reads as a sentence
    if not holds:
        raise MalformedDocument(schema, reason)
