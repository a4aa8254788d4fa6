"""What a session's job was shown: its own turn after the conversation that it went on from, read from the commits."""

from __future__ import annotations

from typing import Protocol

from headpond.commits import Commit, SessionRow, conversation
from headpond.errors import CommitGone
from headpond.jobs import JobState
from headpond.requests import JobRequest
from headpond.turns import Turn, TurnRequest


class Conversations(Protocol):
    """The sessions of one model, wherever they are read: a queue, or storage. name: of the model."""

    @property
    def name(self) -> str: ...

    def session(self, name: str) -> SessionRow | None:
        """None if there is none. Raises MalformedDocument."""
        ...

    def chain(self, session: str, head: str) -> list[Commit]:
        """The commits up to a head, the first turn first. session: named in errors.

        Raises CommitGone, MalformedDocument.
        """
        ...


def whole_request(
    sessions: Conversations, job_id: str, state: JobState, asked: TurnRequest, request: JobRequest, told: Turn | None
) -> JobRequest:
    """The request with the whole conversation. told: by the job's result; None where no worker wrote one.

    Raises CommitGone if that cannot be told any more, MalformedDocument, and what `sessions` raise.
    """
    name = f"{sessions.name}/{asked.session}"
    if told is not None and (told.commit or told.parent):
        commits = sessions.chain(name, told.parent) if told.parent else []
    else:
        commits = _before(sessions, name, job_id, state, asked.session)
    if not commits:
        return request
    messages = (*conversation(commits), *request.chat())
    return request.model_copy(update={"prompt": None, "messages": messages})


def _before(sessions: Conversations, name: str, job_id: str, state: JobState, session: str) -> list[Commit]:
    """The commits that a job without an answer went on from, or would: the next turn tells that it came before it."""
    row = sessions.session(session)
    commits = sessions.chain(name, row.head) if row and row.head else []
    for n, commit in enumerate(commits):
        if job_id in (commit.job, *commit.skipped):
            return commits[:n]
    if state.ended and not (row and job_id in row.skipped):
        raise CommitGone(name, row.head if row else "", why=f"does not tell what {job_id} went on from")
    return commits
