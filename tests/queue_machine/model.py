"""What must be true of a queue: the part that goes back in time with its server, and the part that does not."""

from __future__ import annotations

import copy
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from headpond.jobs import JobState
from queue_machine.fairness import Fairness
from queue_machine.jobs import Share, TrueJob
from queue_machine.reader import StreamReader
from queue_machine.workers import Writing

QUEUE = "chat"
LEASE_MS = 10_000
RETENTION_MS = 100_000
STREAM_RETENTION_MS = 20_000
SUSPECT_WAIT_MS = 30_000
VERSION_WAIT_MS = 60_000
SERVING_MS = 2 * LEASE_MS
"""A version is served while one of its workers spoke within so long."""
LOADING_MS = 900_000
"""A worker that loads its model does so in silence, and for so long may be what a version waits for."""
SWEEP_EVERY_MS = 20
"""A claim for which nothing is due leaves time alone for so long."""


@dataclass(slots=True)
class ServerTruth:
    """What the server has acknowledged. seqs: of each boot's last claim. picks: how many jobs were ever claimed.
    journal: (kind, id) by journal id, of what no trim has taken. owed: lanes whose wake token a consumer has taken: it,
    or whoever ends its block next, will claim (invariant 6). noticed: boots that were told that a job of theirs ended,
    and have not heard it. end_ms, end_gap_ms: of the last job that ran to its end; the usual time between two. share:
    of the trial that has one. mending: with storage, it went back in time, and nobody has looked yet at what it lost;
    rolled_to: up to where its journal went then. outcomes: (id, version, state) of what ended while one had. seq: of
    the alias."""

    jobs: dict[str, TrueJob] = field(default_factory=dict)
    fairness: Fairness = field(default_factory=Fairness)
    seqs: dict[str, int] = field(default_factory=dict)
    picks: int = 0
    last_tick_ms: int | None = None
    graced: bool = False
    open: bool = True
    mending: bool = False
    rolled_to: str = ""
    inc: int = 0
    journal: dict[str, tuple[str, str]] = field(default_factory=dict)
    owed: set[str] = field(default_factory=set)
    noticed: set[str] = field(default_factory=set)
    end_ms: int | None = None
    end_gap_ms: float | None = None
    share: Share | None = None
    outcomes: list[tuple[str, str, str]] = field(default_factory=list)
    seq: int = 0


