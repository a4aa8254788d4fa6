"""The place of one entry in a model's journal. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from headpond.errors import MalformedDocument
from headpond_workers.storage.sealed import MAX_COUNT

_JOURNAL_ID = re.compile(r"(0|[1-9][0-9]{0,15})-(0|[1-9][0-9]{0,15})")


@dataclass(frozen=True, slots=True, order=True)
class JournalId:
    """`<inc>-<seq>`: an incarnation of Redis, and a counter. Ordered by both numbers."""

    inc: int
    seq: int

    def __str__(self) -> str:
        return f"{self.inc}-{self.seq}"

    @classmethod
    def parse(cls, text: str) -> JournalId:
        """Raises MalformedDocument."""
        match = _JOURNAL_ID.fullmatch(text)
        if match is None or max(inc := int(match[1]), seq := int(match[2])) > MAX_COUNT:
            raise MalformedDocument("journal id", f"{text[:60]!r} is not <incarnation>-<sequence>")
        return cls(inc, seq)


JOURNAL_START = JournalId(0, 0)
"""Below every entry."""
