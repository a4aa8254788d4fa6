"""What `spool` of a queue's meta says: which part of its journal is on one host's disk instead of storage. Pure.

As JSON, so that a script reads it too: {"id", "host", "folder", "first", "last", "since_ms", "bytes"}.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from headpond.errors import MalformedDocument
from headpond.errors.documents import decoding_reason


@dataclass(frozen=True, slots=True)
class Spooled:
    """id: of the spool's folder, random. host, folder: where that is, for people. first, last: journal ids, of all
    that it holds. since_ms: the server's time from which on it
    has what storage lacks. bytes: on disk."""

    id: str
    host: str
    folder: str
    first: str
    last: str
    since_ms: int
    bytes: int

    def pack(self) -> str:
        return json.dumps(asdict(self))


def parse_spooled(text: str | bytes | None) -> Spooled | None:
    """None if nothing is spooled. Raises MalformedDocument."""
    if not text:
        return None
    try:
        fields = json.loads(text)
        found = Spooled(**{name: fields[name] for name in Spooled.__slots__})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MalformedDocument("spool", f"{text[:100]!r}: {decoding_reason(error)}") from error
    words = (found.id, found.host, found.folder, found.first, found.last)
    numbers = (found.since_ms, found.bytes)
    if not all(isinstance(word, str) for word in words) or not all(type(number) is int for number in numbers):
        raise MalformedDocument("spool", f"{text[:100]!r}")
    return found


@dataclass(frozen=True, slots=True)
class StorageTrouble:
    """away_since_ms: the server's time at which storage could not be reached first; None if it can. spooled: what is on
    a host's disk meanwhile; None if nothing is."""

    away_since_ms: int | None
    spooled: Spooled | None

    @property
    def since_ms(self) -> int:
        """From when on storage lacks something."""
        times = [self.away_since_ms, None if self.spooled is None else self.spooled.since_ms]
        return min((time for time in times if time is not None), default=0)


def parse_trouble(away: str | bytes | None, spool: str | bytes | None) -> StorageTrouble | None:
    """From `storage_away` and `spool` of meta. Raises MalformedDocument."""
    trouble = StorageTrouble(None if away is None else int(away), parse_spooled(spool))
    return None if trouble == StorageTrouble(None, None) else trouble
