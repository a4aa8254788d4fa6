"""Conversations that cannot go on, or be moved, as was asked."""

from __future__ import annotations

from headpond.errors.base import HeadpondError


class SessionError(HeadpondError):
    """A conversation cannot go on, or be moved, as was asked. session: its name."""

    def __init__(self, message: str, *, session: str) -> None:
        super().__init__(message)
        self.session = session


class SessionGone(SessionError):
    """There is no such session. name: with its model's, if that is known."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"There is no session '{name}'. It was never used, or deleted. List them with: headpond sessions list",
            session=name,
        )


class SessionConflict(SessionError):
    """The head is not the one that was named, or a new name is taken. head: as it is; None if it does not matter."""

    def __init__(self, message: str, *, session: str, head: str | None = None) -> None:
        super().__init__(message, session=session)
        self.head = head


class SessionBusy(SessionError):
    """A job of the session waits or runs, or its queue is closed."""

    retry = True


class SessionFull(SessionError):
    """The session holds, or waits for, as much as one may."""


class CommitGone(SessionError):
    """A commit is not there, or cannot be read. commit: its id."""

    def __init__(self, session: str, commit: str, *, why: str = "is not there") -> None:
        super().__init__(
            f"Commit {commit[:12]} of session '{session}' {why}. Its commits are listed by: headpond sessions show; a "
            "session whose own commits are gone goes on after: headpond sessions rollback",
            session=session,
        )
        self.commit = commit
