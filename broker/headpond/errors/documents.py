"""Bytes that are not the document that they should be."""

from __future__ import annotations

from headpond.errors.base import HeadpondError


class MalformedDocument(HeadpondError):
    """Bytes that should be one of headpond's documents are not."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(f"Not a valid {kind} document: {reason}")
        self.kind = kind
        self.reason = reason


class UnsupportedSchema(MalformedDocument):
    """A document of a newer major version than this headpond reads."""

    def __init__(self, kind: str, *, found: object, supported: int) -> None:
        super().__init__(kind, f"schema version {found!r}; this headpond reads up to {supported}. Upgrade headpond")
        self.found = found
        self.supported = supported
