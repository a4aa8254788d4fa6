"""The chain of segments: commits, races, crashes and what a reader finds."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from chain_records import INC, commit, end, journal, submit
from headpond.errors import BlobChanged, CommitLost, MalformedDocument, StaleIncarnation, StorageUnavailable
from headpond.jobs import JobState
from headpond_workers.persistence import segment_cuts
from headpond_workers.persistence.batch import Batch
from headpond_workers.persistence.journal_id import JournalId
from headpond_workers.persistence.records import Record, SubmitRecord
from headpond_workers.persistence.segments import StateStore
from headpond_workers.storage.blobs import Blobs
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.settings import StorageAddress
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from memory_blobs import Fault, FaultyBlobs, MemoryBlobs


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as process:
        yield process


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.slow)])
def blobs(request: pytest.FixtureRequest) -> Blobs:
    if request.param == "memory":
        return MemoryBlobs()
    seaweed: SeaweedProcess = request.getfixturevalue("seaweed")
    return S3Blobs(
        StorageAddress(seaweed.url, seaweed.bucket, seaweed.region, seaweed.access_key, seaweed.secret_key, "the test")
    )


@pytest.fixture
def model() -> str:
    """A model that no other test uses."""
    return f"m{secrets.token_hex(6)}"


@pytest.fixture
def store(blobs: Blobs, model: str) -> StateStore:
    return StateStore(blobs, model)


def test_a_model_without_state_has_no_head_and_no_results(store: StateStore) -> None:
    assert store.read_head() is None
    assert store.find_result("m/a") is None
    assert store.find_data("m/a") is None


def test_a_new_head_begins_an_empty_chain_and_only_one_can(store: StateStore) -> None:
    at = store.create_head(lineage="line", writer="a")
    assert (at.head.epoch, at.head.seq, at.head.segment) == (1, 0, None)
    assert store.read_head() == at
    assert list(store.segments(at.head)) == []
    with pytest.raises(BlobChanged):
        store.create_head(lineage="other", writer="b")


def test_commits_form_a_chain_that_is_read_newest_first(store: StateStore) -> None:
    at = store.create_head(lineage="line", writer="a")
    for seq in (1, 2, 3):
        at = commit(store, at, submit(seq))
    assert store.read_head() == at
    assert (at.head.seq, at.head.epoch, str(at.head.watermark), at.head.inc) == (3, 1, "5-3", INC)
    chain = list(store.segments(at.head))
    assert [segment.seq for segment in chain] == [3, 2, 1]
    assert chain[0].prev == store.keys.segment(epoch=1, seq=2)
    assert journal(store) == [1, 2, 3]


def test_the_epoch_rises_with_the_writer_and_the_sequence_goes_on(store: StateStore) -> None:
    at = store.create_head(lineage="line", writer="a")
    at = commit(store, at, submit(1), writer="a")
    at = commit(store, at, submit(2), writer="b")
    at = commit(store, at, submit(3), writer="b")
    assert (at.head.epoch, at.head.seq, at.head.writer) == (2, 3, "b")
    assert [(s.epoch, s.seq) for s in store.segments(at.head)] == [(2, 3), (2, 2), (1, 1)]


def test_a_zombie_with_an_old_head_loses_and_the_chain_stays_whole(store: StateStore) -> None:
    old = store.create_head(lineage="line", writer="zombie")
    at = commit(store, old, submit(1), writer="new")
    for _ in range(3):
        with pytest.raises(CommitLost):
            commit(store, old, submit(1), submit(2), writer="zombie")
    assert store.read_head() == at
    at = commit(store, at, submit(2), writer="new")
    assert journal(store) == [1, 2]


def test_a_zombie_of_the_same_name_and_epoch_loses_too(store: StateStore) -> None:
    old = store.create_head(lineage="line", writer="a")
    commit(store, old, submit(1))
    with pytest.raises(CommitLost):
        commit(store, old, submit(1), submit(2))
    assert journal(store) == [1]


def test_of_writers_that_commit_at_once_one_wins_each_round(store: StateStore) -> None:
    store.create_head(lineage="line", writer="a")

    def write(writer: str) -> int:
        lost = 0
        while True:
            at = store.read_head()
            assert at is not None
            seq = at.head.watermark.seq + 1
            if seq > 12:
                return lost
            try:
                commit(store, at, submit(seq), writer=writer)
            except CommitLost:
                lost += 1

    with ThreadPoolExecutor(4) as pool:
        losses = list(pool.map(write, ["a", "b", "c", "d"]))
    assert journal(store) == list(range(1, 13))
    assert all(lost >= 0 for lost in losses)


def test_entries_that_come_again_after_a_lost_trim_are_left_out(store: StateStore) -> None:
    at = store.create_head(lineage="line", writer="a")
    at = commit(store, at, submit(1), submit(2))
    assert commit(store, at, submit(1), submit(2)) == at
    at = commit(store, at, submit(1), submit(2), submit(3))
    newest = next(store.segments(at.head))
    assert (str(newest.first), str(newest.last)) == ("5-3", "5-3")
    assert journal(store) == [1, 2, 3]


def test_a_leftover_segment_of_a_killed_commit_is_gone_around(blobs: Blobs, model: str) -> None:
    faulty = FaultyBlobs(blobs)
    store = StateStore(faulty, model)
    at = store.create_head(lineage="line", writer="a")
    at = commit(store, at, submit(1))
    for _ in range(5):
        faulty.fail_next_put(Fault.NEVER_STORED, key_part="/head")
        with pytest.raises(StorageUnavailable):
            commit(store, at, submit(2), submit(3))
    at = commit(store, at, submit(2))
    leftovers = {segment.seq: segment.records for segment in store.segments(at.head)}
    assert [record.journal_id.seq for record in leftovers[2]] == [2]
    assert at.head.epoch > 1
    commit(store, at, submit(3))
    assert journal(store) == [1, 2, 3]
    assert len(list(blobs.list_keys(f"state/{model}/segments/"))) == 3 + 5


def test_a_commit_whose_outcome_is_unknown_is_found_out_by_reading_the_head(blobs: Blobs, model: str) -> None:
    faulty = FaultyBlobs(blobs)
    store = StateStore(faulty, model)
    at = store.create_head(lineage="line", writer="a")
    faulty.fail_next_put(Fault.REPLY_LOST, key_part="/head")
    with pytest.raises(StorageUnavailable):
        commit(store, at, submit(1))
    found = store.read_head()
    assert found is not None
    assert str(found.head.watermark) == "5-1"
    commit(store, found, submit(1), submit(2))
    assert journal(store) == [1, 2]


def test_a_swap_that_arrives_late_either_wins_or_changes_nothing(blobs: Blobs, model: str) -> None:
    faulty = FaultyBlobs(blobs)
    store = StateStore(faulty, model)
    at = store.create_head(lineage="line", writer="a")
    faulty.fail_next_put(Fault.STORED_LATE, key_part="/head")
    with pytest.raises(StorageUnavailable):
        commit(store, at, submit(1))
    at = commit(store, at, submit(1), submit(2))
    faulty.release()
    assert store.read_head() == at
    faulty.fail_next_put(Fault.STORED_LATE, key_part="/head")
    with pytest.raises(StorageUnavailable):
        commit(store, at, submit(3))
    faulty.release()
    with pytest.raises(CommitLost):
        commit(store, at, submit(3))
    assert journal(store) == [1, 2, 3]


def test_a_redis_that_went_back_in_time_unnoticed_is_refused(store: StateStore) -> None:
    at = store.create_head(lineage="line", writer="a")
    at = commit(store, at, submit(7, inc=9), inc=9)
    with pytest.raises(StaleIncarnation) as caught:
        commit(store, at, submit(1, inc=8), inc=8)
    assert (caught.value.inc, caught.value.head_inc) == (8, 9)
    assert journal(store) == [7]


def test_a_raised_incarnation_is_kept_without_entries_and_its_ids_go_on_above(store: StateStore) -> None:
    at = store.create_head(lineage="line", writer="a")
    at = commit(store, at, submit(7))
    at = store.commit(at, Batch(first=None, last=None, inc=INC + 1), writer="b")
    assert (at.head.inc, at.head.epoch, at.head.seq) == (INC + 1, 2, 1)
    assert store.read_head() == at
    at = commit(store, at, submit(1, inc=INC + 1), inc=INC + 1, writer="b")
    assert journal(store) == [7, 1]


def test_records_out_of_order_are_refused_and_nothing_is_written(store: StateStore, blobs: Blobs, model: str) -> None:
    at = store.create_head(lineage="line", writer="a")
    batches: list[list[Record]] = [[submit(3), submit(2)], [submit(2), submit(2)], [submit(4)], [submit(0)]]
    for batch in batches:
        with pytest.raises(MalformedDocument, match="not in order from 5-1 to 5-3"):
            Batch(first=JournalId(INC, 1), last=JournalId(INC, 3), inc=INC, records=tuple(batch))
    with pytest.raises(MalformedDocument):  # an entry of an incarnation that is yet to come
        commit(store, at, submit(1, inc=INC + 1), inc=INC)
    assert list(blobs.list_keys(f"state/{model}/")) == [store.head_key]


def test_a_long_batch_becomes_several_segments(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_cuts, "SEGMENT_TARGET_RECORDS", 4)
    at = store.create_head(lineage="line", writer="a")
    at = commit(store, at, *(submit(seq) for seq in range(1, 11)))
    assert [(str(s.first), str(s.last)) for s in store.segments(at.head)] == [
        ("5-9", "5-10"),
        ("5-5", "5-8"),
        ("5-1", "5-4"),
    ]
    assert journal(store) == list(range(1, 11))


def test_large_records_are_divided_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_cuts, "SEGMENT_TARGET_BYTES", 1000)
    store = StateStore(MemoryBlobs(), "chat")
    at = store.create_head(lineage="line", writer="a")
    sizes = [5000, 10, 10, 800, 800]
    records = [SubmitRecord(JournalId(INC, n), "chat/x", bytes(size)) for n, size in enumerate(sizes, 1)]
    at = commit(store, at, *records)
    assert [len(segment.records) for segment in store.segments(at.head)] == [1, 1, 2, 1]


def test_a_result_is_found_through_fifty_segments(store: StateStore) -> None:
    at = store.create_head(lineage="line", writer="a")
    at = commit(store, at, submit(1, "m/old"), end(2, "m/old", state=JobState.FAILED))
    at = commit(store, at, submit(3, "m/open"))
    for seq in range(4, 52):
        at = commit(store, at, submit(seq))
    seen: list[tuple[int, int]] = []
    found = store.find_result("m/old", on_read=lambda read, of: seen.append((read, of)))
    assert found == (JobState.FAILED, b"result of m/old")
    assert seen == [(read, 50) for read in range(1, 51)]
    assert store.find_data("m/old") == b"request of m/old"
    assert store.find_result("m/open") is None
    assert store.find_data("m/open") == b"request of m/open"
    assert store.find_result("m/never") is None


def test_the_newest_record_of_an_id_speaks_for_it(store: StateStore) -> None:
    at = store.create_head(lineage="line", writer="a")
    at = commit(store, at, submit(1, "m/a"), end(2, "m/a", state=JobState.EXPIRED))
    at = commit(store, at, submit(3, "m/a"))
    assert store.find_result("m/a") is None
    commit(store, at, end(4, "m/a", state=JobState.CANCELLED))
    assert store.find_result("m/a") == (JobState.CANCELLED, b"result of m/a")


KILLED_COMMIT = """
import os, signal, sys
from headpond_workers.persistence.batch import Batch
from headpond_workers.persistence.journal_id import JournalId
from headpond_workers.persistence.records import SubmitRecord
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.persistence.segments import StateStore
from headpond_workers.storage.settings import StorageAddress

