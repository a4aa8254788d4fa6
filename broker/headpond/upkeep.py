"""What operators and upkeep ask of a queue: depths, quarantined jobs, fsck, and the persister's own steps. No I/O.

The counterpart of `headpond.operations`, which has what producers and workers ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from headpond.jobs import Priority
from headpond.operations import Operation
from headpond.replies import StreamEntry, parse_entries


@dataclass(frozen=True, slots=True)
class Depths:
    """How many jobs of one queue stand where.

    interactive, normal, batch: ready to be claimed. suspects: of these, those that wait for a turn of their own.
    due: of the delayed ones. lapsed: of the running ones, those whose lease has ended.
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


@dataclass(frozen=True, slots=True)
class JobSample:
    """How far one job is. row: its run row as it is packed; empty if there is none. entries: of its stream."""

    row: bytes
    entries: list[StreamEntry]


@dataclass(frozen=True, slots=True)
class Sample:
    """paid: band -> its virtual time, and tenant -> the virtual time up to which its jobs are paid for. jobs: as they
    were asked for."""

    paid: dict[str, tuple[float, dict[str, float]]]
    jobs: list[JobSample]


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


def sample(after: Sequence[tuple[str, str]], *, entries: int) -> Operation[Sample]:
    """after: pairs of a job's id and the stream entry after which it is read, "-" from the first on. entries: most of
    one job: where as many come, there may be more."""
    words = [word for pair in after for word in pair]
    return Operation("sample", (entries, *words), _parse_sample)


def _parse_sample(reply: list[Any]) -> Sample:
    paid = {}
    for band, (virtual, flat) in zip(Priority, reply[0], strict=True):
        tenants = {_text(name): float(time) for name, time in zip(flat[::2], flat[1::2], strict=True)}
        paid[band.value] = (float(virtual or 0), tenants)
    return Sample(paid, [JobSample(bytes(row), parse_entries(found)) for row, found in reply[1:]])


def trim(*, inc: int, through: str, ended: Sequence[str]) -> Operation[bool]:
    """False if the server went back in time since `inc` was read; nothing was trimmed then."""
    return Operation("trim", (inc, through, *ended), lambda r: _text(r) == "ok")


def open_queue(
    step: str, *, lineage: str = "", reason: str = "", least_inc: int = 0, inc: int = 0
) -> Operation[tuple[str, str]]:
    """step: 'claim', 'open' or 'close'. least_inc: the incarnation that storage has seen; this server's is raised
    above it if it is lower. inc: that of the meta which the decision rests on; 0 for any. Returns the queue's lineage
    and state."""
    return Operation("open", (step, lineage, reason, least_inc, inc, ""), lambda r: (_text(r[0]), _text(r[1])))
