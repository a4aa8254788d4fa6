"""Bytes that are not the document that they should be."""

from __future__ import annotations

from headpond.errors.base import HeadpondError


def decoding_reason(error: Exception) -> str:
    """Why a text was not decoded, for people. Python's own words for what is nested too deep speak of Python."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


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
