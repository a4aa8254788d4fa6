"""Conversations (Q14): what must be true of one, and what producers and workers do with it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from headpond.commits import unpack_session
from queue_machine.snapshot import Snapshot

MAX_SKIPPED = 8


@dataclass(slots=True)
class TrueSession:
    """commits: ids from the first to the head. skipped: jobs that ended without one since, the latest last."""

    commits: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def head(self) -> str:
        return self.commits[-1] if self.commits else ""

    def commit(self, commit_id: str) -> None:
        self.commits.append(commit_id)
        self.skipped.clear()

    def skip(self, job_id: str) -> None:
        self.skipped.append(job_id)


def commit_of(fence: str) -> str:
    """The id of what a lease commits: one lease ends at most one job."""
    return hashlib.sha256(fence.encode()).hexdigest()


def turn_words(session: TrueSession, fence: str, *, stale: bool) -> tuple[str | bytes | int, ...]:
    """What `finish` is given for a turn. stale: the worker saw another head than the session has."""
    head = commit_of("nobody's") if stale else session.head
    return (commit_of(fence), b"a document", head, head, "1", len(session.commits) + 1, "migrate", *session.skipped)


def check_sessions(
    sessions: dict[str, TrueSession], waiting: dict[str, list[str]], running: dict[str, int], now: Snapshot
) -> None:
    """10: one job of a session runs, in the order of submits; commits form a chain whose end is the head.

    waiting: by session, ids of all that has not ended, in order. running: by session, how many of them run.
    """
    assert all(count <= 1 for count in running.values()), f"{running} jobs of sessions run at once"
    lists = {
        name.removeprefix("session:"): [job_id.decode() for job_id in ids]
        for name, ids in now.lists.items()
        if name.startswith("session:")
    }
    assert lists == {name: ids for name, ids in waiting.items() if ids}
    rows = {name: unpack_session(name, row) for name, row in now.hash("sessions").items()}
    assert rows.keys() == sessions.keys() == now.zset("changed").keys() == now.zset("lapses").keys()
    links = {commit: value.decode().split(":") for commit, value in now.hash("links").items()}
    for name, session in sessions.items():
        row = rows[name]
        assert (row.head, row.turns) == (session.head, len(session.commits)), f"{name} has the head {row.head}"
        assert len(row.skipped) == min(MAX_SKIPPED, len(session.skipped)), f"{name} tells of {row.skipped}"
        assert {*row.skipped} <= {*session.skipped}, f"{name} tells of {row.skipped}"
        # Of those that one sweep ended, only the script knows which came last.
        session.skipped[:] = row.skipped
        for parent, commit in zip(["", *session.commits], session.commits, strict=False):
            assert links[commit] == ["1", parent], f"{commit} of {name} is needed by and follows {links[commit]}"
    all_commits = {commit for session in sessions.values() for commit in session.commits}
    assert now.hash("turns").keys() == links.keys() == all_commits
