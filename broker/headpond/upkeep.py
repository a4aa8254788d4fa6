"""What operators and upkeep ask of a queue: depths, quarantined jobs, fsck, and the persister's own steps. No I/O.

The counterpart of `headpond.operations`, which has what producers and workers ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from headpond.operations import Operation


@dataclass(frozen=True, slots=True)
class Depths:
    """How many jobs of one queue stand where.

    interactive, normal, batch: ready to be claimed. suspects: of these, those that wait for a turn of their own.
    due: of the delayed ones. lapsed: of the running ones, those whose lease has ended. waiting: for their turn in a
    session, behind a job of it that has not ended.
    """

    interactive: int
    normal: int
    batch: int
    suspects: int
    delayed: int
    due: int
    running: int
    lapsed: int
    dead: int
    waiting: int = 0

    @property
    def ready(self) -> int:
        return self.interactive + self.normal + self.batch

    @property
    def demand(self) -> int:
        """Jobs that a worker could claim now: what to scale by (Q8)."""
        return self.ready + self.due + self.lapsed


class DeadAnswer(StrEnum):
    OK = "ok"
    GONE = "gone"
    ALIVE = "alive"
    """The job is not quarantined."""
    UNCOMMITTED = "uncommitted"
    """With storage nothing is dropped before its end is committed."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A job that was not where its row says. remedy: what was done; 'left' if nothing."""

    id: str
    what: str
    remedy: str


@dataclass(frozen=True, slots=True)
class FsckPage:
    """cursor: of the next page; "0" after the last. looked: rows of this page."""

    cursor: str
    looked: int
    faults: tuple[Fault, ...]


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def depths() -> Operation[Depths]:
    return Operation("depths", (), lambda r: Depths(*(int(n) for n in r)))


def forget_dead(job_id: str) -> Operation[DeadAnswer]:
    """List a quarantined job no more; it stays readable until its retention ends."""
    return Operation("dead", ("forget", job_id), lambda r: DeadAnswer(_text(r)))


def drop_dead(job_id: str) -> Operation[DeadAnswer]:
    """Remove all of a quarantined job, now."""
    return Operation("dead", ("drop", job_id), lambda r: DeadAnswer(_text(r)))


def fsck(cursor: str, *, repair: bool, rows: int = 200) -> Operation[FsckPage]:
    """One page. cursor: "0" begins. rows: about how many a page; the server decides."""
    return Operation("fsck", (cursor, "1" if repair else "0", rows), _parse_fsck)


def _parse_fsck(reply: list[Any]) -> FsckPage:
    words = [_text(word) for word in reply[2:]]
    faults = tuple(Fault(*words[i : i + 3]) for i in range(0, len(words), 3))
    return FsckPage(_text(reply[0]), int(reply[1]), faults)


def trim(*, inc: int, through: str, ended: Sequence[str]) -> Operation[bool]:
    """False if the server went back in time since `inc` was read; nothing was trimmed then."""
    return Operation("trim", (inc, through, *ended), lambda r: _text(r) == "ok")


def open_queue(step: str, *, lineage: str = "", reason: str = "", least_inc: int = 0) -> Operation[tuple[str, str]]:
    """step: 'claim', 'open' or 'close'. least_inc: the incarnation that storage has seen; this server's is raised
    above it if it is lower. Returns the queue's lineage and state."""
    return Operation("open", (step, lineage, reason, least_inc), lambda r: (_text(r[0]), _text(r[1])))
