"""What is removed of a model's state in storage: never what a head leads to, and in the end all else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chain_records import end, submit
from headpond.codec import pack_for_script
from headpond.errors import BlobCorrupt, CommitLost, HistoryTooShort, MalformedDocument
from headpond.jobs import JobState
from headpond.wire import Call, pack_data
from headpond_workers.persistence.batch import Batch
from headpond_workers.persistence.history import collect, is_clean, list_unsettled, raise_floor
from headpond_workers.persistence.items import CommitItem, JobItem, SessionItem
from headpond_workers.persistence.journal_id import JOURNAL_START, JournalId
from headpond_workers.persistence.records import DropRecord, Record
from headpond_workers.persistence.retention import StoragePolicy, storage_policy
from headpond_workers.persistence.segments import HeadAt, StateStore
from headpond_workers.persistence.snapshots import make_snapshot
from headpond_workers.storage.blobs import Blobs
from memory_blobs import MemoryBlobs
from stepped_blobs import Actor
from test_wire import ROW, pack_run

SECOND = 1000
GONE = "m/gone"
INC = 5


def begin(blobs: Blobs) -> HeadAt:
    return StateStore(blobs, "m").create_head(lineage="L", writer="a", inc=INC)


def commit(store: StateStore, at: HeadAt, *records: Record, as_of_s: int = 0) -> HeadAt:
    first, last = records[0].journal_id, records[-1].journal_id
    return store.commit(
        at, Batch(first=first, last=last, inc=INC, as_of_ms=as_of_s * SECOND, records=records), writer="a"
    )


def drop(seq: int, job: str) -> DropRecord:
    return DropRecord(JournalId(INC, seq), job)


def a_history(blobs: Blobs) -> HeadAt:
    """Three snapshots, a minute apart, and a segment after each."""
    store, at = StateStore(blobs, "m"), begin(blobs)
    for n in range(3):
        at = commit(store, at, submit(10 * n + 1, f"m/job-{n}"), as_of_s=60 * n + 1)
        at = commit(store, at, end(10 * n + 2, f"m/job-{n}"), as_of_s=60 * n + 2)
        at = make_snapshot(store, at, writer="a")
        at = commit(store, at, submit(10 * n + 3, f"m/more-{n}"), as_of_s=60 * n + 3)
    return at


def a_purge(blobs: Blobs) -> HeadAt:
    """A job in segments, snapshots and parts, that was then purged."""
    store, at = StateStore(blobs, "m"), begin(blobs)
    at = commit(store, at, submit(1, GONE), submit(2, "m/other"))
    at = make_snapshot(store, at, writer="a")
    at = commit(store, at, end(3, GONE))
    at = make_snapshot(store, at, writer="a")
    return commit(store, at, drop(4, GONE))


PURGED = JournalId(INC, 4)


def clean_round(blobs: Blobs) -> bool:
    """What the persister does after a purge. Returns whether storage is clean."""
    store = StateStore(blobs, "m")
    at = store.read_head()
    assert at is not None
    listed = list_unsettled(store)
    at = make_snapshot(store, at, writer="b")
    at = raise_floor(store, at, history_ms=3600 * SECOND, purged=PURGED, writer="b")
    collect(store, at, listed)
    return is_clean(store, at, PURGED)


def jobs(blobs: Blobs) -> list[str]:
    store = StateStore(blobs, "m")
    at = store.read_head()
    assert at is not None
    return [item.id for item in store.items(at.head)]


def holders(blobs: MemoryBlobs, text: str) -> list[str]:
    return [key for key, body in blobs.objects.items() if text.encode() in body]


def test_what_is_older_than_the_history_goes_and_every_later_moment_stays() -> None:
    blobs = MemoryBlobs()
    at = a_history(blobs)
    store = StateStore(blobs, "m")
    now = jobs(blobs)
    at = raise_floor(store, at, history_ms=70 * SECOND, writer="a")
    assert at.head.floor == 2
    collect(store, at, list_unsettled(store))
    assert sorted(key.rpartition("-")[2] for key in blobs.list_keys(store.keys.segments)) == [
        f"{n:010d}" for n in range(3, 10)
    ]
    assert jobs(blobs) == now
    for seconds, found in ((3, 2), (61, 3), (62, 3), (63, 4), (123, 6)):
        assert len(list(store.items(at.head, until_ms=seconds * SECOND))) == found
    with pytest.raises(HistoryTooShort):
        list(store.items(at.head, until_ms=1 * SECOND))
    assert collect(store, at, list_unsettled(store)) == 0


def test_one_snapshot_alone_is_not_cut_by_age_and_a_floor_never_falls() -> None:
    blobs = MemoryBlobs()
    store, at = StateStore(blobs, "m"), begin(blobs)
    at = commit(store, at, submit(1), as_of_s=1)
    at = make_snapshot(store, at, writer="a")
    at = commit(store, at, submit(2), as_of_s=1000)
    assert raise_floor(store, at, history_ms=0, writer="a").head.floor == 0
    at = raise_floor(store, make_snapshot(store, at, writer="a"), history_ms=0, writer="a")
    assert at.head.floor == 2
    assert raise_floor(store, at, history_ms=10**9, writer="a").head.floor == 2


def test_nothing_in_storage_holds_a_purged_job_and_the_others_are_there() -> None:
    blobs = MemoryBlobs()
    a_purge(blobs)
    assert len(holders(blobs, GONE)) >= 5
    assert clean_round(blobs)
    assert holders(blobs, GONE) == []
    assert jobs(blobs) == ["m/other"]


def test_a_snapshot_without_the_purge_cleans_nothing() -> None:
    blobs = MemoryBlobs()
    store, at = StateStore(blobs, "m"), begin(blobs)
    at = make_snapshot(store, commit(store, at, submit(1, GONE)), writer="a")
    at = raise_floor(store, at, history_ms=3600 * SECOND, purged=PURGED, writer="a")
    assert at.head.floor == 0
    assert not is_clean(store, at, PURGED)


def test_killed_before_any_call_the_state_is_whole_and_the_next_round_finishes() -> None:
    calls, ended = 0, False
    while not ended:
        blobs = MemoryBlobs()
        a_purge(blobs)
        first = Actor("first", blobs, clean_round)
        first.step(calls)
        ended = first.ended
        first.crash()
        assert jobs(blobs) == ["m/other"]
        assert clean_round(blobs)
        assert holders(blobs, GONE) == []
        assert jobs(blobs) == ["m/other"]
        assert len(list(blobs.list_keys("state/m/parts/"))) == 1
        calls += 1
    assert calls > 10


@pytest.mark.parametrize("other", ["snapshot", "round", "commit"])
def test_whoever_else_is_at_work_loses_or_counts_and_the_state_is_whole(other: str) -> None:
    def work(blobs: Blobs) -> object:
        store = StateStore(blobs, "m")
        at = store.read_head()
        assert at is not None
        if other == "commit":
            return commit(store, at, submit(9, "m/new"))
        return clean_round(blobs) if other == "round" else make_snapshot(store, at, writer="c")

    steps, ended = 0, False
    while not ended:
        blobs = MemoryBlobs()
        a_purge(blobs)
        slow = Actor("slow", blobs, work)
        slow.step(steps)
        ended = slow.ended
        mine = Actor("mine", blobs, clean_round)
        mine.finish()
        assert mine.error is None or isinstance(mine.error, CommitLost)
        slow.finish()
        assert slow.error is None or isinstance(slow.error, CommitLost | BlobCorrupt)
        for _ in range(2):
            assert "m/other" in jobs(blobs)
            assert clean_round(blobs)
        assert holders(blobs, GONE) == []
        assert set(jobs(blobs)) <= {"m/other", "m/new"}
        steps += 1
    assert steps > 2


def test_a_round_that_slept_before_it_deletes_takes_nothing_of_what_came_since() -> None:
    blobs = MemoryBlobs()
    a_purge(blobs)
    sleeper = Actor("sleeper", blobs, clean_round)
    sleeper.until("delete", "")
    store = StateStore(blobs, "m")
    for n in range(5):
        at = store.read_head()
        assert at is not None
        at = commit(store, at, submit(100 + n, f"m/later-{n}"), as_of_s=n)
        at = raise_floor(store, make_snapshot(store, at, writer="c"), history_ms=2 * SECOND, writer="c")
    before = jobs(blobs)
    sleeper.finish()
    assert jobs(blobs) == before
    assert [item.id for item in store.items(at.head, until_ms=3 * SECOND)]


def test_an_object_that_is_no_segment_is_left_alone() -> None:
    blobs = MemoryBlobs()
    a_purge(blobs)
    blobs.put_new("state/m/segments/notes.txt", b"somebody's")
    assert clean_round(blobs)
    assert blobs.get("state/m/segments/notes.txt").body == b"somebody's"


def job(*, ended_ms: int, tenant: str = "", state: JobState | None = JobState.FINISHED) -> JobItem:
    row = pack_run(replace(ROW, state=state or JobState.QUEUED, ended_ms=ended_ms))
    data = pack_data(Call("generate", (), {}, {}, 1), digest="d", tenant=tenant)
    return JobItem("m/a", data, row, state=state)


def test_an_ended_job_is_kept_for_its_tenants_time_and_what_goes_on_for_ever() -> None:
    policy = StoragePolicy(100, {"acme": 10, "keeper": 0})
    assert [policy.keeps(job(ended_ms=50), now_ms=now) for now in (149, 150)] == [True, False]
    assert [policy.keeps(job(ended_ms=50, tenant="acme"), now_ms=now) for now in (59, 60)] == [True, False]
    assert policy.keeps(job(ended_ms=50, tenant="keeper"), now_ms=10**12)
    assert policy.keeps(job(ended_ms=0, state=None), now_ms=10**12)
    assert policy.keeps(CommitItem("c", b""), now_ms=10**12)
    assert policy.keeps(SessionItem("s", b""), now_ms=10**12)
    assert StoragePolicy().keeps(job(ended_ms=50), now_ms=10**12)


@pytest.mark.parametrize("row", [b"", b"\xc1", pack_for_script([1, "finished"])])
def test_a_job_whose_end_cannot_be_read_is_kept(row: bytes) -> None:
    assert StoragePolicy(1).keeps(replace(job(ended_ms=1), row=row), now_ms=10**12)


def test_the_policy_is_what_the_queue_was_told() -> None:
    policy = storage_policy({"storage_retention_ms": "500"}, {"acme": "7000 30 50000", "forever": "1 0 0"})
    assert policy == StoragePolicy(500, {"acme": 30, "forever": 0})
    assert (policy.shortest_ms, StoragePolicy().shortest_ms) == (30, None)
    for times in ("", "1 2", "a b c", "1 x 3"):
        with pytest.raises(MalformedDocument):
            storage_policy({}, {"acme": times})


def test_what_retention_lets_go_is_in_no_later_snapshot_and_gone_with_the_history() -> None:
    blobs = MemoryBlobs()
    at = a_history(blobs)
    store = StateStore(blobs, "m")
    listed = list_unsettled(store)
    at = make_snapshot(store, at, writer="a", keep=lambda item: item.id != "m/job-0")
    assert "m/job-0" not in jobs(blobs)
    at = raise_floor(store, at, history_ms=0, purged=JOURNAL_START, writer="a")
    collect(store, at, listed)
    assert holders(blobs, "m/job-0") == []
    assert "m/job-1" in jobs(blobs)
