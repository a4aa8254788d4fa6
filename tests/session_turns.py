"""What tests of sessions share: turns as a worker makes them, on a bench."""

from __future__ import annotations

from headpond import JobState
from headpond import operations as ops
from headpond.commits import Commit, pack_commit, size_of
from headpond.jobs import FinishReason, Usage
from headpond.operations import Lease
from headpond.requests import Message
from headpond.session_operations import TurnEnd
from headpond.turns import Policy
from queue_bench import Bench


def turn_of(
    bench: Bench,
    lease: Lease,
    *,
    session: str = "s",
    version: str = "v1",
    policy: Policy = Policy.MIGRATE,
    head: str | None = None,
    parent: str | None = None,
) -> TurnEnd:
    """A turn on the head that the session has, or on `head`. parent: of the commit; default: the head."""
    row = bench.queue.session(session)
    head = (row.head if row else "") if head is None else head
    parent = head if parent is None else parent
    before = bench.queue.commit(parent) if parent else None
    messages = (Message(role="user", content=lease.id), Message(role="assistant", content=f"to {lease.id}"))
    commit = Commit(
        "", parent, session, lease.id, messages, FinishReason.STOP, "chat", version, f"fingerprint-{version}",
        Usage(1, 1), 1, before.turns + 1 if before else 1, size_of(messages) + (before.size if before else 0), policy,
    )  # fmt: skip
    commit_id, document = pack_commit(commit)
    return TurnEnd(_named(commit, commit_id), document, head, row.skipped if row else ())


def _named(commit: Commit, commit_id: str) -> Commit:
    fields = {name: getattr(commit, name) for name in Commit.__slots__}
    return Commit(**fields | {"id": commit_id})


def end_turn(bench: Bench, lease: Lease, turn: TurnEnd, *, offset: int = 0) -> ops.Outcome:
    return bench.queue.finish(
        lease.id, lease.fence, offset=offset, state=JobState.FINISHED, result=b"r", turn=turn.words()
    )


def take_turn(bench: Bench, job_id: str, *, session: str = "s", version: str = "v1") -> Commit:
    """Submit, claim and end one turn."""
    bench.submit(job_id, session=session)
    lease = bench.lease(version=version, fingerprint=f"fingerprint-{version}")
    assert lease.id == job_id
    turn = turn_of(bench, lease, session=session, version=version)
    assert end_turn(bench, lease, turn).status is ops.LeaseStatus.DONE
    return turn.commit
