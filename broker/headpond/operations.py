"""What can be asked of a queue: each operation as its script, its arguments and what its reply means. No I/O.

headpond.queue and headpond.aio_queue send them; nothing else calls the scripts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeVar

from headpond.errors import MalformedDocument
from headpond.jobs import JobState, Priority
from headpond.wire import TokenRun, pack_for_script, pack_tokens, unpack, unpack_raw

T = TypeVar("T")
Argument = str | bytes | int

OWN_LANE = "@"
"""Before the version of a full worker that claims what waits for that version alone."""


@dataclass(frozen=True, slots=True)
class Operation(Generic[T]):
    """One call of one script, but for the clock, which is its first argument everywhere."""

    script: str
    args: Sequence[Argument]
    parse: Callable[[Any], T]


class Submitted(StrEnum):
    NEW = "new"
    KNOWN = "known"
    CONFLICT = "conflict"
    FULL = "full"
    CROWDED = "crowded"
    """Too many jobs of its session wait."""
    MOVED = "moved"
    """Nothing of its session waits, and the head is not the parent that it asks for."""


class LeaseStatus(StrEnum):
    """What renew, append, finish and park answer about one lease; the last three end the right to write.

    PREEMPT: as OK or APPENDED, and the job is to be parked for a more urgent one (Q12).
    """

    OK = "ok"
    PREEMPT = "preempt"
    APPENDED = "appended"
    DONE = "done"
    PARKED = "parked"
    GAP = "gap"
    FENCED = "fenced"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def over(self) -> bool:
        return self in (LeaseStatus.FENCED, LeaseStatus.CANCELLED, LeaseStatus.EXPIRED)


class Settle(StrEnum):
    """What becomes of a lease that is over. The first two end its job, the others put it back."""

    FINISHED = "finished"
    FAILED = "failed"
    PARKED = "parked"
    PREEMPTED = "preempted"
    FAULTY = "faulty"
    """The engine could not go on: a strike, unless there was progress (Q11)."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """How one lease ends, where its end needs no result. offset: tokens of the job, for an end."""

    id: str
    fence: str
    what: Settle
    offset: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long what is over is kept. Seconds; 0 is for ever, in storage and of sessions."""

    retention_s: float
    storage_retention_s: float = 0.0
    session_retention_s: float = 0.0


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """What a worker's table says of its queue. Seconds. weights: of tenants; who is not named has 1. retention_s,
    storage_retention_s, session_retention_s: as in Retention, of tenants that are not in tenant_retention."""

    lease_s: float
    retention_s: float
    stream_retention_s: float = 600.0
    suspect_wait_s: float = 30.0
    version_wait_s: float = 60.0
    weights: Mapping[str, float] = field(default_factory=dict)
    storage_retention_s: float = 0.0
    session_retention_s: float = 0.0
    tenant_retention: Mapping[str, Retention] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """One job to submit. cost: in tokens, what its tenant pays for it (Q6). pinned: the one version that may run it.
    delay_s: 0 for now; so it is for a job of a session. deadline_s: from now; None for none. session: its name; '' for
    none."""

    id: str
    data: bytes
    digest: str
    tenant: str = ""
    band: Priority = Priority.NORMAL
    pinned: str = ""
    cost: int = 1
    delay_s: float = 0.0
    deadline_s: float | None = None
    session: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run one job until its time on the server's clock.

    fence: names this lease and no other. attempt: how often the job was leased, this one included. offset:
    tokens of the job that stand in its stream. queued_s: from submit to this claim.
    """

    id: str
    fence: str
    attempt: int
    gen: int
    offset: int
    queued_s: float
    data: bytes


@dataclass(frozen=True, slots=True)
class Claimed:
    """state: of the queue. next_due_s: when a claim may find more without a wake; None if unknown. settled: an answer
    for each settlement: DONE, PARKED, GAP, or why the lease could not settle anything."""

    state: str
    next_due_s: float | None
    leases: tuple[Lease, ...]
    settled: tuple[LeaseStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class Append:
    id: str
    fence: str
    tokens: TokenRun


@dataclass(frozen=True, slots=True)
class Outcome:
    status: LeaseStatus
    offset: int


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def hello(server_id: str, *, storage: bool) -> Operation[tuple[int, str]]:
    return Operation("hello", (server_id, "1" if storage else ""), lambda r: (int(r[0]), _text(r[1])))


def submit(entries: Sequence[Entry], *, max_queued: int = 0) -> Operation[list[Submitted]]:
    flat: list[object] = []
    for e in entries:
        deadline = 0 if e.deadline_s is None else max(1, _ms(e.deadline_s))
        flat += (
            e.id, e.data, e.digest, e.tenant, e.band.value, e.pinned, e.cost, _ms(e.delay_s), deadline, e.session,
        )  # fmt: skip
    return Operation("submit", (max_queued, pack_for_script(flat)), _parse_submit)


def _parse_submit(reply: bytes) -> list[Submitted]:
    answers = unpack(reply, kind="submit reply")
    try:
        return [Submitted(answer) for answer in answers]
    except (TypeError, ValueError) as error:
        raise MalformedDocument("submit reply", str(error)[:200]) from error


def claim(
    boot: str,
    *,
    seq: int,
    nonce: str,
    slots: int,
    version: str = "",
    fingerprint: str = "",
    host: str = "",
    lease_s: float = 0.0,
    anew: str = "",
    own_lane: bool = False,
    settle: Sequence[Settlement] = (),
) -> Operation[Claimed]:
    """Settle leases, then lease up to `slots` jobs, in one step.

    slots: 0 only settles, and `seq` is not used up. version, fingerprint: of the model that serves; '' where tokens
    do not depend on it. host: shown of attempts. lease_s: how long leases of this queue last from now on; 0 leaves it.
    anew: why this worker cannot go on after tokens of an earlier lease, so that jobs which have some begin anew; '' if
    it can. own_lane: claim what waits for `version` alone (Q5).
    """
    flat: list[object] = [boot, seq, nonce, slots, version, fingerprint, host, _ms(lease_s), anew, int(own_lane)]
    for s in settle:
        flat += (s.id, s.fence, s.what.value, s.offset, s.reason)
    return Operation("claim", (pack_for_script(flat),), _parse_claim)


def _parse_claim(reply: bytes) -> Claimed:
    fields = unpack_raw(reply, kind="claim reply")
    try:
        return _claimed(fields)
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise MalformedDocument("claim reply", str(error)[:200]) from error


def _claimed(fields: Any) -> Claimed:
    state, due, now, settled, *flat = fields
    leases = []
    for i in range(0, len(flat), 7):
        job_id, fence, attempt, gen, offset, submitted, data = flat[i : i + 7]
        queued_s = max(0.0, (now - submitted) / 1000)
        leases.append(Lease(job_id.decode(), fence.decode(), attempt, gen, offset, queued_s, data))
    statuses = tuple(LeaseStatus(status.decode()) for status in settled)
    return Claimed(state.decode(), None if due < 0 else due / 1000, tuple(leases), statuses)


def renew(
    boot: str, *, last_seq: int, row: bytes, pairs: Sequence[tuple[str, str]], full_version: str = ""
) -> Operation[list[LeaseStatus]]:
    """full_version: the version that is served, if all slots are taken; then PREEMPT may be answered. With OWN_LANE
    before it where nothing else is claimed."""
    args: list[Argument] = [boot, last_seq, row, full_version]
    for pair in pairs:
        args += pair
    return Operation("renew", args, lambda r: [LeaseStatus(_text(x)) for x in r])


def append(batch: Sequence[Append], *, full_version: str = "") -> Operation[list[Outcome]]:
    """At most one entry for each (id, fence). full_version: as for `renew`."""
    flat: list[object] = []
    for a in batch:
        flat += (a.id, a.fence, a.tokens.offset, len(a.tokens.ids), pack_tokens(a.tokens))
    return Operation("append", (full_version, pack_for_script(flat)), _parse_append)


def _parse_append(reply: bytes) -> list[Outcome]:
    flat = unpack(reply, kind="append reply")
    try:
        return [Outcome(LeaseStatus(flat[i]), flat[i + 1]) for i in range(0, len(flat), 2)]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise MalformedDocument("append reply", repr(error)[:200]) from error


def finish(
    job_id: str,
    fence: str,
    *,
    offset: int,
    state: JobState,
    result: bytes,
    reason: str = "",
    first_token_s: float | None = None,
    turn: Sequence[Argument] = (),
) -> Operation[Outcome]:
    """first_token_s: from the lease to its first token; None without one. Kept while a trial is on. turn: what it adds
    to its session, `TurnEnd.words()`; FENCED is also the answer where that has another head by now."""
    first_token_ms = -1 if first_token_s is None else _ms(first_token_s)
    return Operation(
        "finish",
        (job_id, fence, offset, state.value, result, reason, first_token_ms, *turn),
        lambda r: Outcome(LeaseStatus(_text(r[0])), int(r[1])),
    )


def park(
    pairs: Sequence[tuple[str, str]], *, strike: bool = False, reason: str = "put back by its worker"
) -> Operation[list[LeaseStatus]]:
    """strike: the engine could not go on; reason says why."""
    args: list[Argument] = ["failed" if strike else "parked", reason]
    for pair in pairs:
        args += pair
    return Operation("park", args, lambda r: [LeaseStatus(_text(x)) for x in r])


def cancel(job_id: str) -> Operation[JobState | None]:
    """The job's state after it; None for an unknown job."""
    return Operation("cancel", (job_id,), lambda r: JobState(_text(r)) if r else None)


def tick() -> Operation[float | None]:
    """Seconds until there is more for a tick to do; None without."""
    return Operation("tick", (), lambda r: None if int(r) < 0 else int(r) / 1000)


def register(
    boot: str, *, host: str, instance: str, row: bytes, version: str, fingerprint: str, policy: QueuePolicy
) -> Operation[str]:
    p = policy
    times = (
        p.lease_s, p.retention_s, p.stream_retention_s, p.suspect_wait_s, p.version_wait_s, p.storage_retention_s,
        p.session_retention_s,
    )  # fmt: skip
    args: list[Argument] = [boot, host, instance, row, version, fingerprint, *map(_ms, times), len(p.weights)]
    for tenant, weight in p.weights.items():
        args += (tenant, repr(float(weight)))
    for tenant, kept in p.tenant_retention.items():
        own = (kept.retention_s, kept.storage_retention_s, kept.session_retention_s)
        args += (tenant, " ".join(str(_ms(time)) for time in own))
    return Operation("register", args, _text)


def unregister(boot: str, *, killed: bool = False) -> Operation[str]:
    """A worker process is gone. killed: it died, which the caller knows for sure: what it held was a strike."""
    return Operation("unregister", (boot, "killed" if killed else ""), _text)
