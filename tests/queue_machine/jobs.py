"""What must be true of one acknowledged job, as the protocol has it and not as the scripts do it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from headpond.jobs import JobState
from headpond.operations import Entry, LeaseStatus
from headpond.wire import RunRow

LAST_STRIKE = 3
SUSPECT_STRIKES = 2
MAX_FAULTS = 25
PROGRESS_TOKENS = 8
FRONT = -1.0
_TAG_ERROR = 1e-6
Share = tuple[str, int]
"""Of a trial: its version, and how many of a thousand jobs it has."""


@dataclass(slots=True)
class TrueJob:
    """fence: of the last lease; accepted while the job runs. parked: the fence that last put it back. tokens: all that
    stand in its stream. claimed_offset: how many of them there were when its lease began. seq: of the claim that gave
    the lease. struck_by, strikes_before: whose silence gave the last strike, and the strikes before it.
    waiting_from_ms: since when it is queued. lane: where it waits, or waited last. front: it waited so long that it is
    first of its band. alone: it runs as the one suspect. kept_from_ms: when its retention began; None until then.
    stream_until_ms: until when its stream is kept, where its result holds the same. listed: among the quarantined ones.
    serial: names this life of its id. turn: its place among the jobs of all sessions; 0 without a session."""

    entry: Entry
    serial: int
    submitted_ms: int
    state: JobState = JobState.QUEUED
    tag: float = 0.0
    fence: str = ""
    parked: str = ""
    boot: str = ""
    seq: int = 0
    attempt: int = 0
    strikes: int = 0
    faults: int = 0
    struck_by: str = ""
    strikes_before: int = 0
    tokens: list[int] = field(default_factory=list)
    claimed_offset: int = 0
    fingerprint: str = ""
    served_by: str = ""
    claimed_ms: int = 0
    lease_end_ms: int = 0
    waiting_from_ms: int = 0
    lane: str = "any"
    front: bool = False
    alone: bool = False
    ended_ms: int = 0
    kept_from_ms: int | None = None
    stream_until_ms: int | None = None
    durable: bool = False
    listed: bool = False
    result: bytes | None = None
    turn: int = 0

    @property
    def id(self) -> str:
        return self.entry.id

    @property
    def band(self) -> str:
        return self.entry.band.value

    @property
    def offset(self) -> int:
        return len(self.tokens)

    @property
    def due_ms(self) -> int:
        return self.submitted_ms + round(self.entry.delay_s * 1000)

    @property
    def deadline_ms(self) -> int | None:
        return None if self.entry.deadline_s is None else self.submitted_ms + round(self.entry.deadline_s * 1000)

    @property
    def version(self) -> str:
        """The one that alone may run it: that it is pinned to, or that made its tokens."""
        return self.entry.pinned or (self.served_by if self.tokens else "")

    @property
    def suspect(self) -> bool:
        return self.strikes >= SUSPECT_STRIKES

    def belongs(self, share: Share | None) -> str:
        """The lane that it is to wait in."""
        if self.suspect:
            return f"suspect@{self.version}" if self.version else "suspect"
        if self.version or share is None:
            return self.version or "any"
        name = self.entry.session or self.id
        digits = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()[:8]
        return share[0] if int(digits, 16) % 1000 < share[1] else "any"

    @property
    def place(self) -> float:
        """Its score in its lane."""
        return FRONT if self.front else self.tag

    def refusal(self, fence: str) -> LeaseStatus | None:
        """Why a writer with this fence may not write; None if it may."""
        if not fence or fence != self.fence:
            return LeaseStatus.FENCED
        if self.state is JobState.RUNNING:
            return None
        if self.state in (JobState.CANCELLED, JobState.EXPIRED):
            return LeaseStatus(self.state.value)
        return LeaseStatus.FENCED

    def lose_lease(self, *, fault: bool, silent: bool) -> bool:
        """Its lease ended, and it did not. fault: by a crash or an engine's failure. silent: by expiry. Returns
        whether it is to be quarantined; else it waits again."""
        if self.offset - self.claimed_offset >= PROGRESS_TOKENS:
            self.strikes = 0
        elif fault:
            if silent:
                self.struck_by, self.strikes_before = self.boot, self.strikes
            self.strikes += 1
        self.faults += fault
        self.fence, self.alone = "", False
        return self.strikes >= LAST_STRIKE or self.faults >= MAX_FAULTS

    def wait(self, now_ms: int, share: Share | None) -> None:
        self.state, self.waiting_from_ms, self.front = JobState.QUEUED, now_ms, False
        self.lane = self.belongs(share)

    def forgive(self, now_ms: int, share: Share | None) -> None:
        """The boot whose silence gave the strike spoke again."""
        self.strikes, self.faults, self.struck_by = self.strikes_before, self.faults - 1, ""
        self.wait(now_ms, share)

    def lease(
        self, *, boot: str, seq: int, fence: str, version: str, fingerprint: str, now_ms: int, end_ms: int
    ) -> None:
        self.alone = self.suspect
        if self.tokens and self.fingerprint != fingerprint:
            self.tokens = []
        self.state, self.boot, self.seq, self.fence = JobState.RUNNING, boot, seq, fence
        self.attempt += 1
        self.claimed_offset = self.offset
        self.fingerprint, self.served_by = fingerprint, version
        self.struck_by, self.claimed_ms, self.lease_end_ms = "", now_ms, end_ms

    def differences(self, row: RunRow) -> dict[str, tuple[object, object]]:
        """What the server's row says otherwise: true, found."""
        queued = self.state is JobState.QUEUED
        true = (
            self.state, self.fence, self.parked, self.attempt, self.strikes, self.faults, self.offset, self.struck_by,
            self.claimed_offset, self.band, self.entry.pinned, self.submitted_ms, self.ended_ms, self.durable,
            self.served_by, self.fingerprint, self.boot, self.claimed_ms, self.entry.session, self.turn,
        )  # fmt: skip
        told = (
            row.state, row.fence, row.parked, row.attempt, row.strikes, row.faults, row.offset, row.struck,
            row.claimed_offset, row.band, row.pinned, row.submitted_ms, row.ended_ms, row.durable,
            row.served_by, row.fingerprint, row.worker, row.claimed_ms, row.session, row.place,
        )  # fmt: skip
        if true == told and abs(self.tag - row.tag) < _TAG_ERROR and (not queued or row.lane == self.lane):
            return {}
        names = [
            "state",
            "fence",
            "parked",
            "attempt",
            "strikes",
            "faults",
            "offset",
            "struck",
            "claimed_offset",
            "band",
            "pinned",
            "submitted_ms",
            "ended_ms",
            "durable",
            "served_by",
            "fingerprint",
            "worker",
            "claimed_ms",
            "session",
            "place",
            "tag",
            "lane",
        ]
        pairs = zip(names, (*true, self.tag, self.lane), (*told, row.tag, row.lane), strict=True)
        return {name: (here, there) for name, here, there in pairs if here != there}