url, bucket, model, where = sys.argv[1:]
address = StorageAddress(url, bucket, "us-east-1", os.environ["S3_KEY"], os.environ["S3_SECRET"])

class Killed(S3Blobs):
    def put_new(self, key, body):
        etag = super().put_new(key, body)
        if where == "after-segment":
            os.kill(os.getpid(), signal.SIGKILL)
        return etag

    def put_if(self, key, body, *, etag):
        etag = super().put_if(key, body, etag=etag)
        if where == "after-head":
            os.kill(os.getpid(), signal.SIGKILL)
        return etag

store = StateStore(Killed(address), model)
at = store.read_head()
record = SubmitRecord(JournalId(5, 2), "m/job-2", b"request of m/job-2")
batch = Batch(first=record.journal_id, last=record.journal_id, inc=5, records=(record,))
store.commit(at, batch, writer="a")
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["after-segment", "after-head"])
def test_a_persister_killed_amid_a_commit_loses_and_doubles_nothing(
    seaweed: SeaweedProcess, model: str, where: str
) -> None:
    address = StorageAddress(
        seaweed.url, seaweed.bucket, seaweed.region, seaweed.access_key, seaweed.secret_key, "the test"
    )
    store = StateStore(S3Blobs(address), model)
    commit(store, store.create_head(lineage="line", writer="a"), submit(1))
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED_COMMIT), seaweed.url, seaweed.bucket, model, where],
        env={"S3_KEY": seaweed.access_key, "S3_SECRET": seaweed.secret_key},
        timeout=60,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert journal(store) == ([1] if where == "after-segment" else [1, 2])
    at = store.read_head()
    assert at is not None
    commit(store, at, submit(2), submit(3))
    assert journal(store) == [1, 2, 3]
