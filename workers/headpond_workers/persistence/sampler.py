"""How far the jobs of one queue are: the tokens that storage does not have yet (S4)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from headpond import upkeep
from headpond.queue import JobQueue
from headpond.replies import StreamEntry
from headpond.wire import Rewound, unpack_event, unpack_tokens
from headpond_workers.persistence.fair import BandTimes, Fair
from headpond_workers.persistence.journal_records import read_row
from headpond_workers.persistence.progress import Progress

FROM_THE_FIRST = "-"
JOBS_A_CALL = 32
ENTRIES_A_CALL = 2000
"""Of one job: no call holds up the server for long."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """What storage has of a job that runs: entries up to `entry`, tokens up to `offset`, of this submit and lease."""

    entry: str
    offset: int
    submitted_ms: int
    attempt: int


class Sampler:
    """Remembers what it was told to be stored, of jobs that run. What it forgets is read from the first token on."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._stored: dict[str, _Stored] = {}
        self._read: dict[str, _Stored] = {}
        self._fair: Fair | None = None
        self._fair_read: Fair | None = None

    def sample(self, others: Iterable[str], *, anew: Collection[str]) -> tuple[tuple[Progress, ...], Fair | None]:
        """New tokens of the jobs that run, that did at the last sample, and of `others`; and what tenants have paid,
        None if that is as it was stored last. anew: jobs that were submitted since: nothing is stored of these."""
        for job_id in anew:
            self._stored.pop(job_id, None)
        # The messages of other actors have no tokens.
        names = {name for name in (*self._queue.leased(), *self._stored, *others) if "#" not in name}
        self._read = {}
        progress = []
        paid, found = self._fetch({name: self._after(name) for name in sorted(names)})
        for name, (row, entries) in found.items():
            if (made := self._progress(name, row, entries)) is not None:
                progress.append(made)
        self._fair_read = {band: BandTimes(virtual, tenants) for band, (virtual, tenants) in paid.items()}
        return tuple(progress), None if self._fair_read == self._fair else self._fair_read

    def stored(self) -> None:
        """What was sampled last is in storage."""
        self._stored, self._fair = self._read, self._fair_read

    def forget(self) -> None:
        """It is not known what storage has: the server went back in time, or somebody else wrote."""
        self._stored, self._fair = {}, None

    def forget_fair(self) -> None:
        """Somebody else has written what tenants have paid."""
        self._fair = None

    def _after(self, name: str) -> str:
        known = self._stored.get(name)
        return FROM_THE_FIRST if known is None else known.entry

    def _progress(self, name: str, raw: bytes, entries: list[StreamEntry]) -> Progress | None:
        row = read_row(name, raw)
        if row is None or row.state.ended:
            # Its end comes with the journal, and its tokens with its result.
            return None
        known = self._stored.get(name)
        if known is not None and known.submitted_ms != row.submitted_ms:
            # A job of the same id took its place.
            del self._stored[name]
            known = None
            _, again = self._fetch({name: FROM_THE_FIRST})
            raw, entries = again[name]
            row = read_row(name, raw)
            if row is None or row.state.ended:
                return None
        offset = 0 if known is None else known.offset
        start, ids, pieces = fold_after(offset, entries)
        if row.fence:
            last = entries[-1][0] if entries else self._after(name)
            self._read[name] = _Stored(last, start + len(ids), row.submitted_ms, row.attempt)
        as_stored = bool(row.fence) and known.attempt == row.attempt if known is not None else not row.fence
        if not entries and as_stored:
            return None
        return Progress(name, raw, start, ids, pieces)

    def _fetch(
        self, after: dict[str, str]
    ) -> tuple[dict[str, tuple[float, dict[str, float]]], dict[str, tuple[bytes, list[StreamEntry]]]]:
        """Row and entries of each job. The row is of the moment of the last entries, and those before do not change."""
        paid: dict[str, tuple[float, dict[str, float]]] = {}
        found: dict[str, tuple[bytes, list[StreamEntry]]] = {name: (b"", []) for name in after}
        left = list(after.items())
        while left or not paid:
            now, left = left[:JOBS_A_CALL], left[JOBS_A_CALL:]
            sample = self._queue.run(upkeep.sample(now, entries=ENTRIES_A_CALL))
            paid = sample.paid
            for (name, _), job in zip(now, sample.jobs, strict=True):
                entries = found[name][1] + job.entries
                found[name] = (job.row, entries)
                if len(job.entries) == ENTRIES_A_CALL:
                    left.append((name, entries[-1][0]))
        return paid, found


def fold_after(offset: int, entries: Iterable[StreamEntry]) -> tuple[int, tuple[int, ...], tuple[str, ...]]:
    """What stream entries add to the first `offset` tokens of a job: how many of these stay, ids and pieces after."""
    ids: list[int] = []
    pieces: list[str] = []
    for _, fields in entries:
        if b"t" in fields:
            run = unpack_tokens(fields[b"t"])
            new = run.after(offset + len(ids))
            if run.end > offset + len(ids):
                ids += new.ids
                pieces += new.pieces
        elif b"e" in fields and isinstance(event := unpack_event(fields[b"e"]), Rewound):
            offset = min(offset, event.offset)
            del ids[event.offset - offset :], pieces[event.offset - offset :]
    return offset, tuple(ids), tuple(pieces)
