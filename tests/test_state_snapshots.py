"""Snapshots: what they use again, what they leave out, what cuts them off, and what a reader finds without the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from chain_records import batch, commit, end, submit
from headpond.errors import BlobCorrupt, CommitLost, HistoryTooShort, StorageUnavailable
from headpond.jobs import JobState
from headpond_workers.persistence import snapshots
from headpond_workers.persistence.documents import Head
from headpond_workers.persistence.items import Item, JobItem
from headpond_workers.persistence.segments import HeadAt, StateStore
from headpond_workers.persistence.snapshots import is_due, make_snapshot
from headpond_workers.storage.blobs import Blob
from memory_blobs import Fault, FaultyBlobs, MemoryBlobs
from stepped_blobs import Actor


class CountedBlobs(MemoryBlobs):
    """Notes which keys are read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[str] = []

    def get(self, key: str, *, max_bytes: int = 64 << 20) -> Blob:
        self.read.append(key)
        return super().get(key, max_bytes=max_bytes)


@pytest.fixture
def memory() -> CountedBlobs:
    return CountedBlobs()


@pytest.fixture
def store(memory: CountedBlobs) -> StateStore:
    return StateStore(memory, "chat")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of about ten jobs."""
    monkeypatch.setattr(snapshots, "PART_TARGET_BYTES", 1400)


def begin(store: StateStore) -> HeadAt:
    return store.create_head(lineage="line", writer="a")


def jobs(store: StateStore, at: HeadAt, first: int, last: int) -> HeadAt:
    return commit(store, at, *(submit(seq, f"m/job-{seq:04d}") for seq in range(first, last + 1)))


def ids(store: StateStore) -> list[str]:
    return [item.id for item in store.items(head(store))]


def head(store: StateStore) -> Head:
    at = store.read_head()
    assert at is not None
    return at.head


def parts(store: StateStore) -> list[str]:
    snapshot = store.snapshot(head(store))
    assert snapshot is not None
    return [ref.key for ref in snapshot.parts]


def ended(item: Item) -> bool:
    return cast("JobItem", item).state is not None


def test_a_chain_without_segments_has_no_snapshot(store: StateStore) -> None:
    at = begin(store)
    assert make_snapshot(store, at, writer="a") == at


@pytest.mark.usefixtures("small_parts")
def test_parts_that_nothing_touches_are_used_again_and_not_even_read(store: StateStore, memory: CountedBlobs) -> None:
    at = make_snapshot(store, jobs(store, begin(store), 1, 50), writer="a")
    first = parts(store)
    assert len(first) >= 4
    at = commit(store, at, end(51, "m/job-0001"))
    at = jobs(store, at, 52, 53)
    memory.read.clear()
    make_snapshot(store, at, writer="a")
    assert [key for key in memory.read if "/parts/" in key] == [first[0], first[-1]]
    assert set(first) - set(parts(store)) == {first[0], first[-1]}
    assert len(ids(store)) == 52


@pytest.mark.usefixtures("small_parts")
def test_one_part_is_in_memory_at_a_time(store: StateStore, memory: CountedBlobs) -> None:
    make_snapshot(store, jobs(store, begin(store), 1, 50), writer="a")
    memory.read.clear()
    items = store.items(head(store))
    seen: list[int] = []
    for _ in items:
        seen.append(sum("/parts/" in key for key in memory.read))
    assert seen[0] == 1
    assert seen == sorted(seen)
    assert seen[-1] == len(parts(store)) >= 4


@pytest.mark.usefixtures("small_parts")
def test_what_retention_lets_go_is_in_no_part_and_what_is_left_of_small_parts_is_joined(store: StateStore) -> None:
    at = make_snapshot(store, jobs(store, begin(store), 1, 50), writer="a")
    before = parts(store)
    ends = [end(100 + n, f"m/job-{n:04d}") for n in range(1, 51) if n not in (7, 23, 24, 49)]
    at = commit(store, at, *ends)
    make_snapshot(store, at, writer="a", keep=lambda item: not ended(item))
    assert ids(store) == ["m/job-0007", "m/job-0023", "m/job-0024", "m/job-0049"]
    assert len(parts(store)) == 1
    assert not set(parts(store)) & set(before)
    assert store.find_job("m/job-0001") is None
    assert store.find_data("m/job-0007") == b"request of m/job-0007"


@pytest.mark.usefixtures("small_parts")
def test_retention_is_looked_at_in_parts_that_nothing_else_touches(store: StateStore) -> None:
    at = jobs(store, begin(store), 1, 50)
    at = commit(store, at, end(51, "m/job-0030"))
    at = make_snapshot(store, at, writer="a")
    before = parts(store)
    at = jobs(store, at, 52, 52)
    make_snapshot(store, at, writer="a", keep=lambda item: not ended(item))
    assert "m/job-0030" not in ids(store)
    assert len(ids(store)) == 50
    assert set(before) & set(parts(store))


def test_a_snapshot_that_was_cut_off_is_made_again_beside_its_leftovers(memory: CountedBlobs) -> None:
    faulty = FaultyBlobs(memory)
    store = StateStore(faulty, "chat")
    at = jobs(store, begin(store), 1, 5)
    for part in ("/parts/", "/snapshots/", "/head", "/head"):
        faulty.fail_next_put(Fault.NEVER_STORED, key_part=part)
        with pytest.raises(StorageUnavailable):
            make_snapshot(store, at, writer="a")
        assert head(store).snapshot is None
        assert len(ids(store)) == 5
    made = make_snapshot(store, at, writer="a")
    assert (made.head.snapshot_seq, made.head.above_bytes) == (1, 0)
    assert made.head.snapshot_bytes > 0
    assert len(ids(store)) == 5
    assert len(list(memory.list_keys("state/chat/snapshots/"))) == 3


def test_commits_go_on_while_a_snapshot_is_made(memory: CountedBlobs, store: StateStore) -> None:
    at = jobs(store, begin(store), 1, 5)
    maker = Actor("maker", memory, lambda blobs: make_snapshot(StateStore(blobs, "chat"), at, writer="a"))
    maker.until("put_if", "/head")
    later = jobs(store, at, 6, 7)
    maker.finish()
    assert maker.error is None
    found = head(store)
    assert (found.seq, found.snapshot_seq, found.watermark) == (2, 1, later.head.watermark)
    assert found.above_bytes == later.head.above_bytes - at.head.above_bytes
    assert len(ids(store)) == 7


def test_of_two_snapshots_at_once_one_counts(memory: CountedBlobs, store: StateStore) -> None:
    at = jobs(store, begin(store), 1, 5)
    late = Actor("late", memory, lambda blobs: make_snapshot(StateStore(blobs, "chat"), at, writer="b"))
    late.until("put_if", "/head")
    made = make_snapshot(store, at, writer="a")
    late.finish()
    assert isinstance(late.error, CommitLost)
    assert head(store) == made.head
    assert len(ids(store)) == 5


def test_a_snapshot_of_an_older_moment_undoes_what_came_later_and_the_chain_goes_on(store: StateStore) -> None:
    at = begin(store)
    for seq in range(1, 6):
        at = store.commit(at, replace(batch(submit(seq)), as_of_ms=seq * 100), writer="a")
        if seq == 3:
            at = make_snapshot(store, at, writer="a")
    at = make_snapshot(store, at, writer="restore", until_ms=250)
    assert [item.id for item in store.items(at.head)] == ["m/job-1", "m/job-2"]
    assert (at.head.seq, at.head.snapshot_seq, at.head.epoch, at.head.as_of_ms) == (5, 5, 2, 500)
    assert store.find_job("m/job-4") is None
    at = store.commit(at, replace(batch(submit(6)), as_of_ms=600), writer="a")
    assert [item.id for item in store.items(at.head)] == ["m/job-1", "m/job-2", "m/job-6"]
    # What was undone is history, and can be had back.
    assert [item.id for item in store.items(at.head, until_ms=450)] == [f"m/job-{n}" for n in range(1, 5)]
    again = make_snapshot(store, make_snapshot(store, at, writer="a"), writer="restore", until_ms=350)
    assert [item.id for item in store.items(again.head)] == [f"m/job-{n}" for n in range(1, 4)]


def test_a_chain_that_ends_at_the_floor_is_whole_above_it(memory: CountedBlobs, store: StateStore) -> None:
    at = begin(store)
    for seq in range(1, 7):
        at = store.commit(at, replace(batch(submit(seq)), as_of_ms=seq * 100), writer="a")
        if seq in (2, 4):
            at = make_snapshot(store, at, writer="a")
    at = store.swap(at, replace(at.head, floor=4), writer="a")
    for seq in range(1, 5):
        memory.delete(store.keys.segment(epoch=1, seq=seq))
    memory.delete(store.keys.snapshot(epoch=1, seq=2))
    assert ids(store) == [f"m/job-{n}" for n in range(1, 7)]
    assert [segment.seq for segment in store.segments(at.head)] == [6, 5]
    assert [item.id for item in store.items(at.head, until_ms=400)] == [f"m/job-{n}" for n in range(1, 5)]
    with pytest.raises(HistoryTooShort) as caught:
        list(store.items(at.head, until_ms=399))
    assert caught.value.oldest_ms == 400
    changed = list(store.changed_after(at.head, submit(5).journal_id))
    assert [item.id for item in changed] == ["m/job-6"]
    # Of a stretch that is kept no more, anything may have changed.
    assert len(list(store.changed_after(at.head, submit(2).journal_id))) == 6
    memory.delete(store.keys.segment(epoch=1, seq=5))
    with pytest.raises(BlobCorrupt, match="it is gone"):
        ids(store)


@pytest.mark.parametrize("what", ["snapshots", "parts"])
@pytest.mark.parametrize("damage", ["gone", "cut", "flipped", "another"])
def test_a_damaged_snapshot_or_part_is_refused_with_its_key(
    memory: CountedBlobs, store: StateStore, what: str, damage: str
) -> None:
    at = make_snapshot(store, jobs(store, begin(store), 1, 5), writer="a")
    make_snapshot(store, jobs(store, at, 6, 6), writer="a")
    key = (head(store).snapshot or "") if what == "snapshots" else parts(store)[0]
    other = next(found for found in memory.list_keys(f"state/chat/{what}/") if found != key)
    body = memory.objects[key]
    if damage == "gone":
        memory.delete(key)
    else:
        changed = {"cut": body[:-1], "flipped": body[:50] + bytes([body[50] ^ 1]) + body[51:], "another": b""}
        memory.objects[key] = changed[damage] or memory.objects[other]
    for read in (lambda: ids(store), lambda: store.find_job("m/job-0001")):
        with pytest.raises(BlobCorrupt) as caught:
            read()
        assert caught.value.key == key


@pytest.mark.parametrize("key", ["state/other/snapshots/0000000001-0000000001", "state/chat/head", "../x"])
def test_a_head_that_leads_to_a_snapshot_of_another_model_is_refused(
    memory: CountedBlobs, store: StateStore, key: str
) -> None:
    at = make_snapshot(store, jobs(store, begin(store), 1, 5), writer="a")
    memory.objects[store.head_key] = replace(at.head, snapshot=key).pack()
    with pytest.raises(BlobCorrupt, match="is no snapshot of 'chat'"):
        store.read_head()


def test_a_snapshot_is_due_after_many_segments_or_bytes_and_a_large_one_later(store: StateStore) -> None:
    plain = replace(begin(store).head, seq=63, segment=store.keys.segment(epoch=1, seq=63))
    mib = 1 << 20
    assert not is_due(plain)
    assert is_due(replace(plain, seq=64))
    assert is_due(replace(plain, above_bytes=16 * mib))
    large = replace(plain, snapshot="s", snapshot_seq=1, snapshot_bytes=300 * mib)
    assert not is_due(replace(large, seq=512))
    assert is_due(replace(large, seq=513))
    assert not is_due(replace(large, above_bytes=17 * mib))
    assert is_due(replace(large, above_bytes=20 * mib))
    assert is_due(replace(large, snapshot_bytes=3000 * mib, above_bytes=64 * mib))


def test_an_end_without_what_was_asked_is_kept_for_its_result(store: StateStore) -> None:
    at = commit(store, begin(store), end(1, "m/lost", state=JobState.FAILED))
    make_snapshot(store, at, writer="a")
    assert store.find_result("m/lost") == (JobState.FAILED, b"result of m/lost")
    assert store.find_data("m/lost") is None
