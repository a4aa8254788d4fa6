"""What can be asked of a queue's sessions, beside their jobs. No I/O. The counterpart of `headpond.operations`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from headpond.commits import PAGE_BYTES, PAGE_COMMITS, ChainPage, Commit, parse_chain
from headpond.operations import Operation


class SessionAnswer(StrEnum):
    OK = "ok"
    GONE = "gone"
    BUSY = "busy"
    """A job of the session waits or runs."""
    TAKEN = "taken"
    """There is another session of the new name."""
    UNKNOWN = "unknown"
    """The session has no such commit."""
    CLOSED = "closed"
    """The queue is not open: it is not known yet what it should hold."""


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """What `finish` adds to a session. head: that the worker saw. parent: of the commit; not the head where the head
    is this job's own, from an end that was lost. told: skipped jobs that the turn tells of."""

    commit: Commit
    document: bytes
    head: str
    told: Sequence[str] = ()

    def words(self) -> tuple[str | bytes | int, ...]:
        """Arguments of the script."""
        c = self.commit
        return (c.id, self.document, self.head, c.parent, c.version, c.turns, c.policy.value, *self.told)


def _answer(reply: bytes | str) -> SessionAnswer:
    return SessionAnswer(reply.decode() if isinstance(reply, bytes) else reply)


def fork(session: str, at: Commit, *, name: str, settled: bool) -> Operation[SessionAnswer]:
    """A new session whose head is a commit of this one. settled: refuse while a job of this one waits or runs."""
    return Operation("session", ("fork", session, at.id, at.version, at.turns, name, int(settled)), _answer)


def rollback(session: str, to: Commit | None) -> Operation[SessionAnswer]:
    """Move the head to a commit that it had before; None: to before the first."""
    where = ("", "", 0) if to is None else (to.id, to.version, to.turns)
    return Operation("session", ("rollback", session, *where), _answer)


def delete(session: str) -> Operation[SessionAnswer]:
    return Operation("session", ("delete", session), _answer)


def chain(commit: str) -> Operation[ChainPage]:
    """A commit and those before it."""
    return Operation("chain", (commit, PAGE_COMMITS, PAGE_BYTES), parse_chain)
