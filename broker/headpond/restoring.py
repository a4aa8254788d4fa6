"""What is asked of a queue while storage's part of it is put back: a server that lost its data is restored, one that
went back in time reconciled. Rules: Q2, S3, S8. No I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from headpond.errors import ServerWentBack
from headpond.operations import Operation
from headpond.wire import TokenRun, pack_for_script, pack_tokens, unpack

JOURNAL_START = "0-0"
MAX_ITEMS = 100
"""Of one call of `restore`: others are served between two."""
Fair = Mapping[str, tuple[float, Mapping[str, float]]]
"""Band -> V, and tenant -> paid up to (Q6)."""


class PutIn(StrEnum):
    """What became of one item."""

    NEW = "new"
    MERGED = "merged"
    """It was here, and is now as storage has it."""
    CONFLICT = "conflict"
    """Another request was here under its id, and is gone."""
    KEPT = "kept"
    """It is here as it should be, or runs here."""
    DROPPED = "dropped"
    AGAIN = "again"
    """Its stream has grown since it was read; nothing was done."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Of a queue. restoring: what is restored, in words of the restore that began; '' for nothing."""

    lineage: str
    state: str
    inc: int
    restoring: str


@dataclass(frozen=True, slots=True)
class StoredJob:
    """One job as storage has it. what: 'queued', 'delayed', an ended state, or 'dropped'. row: its run row, empty if
    storage has none. tokens: all of them. common: how many of these its stream here has. last_event: the last entry of
    that; '' without a stream."""

    what: str
    id: str
    data: bytes = field(default=b"", repr=False)
    row: bytes = field(default=b"", repr=False)
    due_ms: int = 0
    deadline_ms: int = 0
    tokens: TokenRun = field(default=TokenRun(0, (), ()), repr=False)
    common: int = 0
    result: bytes = field(default=b"", repr=False)
    last_event: str = ""

    @property
    def size(self) -> int:
        """Bytes that it takes in a call, about."""
        return len(self.data) + len(self.row) + len(self.result) + 16 * len(self.tokens.ids) + 100


def begin_restore(*, lineage: str, what: str, least_inc: int, fair: Fair | None) -> Operation[Condition]:
    """A server that lost its data begins to be restored, or goes on: then its state is 'restoring', and that of `what`.
    Any other answer is a refusal. least_inc: what storage has seen; the incarnation rises above it."""
    return enter("restore", lineage, what, least_inc=least_inc, inc=0, fair=fair)


def end_restore(*, lineage: str, inc: int) -> Operation[Condition]:
    """All is in. Opens nothing if the server went back since `inc`."""
    return enter("restored", lineage, "", least_inc=0, inc=inc, fair=None)


def begin_reconciling(*, lineage: str, inc: int, least_inc: int, fair: Fair | None) -> Operation[Condition]:
    """What this server forgot is put in from now on. inc: as it was read with `rolled_to`."""
    return enter("reconcile", lineage, "", least_inc=least_inc, inc=inc, fair=fair)


def end_reconciling(*, lineage: str, inc: int, least_inc: int) -> Operation[Condition]:
    """As `end_restore`. least_inc: as for `begin_reconciling`, which is left out where nothing was forgotten."""
    return enter("open", lineage, "", least_inc=least_inc, inc=inc, fair=None)


def enter(step: str, lineage: str, text: str, *, least_inc: int, inc: int, fair: Fair | None) -> Operation[Condition]:
    """step: of open.lua, whose steps of a restore and of a reconciliation the functions above name."""
    paid = b"" if not fair else pack_for_script({band: (v, dict(tenants)) for band, (v, tenants) in fair.items()})
    return Operation("open", (step, lineage, text, least_inc, inc, paid), _parse_condition)


def _parse_condition(reply: list[bytes | str]) -> Condition:
    lineage, state, inc, restoring = (x.decode() if isinstance(x, bytes) else x for x in reply)
    return Condition(lineage, state, int(inc), restoring)


def put_in(jobs: Sequence[StoredJob], *, inc: int) -> Operation[list[PutIn]]:
    """Put jobs in, at most MAX_ITEMS, as storage has them. An answer for each.

    Raises ServerWentBack when it is parsed.
    """
    flat: list[object] = []
    for job in jobs:
        tokens = job.tokens
        first = TokenRun(0, tokens.ids[: job.common], tokens.pieces[: job.common])
        flat += (
            job.what, job.id, job.data, job.row, job.due_ms, job.deadline_ms, tokens.end, job.common,
            pack_tokens(first) if first.ids else b"", pack_tokens(tokens.after(job.common)) if tokens.end > job.common
            else b"", job.result, job.last_event,
        )  # fmt: skip
    return Operation("restore", (inc, pack_for_script(flat)), _parse_put_in)


def _parse_put_in(reply: bytes) -> list[PutIn]:
    answers = unpack(reply, kind="restore reply")
    if answers == ["stale"]:
        raise ServerWentBack("restore")
    return [PutIn(answer) for answer in answers]


def rejournal(*, inc: int, after: str = JOURNAL_START) -> Operation[str | None]:
    """Bring some of the journal up to this incarnation. The id after which to go on; None at the end.

    Raises ServerWentBack when it is parsed.
    """
    return Operation("rejournal", (inc, after), _parse_rejournal)


def _parse_rejournal(reply: bytes | str) -> str | None:
    text = reply.decode() if isinstance(reply, bytes) else reply
    if text == "stale":
        raise ServerWentBack("rejournal")
    return text or None
