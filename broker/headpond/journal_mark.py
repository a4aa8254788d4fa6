"""Where a queue's journal ends: what storage has to reach for a submit to be in it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from headpond.replies import StreamEntry
from headpond.spooled import parse_spooled


@dataclass(frozen=True, slots=True)
class JournalMark:
    """inc: incarnation of the server. last: id of the latest change that storage may lack; None if it has all."""

    inc: int
    last: str | None

    @classmethod
    def of(cls, inc: bytes | None, entries: Sequence[StreamEntry], spool: bytes | None) -> Self:
        """entries: the latest of the journal, if there is one. inc, spool: of meta, read after that."""
        spooled = parse_spooled(spool)
        in_spool = None if spooled is None else spooled.last
        return cls(int(inc or 0), entries[0][0] if entries else in_spool)

    @property
    def before(self) -> str | None:
        """The id to read `commits` after, so that whatever is read covers `last`; None if storage has all."""
        if self.last is None:
            return None
        inc, _, seq = self.last.partition("-")
        return f"{inc}-{int(seq) - 1}"
