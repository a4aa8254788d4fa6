"""What one commit takes from a queue: a stretch of its journal, and how far its jobs are. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from headpond.errors import MalformedDocument
from headpond_workers.persistence.fair import Fair
from headpond_workers.persistence.journal_id import JournalId
from headpond_workers.persistence.progress import Progress
from headpond_workers.persistence.records import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """first, last: the stretch of the journal; both None if it has no entries, but progress.

    inc: the incarnation that it was read under. as_of_ms: by Redis's clock; whatever was acknowledged before is in the
    chain once this is. records: of the entries, in their order; an entry of which nothing is left has none. progress:
    tokens of jobs that have not ended. fair: what tenants have paid; None if nothing changed.
    """

    first: JournalId | None
    last: JournalId | None
    inc: int
    as_of_ms: int = 0
    records: tuple[Record, ...] = field(default=(), repr=False)
    progress: tuple[Progress, ...] = field(default=(), repr=False)
    fair: Fair | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.first is None or self.last is None:
            if self.first is not self.last or self.records:
                raise MalformedDocument("journal batch", f"first={self.first} last={self.last}")
            return
        ids = [self.first, *(record.journal_id for record in self.records), self.last]
        rising = all(a < b for a, b in pairwise(ids[1:-1]))
        if not rising or ids[0] > ids[1] or ids[-2] > ids[-1]:
            raise MalformedDocument("journal batch", f"its records are not in order from {self.first} to {self.last}")
        if self.last.inc > self.inc:
            raise MalformedDocument("journal batch", f"{self.last} is of an incarnation above {self.inc}")
