"""One turn of a session: from a job and the head to what the engine is asked, and from its answer to a commit.

Nobody but the job that runs moves the head of its session, and the end of that job is the move: so what is read here
stays as it is until then, or the end is refused.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from headpond.commits import (
    MAX_COMMIT_BYTES,
    MAX_CONVERSATION_BYTES,
    MAX_TURNS,
    Commit,
    Origin,
    conversation,
    pack_commit,
    size_of,
)
from headpond.errors import CommitGone, MalformedDocument, SessionConflict, SessionFull
from headpond.jobs import Result
from headpond.queue import JobQueue
from headpond.requests import JobRequest, Message
from headpond.session_operations import TurnEnd
from headpond.turns import ROOT, Policy, Turn, TurnRequest


@dataclass(frozen=True, slots=True)
class BegunTurn:
    """session: its name. request: the job's, with the whole conversation. messages: of this turn alone. head: of the
    session. parent: what the turn goes on from; None if it is the first. skipped: what it is to tell of."""

    session: str
    request: JobRequest
    messages: tuple[Message, ...]
    head: str
    parent: Commit | None
    skipped: tuple[str, ...]
    policy: Policy

    def told(self, *, version: str, fingerprint: str, commit: str | None) -> Turn:
        """What the result says. version, fingerprint: of the model that serves."""
        origin = self._origin(version, fingerprint)
        return Turn(
            self.session,
            commit,
            self.parent.id if self.parent else None,
            self.skipped,
            origin.version if origin else None,
        )

    def end(self, result: Result, *, fingerprint: str) -> TurnEnd:
        """The commit of an answer. Raises SessionFull."""
        parent = self.parent
        messages = (*self.messages, Message(role="assistant", content=result.text))
        commit = Commit(
            id="",
            parent=parent.id if parent else "",
            session=self.session,
            job=result.id,
            messages=messages,
            finish_reason=result.finish_reason,
            model=result.model,
            version=result.version,
            fingerprint=fingerprint,
            usage=result.usage,
            created_ms=int(time.time() * 1000),
            turns=1 + (parent.turns if parent else 0),
            size=size_of(messages) + (parent.size if parent else 0),
            policy=self.policy,
            migrated_from=self._origin(result.version, fingerprint),
            skipped=self.skipped,
        )
        commit_id, document = pack_commit(commit)
        if len(document) > MAX_COMMIT_BYTES:
            raise SessionFull(
                f"The turn has {len(document)} bytes with its answer; one of a session has at most {MAX_COMMIT_BYTES}. "
                "Ask for fewer tokens.",
                session=self.session,
            )
        return TurnEnd(replace(commit, id=commit_id), document, self.head, self.skipped)

    def _origin(self, version: str, fingerprint: str) -> Origin | None:
        parent = self.parent
        if parent is None or (parent.version, parent.fingerprint) == (version, fingerprint):
            return None
        return Origin(parent.version, parent.fingerprint)


def begin_turn(queue: JobQueue, job_id: str, turn: TurnRequest, asked: JobRequest) -> BegunTurn:
    """Read the conversation that a job goes on with.

    Raises SessionConflict if the head is not the parent that was asked for, SessionFull, CommitGone if the conversation
    cannot be read, RedisUnavailable.
    """
    name, commits = f"{queue.name}/{turn.session}", []
    try:
        row = queue.session(turn.session)
        head = row.head if row else ""
        commits = queue.chain(name, head) if head else []
    except MalformedDocument as error:
        raise CommitGone(name, "", why=f"cannot be read: {error}") from error
    if commits and commits[-1].job == job_id:
        # The commit of this very job is there and its end was lost, as a restore may have it: its turn is made anew.
        commits.pop()
    parent = commits[-1] if commits else None
    _check_parent(name, turn, parent)
    messages = asked.chat()
    size = size_of(messages) + (parent.size if parent else 0)
    if size > MAX_CONVERSATION_BYTES or len(commits) >= MAX_TURNS:
        raise SessionFull(
            f"Session '{name}' has {len(commits)} turns, and {size} bytes with this one; one has at most {MAX_TURNS} "
            f"turns and {MAX_CONVERSATION_BYTES} bytes. Begin another one, with what is still needed of it.",
            session=name,
        )
    request = asked
    if commits:
        # Not checked again: each turn was, and together they have a bound of their own.
        request = asked.model_copy(update={"prompt": None, "messages": (*conversation(commits), *messages)})
    policy = turn.policy or (row.policy if row else None) or Policy.MIGRATE
    return BegunTurn(turn.session, request, messages, head, parent, row.skipped if row else (), policy)


def _check_parent(name: str, turn: TurnRequest, parent: Commit | None) -> None:
    found = parent.id if parent else ROOT
    if turn.parent not in ("", found):
        raise SessionConflict(
            f"The turn was to be made on {turn.parent[:12]}, and the head of session '{name}' is {found[:12]}: another "
            "turn came before it, or failed to come. Read the conversation anew, and submit on the head that it has.",
            session=name,
            head=found,
        )
