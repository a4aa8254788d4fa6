"""What can be asked of a queue: each operation as its script, its arguments and what its reply means. No I/O.

headpond.queue and headpond.aio_queue send them; nothing else calls the scripts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

from headpond.jobs import JobState
from headpond.wire import TokenRun, pack_tokens

T = TypeVar("T")
Argument = str | bytes | int


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


class LeaseStatus(StrEnum):
    """What renew, append, finish and park answer about one lease; the last three end the right to write."""

    OK = "ok"
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


@dataclass(frozen=True, slots=True)
class Entry:
    """One job to submit. delay_s: 0 for now. deadline_s: from now; None for none."""

    id: str
    data: bytes
    digest: str
    tenant: str = ""
    band: str = "normal"
    lane: str = "any"
    delay_s: float = 0.0
    deadline_s: float | None = None


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
    """state: of the queue. next_due_s: when a claim may find more without a wake; None if unknown."""

    state: str
    next_due_s: float | None
    leases: tuple[Lease, ...]


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
    args: list[Argument] = [max_queued]
    for e in entries:
        deadline = 0 if e.deadline_s is None else max(1, _ms(e.deadline_s))
        args += (e.id, e.data, e.digest, e.tenant, e.band, e.lane, _ms(e.delay_s), deadline)
    return Operation("submit", args, lambda r: [Submitted(_text(x)) for x in r])


def claim(
    boot: str, *, seq: int, nonce: str, slots: int, fingerprint: str = "", lease_s: float = 0.0
) -> Operation[Claimed]:
    """lease_s: how long leases of this queue last from now on; 0 leaves it."""
    return Operation("claim", (boot, seq, nonce, slots, fingerprint, _ms(lease_s)), _parse_claim)


def _parse_claim(reply: list[Any]) -> Claimed:
    state, due, now = _text(reply[0]), int(reply[1]), int(reply[2])
    leases = []
    for i in range(3, len(reply), 7):
        job_id, fence, attempt, gen, offset, submitted, data = reply[i : i + 7]
        queued_s = max(0.0, (now - int(submitted)) / 1000)
        leases.append(Lease(_text(job_id), _text(fence), int(attempt), int(gen), int(offset), queued_s, bytes(data)))
    return Claimed(state, None if due < 0 else due / 1000, tuple(leases))


def renew(boot: str, *, last_seq: int, row: bytes, pairs: Sequence[tuple[str, str]]) -> Operation[list[LeaseStatus]]:
    args: list[Argument] = [boot, last_seq, row]
    for pair in pairs:
        args += pair
    return Operation("renew", args, lambda r: [LeaseStatus(_text(x)) for x in r])


def append(batch: Sequence[Append]) -> Operation[list[Outcome]]:
    """At most one entry for each (id, fence)."""
    args: list[Argument] = []
    for a in batch:
        args += (a.id, a.fence, a.tokens.offset, len(a.tokens.ids), pack_tokens(a.tokens))
    return Operation(
        "append",
        args,
        lambda r: [Outcome(LeaseStatus(_text(r[i])), int(r[i + 1])) for i in range(0, len(r), 2)],
    )


def finish(
    job_id: str, fence: str, *, offset: int, state: JobState, result: bytes, reason: str = ""
) -> Operation[Outcome]:
    return Operation(
        "finish",
        (job_id, fence, offset, state.value, result, reason),
        lambda r: Outcome(LeaseStatus(_text(r[0])), int(r[1])),
    )


def park(pairs: Sequence[tuple[str, str]], *, strike: bool) -> Operation[list[LeaseStatus]]:
    args: list[Argument] = ["1" if strike else "0"]
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
    boot: str,
    *,
    host: str,
    instance: str,
    row: bytes,
    lease_s: float,
    retention_s: float,
    version: str,
    fingerprint: str,
) -> Operation[str]:
    args = (boot, host, instance, row, _ms(lease_s), _ms(retention_s), version, fingerprint)
    return Operation("register", args, _text)


def unregister(boot: str) -> Operation[str]:
    return Operation("unregister", (boot,), _text)


def trim(*, inc: int, through: str, ended: Sequence[str]) -> Operation[bool]:
    """False if the server went back in time since `inc` was read; nothing was trimmed then."""
    return Operation("trim", (inc, through, *ended), lambda r: _text(r) == "ok")


def open_queue(step: str, *, lineage: str = "", reason: str = "", least_inc: int = 0) -> Operation[tuple[str, str]]:
    """step: 'claim', 'open' or 'close'. least_inc: the incarnation that storage has seen; this server's is raised
    above it if it is lower. Returns the queue's lineage and state."""
    return Operation("open", (step, lineage, reason, least_inc), lambda r: (_text(r[0]), _text(r[1])))
