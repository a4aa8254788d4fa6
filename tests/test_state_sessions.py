"""Conversations in storage: whatever was committed last, a session's head has all its commits."""

from __future__ import annotations

import pytest

from headpond import session_operations as moves
from headpond.commits import unpack_commit, unpack_session
from headpond.errors import CommitGone
from headpond_workers.persistence import journal as journal_module
from headpond_workers.persistence.items import CommitItem, SessionItem
from headpond_workers.persistence.journal import Journal, drain
from headpond_workers.persistence.segments import StateStore
from headpond_workers.persistence.snapshots import make_snapshot
from headpond_workers.persistence.stored_sessions import StoredSessions
from memory_blobs import MemoryBlobs
from queue_bench import Bench
from session_turns import take_turn


def stored_sessions(store: StateStore) -> dict[str, list[str]]:
    """By session, ids of its commits from the first to the head. Fails the test if one is not in storage."""
    at = store.read_head()
    assert at is not None
    items = list(store.items(at.head))
    commits = {item.id: unpack_commit(item.id, item.document) for item in items if isinstance(item, CommitItem)}
    found = {}
    for item in items:
        if isinstance(item, SessionItem):
            chain, commit_id = [], unpack_session(item.id, item.row).head
            while commit_id:
                chain.append(commit_id)
                commit_id = commits[commit_id].parent
            found[item.id] = chain[::-1]
    return found


def test_a_conversation_is_read_from_storage_as_from_the_queue_before_a_snapshot_and_after(stored: Bench) -> None:
    blobs = MemoryBlobs()
    store, journal = StateStore(blobs, stored.queue.name), Journal(stored.queue)
    assert StoredSessions(store).session("s") is None
    store.create_head(lineage="L", writer="p")
    made = [take_turn(stored, f"chat/{n}").id for n in range(3)]
    while drain(journal, store, writer="p"):
        pass
    at = store.read_head()
    assert at is not None
    assert make_snapshot(store, at, writer="p").head.snapshot is not None
    made.append(take_turn(stored, "chat/3").id)
    while drain(journal, store, writer="p"):
        pass
    sessions = StoredSessions(store)
    assert sessions.session("s") == stored.queue.session("s")
    assert sessions.session("t") is None
    assert [commit.id for commit in sessions.chain("chat/s", made[3])] == made
    assert sessions.chain("chat/s", made[1]) == stored.queue.chain("chat/s", made[1])
    with pytest.raises(CommitGone, match=r"chat/s"):
        sessions.chain("chat/s", "0" * 64)


@pytest.mark.parametrize("entries", [1, 3, 1000])
def test_storage_has_no_head_without_its_commits(stored: Bench, monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    """entries: of a batch. The persister reads rows when later turns have moved the heads."""
    monkeypatch.setattr(journal_module, "BATCH_ENTRIES", entries)
    store, journal = StateStore(MemoryBlobs(), stored.queue.name), Journal(stored.queue)
    store.create_head(lineage="L", writer="p")
    made = [take_turn(stored, f"chat/{n}").id for n in range(4)]
    second = stored.queue.commit(made[1])
    assert second is not None
    stored.queue.run(moves.fork("s", second, name="f", settled=True))
    seen = []
    while drain(journal, store, writer="p"):
        seen.append(stored_sessions(store))
    assert stored_sessions(store) == {"s": made, "f": made[:2]}
    assert all(chain == made[: len(chain)] for sessions in seen for chain in sessions.values())
    stored.queue.run(moves.delete("s"))
    while drain(journal, store, writer="p"):
        pass
    assert stored_sessions(store) == {"f": made[:2]}
    at = store.read_head()
    assert at is not None
    assert {item.id for item in store.items(at.head) if isinstance(item, CommitItem)} == set(made[:2])