@dataclass(slots=True)
class Model:
    """fences: all that were ever handed out. highest_inc: of all lives of the server. written: what the call at hand
    must have added to the journal. told: boots that it must have given a notice. finished: when those jobs were claimed
    that it let finish or fail. handed_out: leases of late, also those that are long over.
    reached: how often what seldom happens has happened; what never did was not checked."""

    storage: bool = False
    reached: Counter[str] = field(default_factory=Counter)
    server: ServerTruth = field(default_factory=ServerTruth)
    readers: dict[str, StreamReader] = field(default_factory=dict)
    journal_seen: str = ""
    fences: set[str] = field(default_factory=set)
    highest_inc: int = 0
    serials: int = 0
    written: list[tuple[str, str]] = field(default_factory=list)
    told: set[str] = field(default_factory=set)
    finished: list[int] = field(default_factory=list)
    handed_out: deque[Writing] = field(default_factory=lambda: deque(maxlen=40))

    @property
    def state(self) -> str:
        """Of the queue."""
        server = self.server
        return "open" if server.open else "reconciling" if server.mending else "closed"

    @property
    def jobs(self) -> dict[str, TrueJob]:
        return self.server.jobs

    def new_serial(self) -> int:
        self.serials += 1
        return self.serials

    def running(self) -> list[TrueJob]:
        return [job for job in self.jobs.values() if job.state is JobState.RUNNING]

    def queued(self) -> list[TrueJob]:
        return [job for job in self.jobs.values() if job.state is JobState.QUEUED]

    def suspect_runs(self) -> bool:
        return any(job.alone for job in self.running())

    def write_journal(self, kind: str, job_id: str) -> None:
        if self.storage:
            self.written.append((kind, job_id))

    def begin_to_wait(self, jobs: Sequence[TrueJob], now_ms: int) -> None:
        """Jobs get their turns, all in one call. None of them is queued yet."""
        bands = self.server.fairness
        idle = {band for band in {job.band for job in jobs} if self._idle(band) and not self.server.mending}
        for band in idle:
            self.reached["band at rest"] += bool(bands.turns[band].paid)
            bands.turns[band].rest()
            bands.shares[band].rest()
        for job in jobs:
            job.tag = bands.turns[job.band].tag(job.entry)
            job.wait(now_ms, self.server.share)
            if job.lane != "any":
                # It may wait for its version while its tenant's others, that were paid for after it, are served.
                bands.shares[job.band].unsettle(job.entry.tenant)

    def _idle(self, band: str) -> bool:
        return not self.running() and not any(job.band == band for job in self.queued())

    def _refund(self, job: TrueJob) -> None:
        """It was paid for, and never served."""
        bands, tenant = self.server.fairness, job.entry.tenant
        bands.turns[job.band].refund(job.entry)
        self.reached["refund"] += 1
        behind = [j for j in self.queued() if not j.attempt and (j.band, j.entry.tenant) == (job.band, tenant)]
        if any(other.tag > job.tag for other in behind):
            # They keep the turns that they have.
            bands.shares[job.band].unsettle(tenant)

    def settle_ends(self, now_ms: int) -> None:
        """Last of a call: what the queue knows of the time between two ends."""
        server, count = self.server, len(self.finished)
        if not count:
            return
        since = max(0, now_ms - max(server.end_ms or 0, min(now_ms, *self.finished))) / count
        gap = server.end_gap_ms
        server.end_ms = now_ms
        server.end_gap_ms = since if gap is None else gap + (since - gap) * (1 - 0.9**count)
        self.reached["ends in one call"] += count > 1
        self.finished.clear()

    def end(self, job: TrueJob, state: JobState, now_ms: int) -> None:
        if job.state is JobState.QUEUED and not job.attempt:
            self._refund(job)
        if job.state is JobState.RUNNING and state in (JobState.CANCELLED, JobState.EXPIRED):
            self.server.noticed.add(job.boot)
            self.told.add(job.boot)
        self.reached[f"{job.state.value} job {state.value}"] += 1
        job.state, job.struck_by, job.alone, job.ended_ms = state, "", False, now_ms
        job.listed = state is JobState.DEAD
        if not self.storage:
            job.kept_from_ms = now_ms
        self.write_journal("end", job.id)

    def take_back(self, job: TrueJob, now_ms: int, *, fault: bool = False, silent: bool = False) -> None:
        self.reached["strike by silence" if silent else "strike by a fault" if fault else "lease given back"] += 1
        if job.lose_lease(fault=fault, silent=silent):
            self.note_outcome(job, JobState.DEAD)
            self.end(job, JobState.DEAD, now_ms)
        else:
            job.wait(now_ms, self.server.share)
            self.write_journal("back", job.id)

    def note_outcome(self, job: TrueJob, state: JobState) -> None:
        if self.server.share is not None and job.served_by:
            self.server.outcomes.append((job.id, job.served_by, state.value))
            self.reached["outcome noted"] += 1

    def forget(self, job: TrueJob) -> None:
        self.reached["dropped"] += 1
        del self.jobs[job.id]
        self.readers.pop(job.id, None)

    def copy_server(self) -> ServerTruth:
        return copy.deepcopy(self.server)

    def go_back(self, kept: ServerTruth) -> None:
        """The server holds what it held when `kept` was copied. Everybody else knows what they know."""
        self.server = copy.deepcopy(kept)
        # No consumer's block outlives its server: each of them claims as soon as it is back.
        self.server.owed = {"any", *(job.lane for job in kept.jobs.values())}
        for job_id, reader in list(self.readers.items()):
            job = self.jobs.get(job_id)
            if job is None or job.serial != reader.serial:
                del self.readers[job_id]
            elif reader.tokens[: job.offset] != job.tokens:
                # It obeyed a `rewound` that the server forgot, and so lacks tokens that the server holds again, or has
                # others. It finds that out by itself, and reads anew: StreamFold.verified.
                self.reached["reader misled"] += 1
                del self.readers[job_id]
            elif reader.end is not None and job.state is not reader.end:
                # Its end is among what the server lost, and the reader was told all that there was.
                self.readers[job_id] = StreamReader(job.serial, list(job.tokens), last=reader.last, lagging=True)
            else:
                self.reached["reader ahead"] += len(reader.tokens) > job.offset
                reader.lagging = reader.end is None

    def seen(self) -> list[str]:
        """What SCRIPT of snapshot.py takes: keys, and the last entries that were read of them."""
        found = ["journal", self.journal_seen] if self.journal_seen else []
        for job_id, reader in self.readers.items():
            if reader.last:
                found += (f"events:{job_id}", reader.last)
        return found
