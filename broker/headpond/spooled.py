"""What `spool` of a queue's meta says: which part of its journal is on one host's disk instead of storage. Pure.

As JSON, so that a script reads it too: {"id", "host", "folder", "first", "last", "since_ms"}.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from headpond.errors import MalformedDocument


@dataclass(frozen=True, slots=True)
class Spooled:
    """id: of the spool's folder, random. host, folder: where that is, for people. first, last: journal ids, of all
    that it holds. since_ms: the server's time at which its first entry was taken."""

    id: str
    host: str
    folder: str
    first: str
    last: str
    since_ms: int

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
        raise MalformedDocument("spool", f"{text[:100]!r}: {error!r}") from error
    words = (found.id, found.host, found.folder, found.first, found.last)
    if not all(isinstance(word, str) for word in words) or type(found.since_ms) is not int:
        raise MalformedDocument("spool", f"{text[:100]!r}")
    return found
