"""What one commit takes from a real queue: entries with what they refer to, and tokens that storage does not have."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from headpond import JobState, upkeep
from headpond.errors import StorageUnavailable
from headpond.wire import TokenRun, unpack_run
from headpond_workers.persistence import journal as journal_module
from headpond_workers.persistence import journal_records, sampler
from headpond_workers.persistence.batch import Batch
from headpond_workers.persistence.items import JobItem
from headpond_workers.persistence.journal import Journal, drain
from headpond_workers.persistence.progress import Progress
from headpond_workers.persistence.records import BackRecord, DropRecord, EndRecord, SubmitRecord
from headpond_workers.persistence.segments import StateStore
from memory_blobs import Fault, FaultyBlobs, MemoryBlobs
from queue_bench import Bench, tokens
from stored_state import differences


@dataclass
class Persisting:
    """A queue with its storage, as one persister has them."""

    bench: Bench
    blobs: FaultyBlobs
    store: StateStore
    journal: Journal

    def drain(self) -> Batch | None:
        """Commit what is there; what was committed last."""
        before = self.store.read_head()
        while drain(self.journal, self.store, writer="p"):
            pass
        at = self.store.read_head()
        assert at is not None
        assert before is not None
        segments = list(self.store.segments(at.head, above=before.head.seq))[::-1]
        if not segments:
            return None
        return Batch(
            first=segments[0].first, last=segments[-1].last, inc=segments[-1].inc, as_of_ms=segments[-1].as_of_ms,
            records=tuple(record for segment in segments for record in segment.records),
            progress=tuple(progress for segment in segments for progress in segment.progress),
            fair=segments[-1].fair,
        )  # fmt: skip

    def restart(self) -> None:
        """Another process goes on: it remembers nothing."""
        self.journal = Journal(self.bench.queue)

    def progress(self) -> list[tuple[str, int, tuple[int, ...]]]:
        """Of a commit that is made now."""
        batch = self.drain()
        return [] if batch is None else [(p.id, p.offset, p.ids) for p in batch.progress]

    def job(self, job_id: str) -> JobItem:
        job = self.store.find_job(job_id)
        assert job is not None
        return job


@pytest.fixture
def kept(stored: Bench) -> Persisting:
    blobs = FaultyBlobs(MemoryBlobs())
    store = StateStore(blobs, stored.queue.name)
    store.create_head(lineage="L", writer="p")
    return Persisting(stored, blobs, store, Journal(stored.queue))


def test_a_job_is_stored_with_its_row_its_time_and_its_deadline(kept: Persisting) -> None:
    kept.bench.submit("chat/a", delay_s=5, deadline_s=60, tenant="t")
    kept.bench.submit("chat/b", tenant="t", cost=40)
    now_ms = kept.bench.clock.now_ms
    batch = kept.drain()
    assert batch is not None
    delayed, queued = batch.records
    assert isinstance(delayed, SubmitRecord)
    assert isinstance(queued, SubmitRecord)
    assert (delayed.due_ms, delayed.deadline_ms) == (now_ms + 5000, now_ms + 60_000)
    assert (queued.due_ms, queued.deadline_ms) == (0, 0)
    assert unpack_run(delayed.row).state is JobState.DELAYED
    assert unpack_run(queued.row) == kept.bench.row("chat/b")
    assert batch.as_of_ms == now_ms
    assert batch.fair is not None
    assert batch.fair["normal"].paid == {"t": 40.0}
    assert batch.progress == ()
    assert kept.drain() is None
    assert kept.bench.queue.journal_length() == 0


def test_only_new_tokens_of_a_running_job_are_stored(kept: Persisting) -> None:
    kept.bench.submit("chat/a", "chat/waits")
    lease = kept.bench.lease()
    assert kept.progress() == [("chat/a", 0, ())]
    assert kept.drain() is None
    kept.bench.append(lease, tokens(0, 3))
    assert kept.progress() == [("chat/a", 0, (0, 1, 2))]
    kept.bench.append(lease, tokens(3, 5))
    assert kept.progress() == [("chat/a", 3, (3, 4))]
    assert kept.drain() is None
    assert kept.job("chat/a").ids == (0, 1, 2, 3, 4)
    assert kept.job("chat/a").pieces == (" 0", " 1", " 2", " 3", " 4")
    assert unpack_run(kept.job("chat/a").row).offset == 5
    kept.bench.finish(lease, offset=5)
    batch = kept.drain()
    assert batch is not None
    assert batch.progress == ()
    (end,) = batch.records
    assert isinstance(end, EndRecord)
    assert unpack_run(end.row).state is JobState.FINISHED
    assert kept.job("chat/a").state is JobState.FINISHED
    assert differences(kept.bench.queue, kept.store) == []


def test_a_job_that_went_back_is_stored_with_its_last_tokens(kept: Persisting) -> None:
    kept.bench.submit("chat/a")
    lease = kept.bench.lease()
    kept.bench.append(lease, tokens(0, 3))
    kept.drain()
    kept.bench.append(lease, tokens(3, 5))
    kept.bench.queue.park([(lease.id, lease.fence)])
    batch = kept.drain()
    assert batch is not None
    assert [type(record) for record in batch.records] == [BackRecord]
    assert [(p.offset, p.ids) for p in batch.progress] == [(3, (3, 4))]
    assert differences(kept.bench.queue, kept.store) == []
    assert kept.drain() is None
    # It is leased again, by a worker that cannot go on: its tokens are void.
    again = kept.bench.lease("B", fingerprint="other")
    kept.bench.append(again, TokenRun(0, (9,), ("x",)))
    assert kept.progress() == [("chat/a", 0, (9,))]
    assert kept.job("chat/a").ids == (9,)


def test_tokens_that_became_void_are_void_in_storage_too(kept: Persisting) -> None:
    kept.bench.submit("chat/a")
    lease = kept.bench.lease()
    kept.bench.append(lease, tokens(0, 4))
    kept.drain()
    kept.bench.queue.park([(lease.id, lease.fence)])
    again = kept.bench.lease("B", fingerprint="other")
    kept.bench.append(again, TokenRun(0, (7, 8), ("x", "y")))
    # One commit covers the end of one lease and the begin of the next, in the memory of the first.
    assert kept.progress() == [("chat/a", 0, (7, 8))]
    assert kept.job("chat/a").ids == (7, 8)


def test_a_restarted_persister_stores_all_tokens_of_running_jobs_anew(kept: Persisting) -> None:
    kept.bench.submit("chat/a")
    lease = kept.bench.lease()
    kept.bench.append(lease, tokens(0, 3))
    kept.drain()
    kept.restart()
    kept.bench.append(lease, tokens(3, 4))
    assert kept.progress() == [("chat/a", 0, (0, 1, 2, 3))]
    assert kept.job("chat/a").ids == (0, 1, 2, 3)


@pytest.mark.parametrize("part", ["/segments/", "/head"])
@pytest.mark.parametrize("fault", list(Fault))
def test_tokens_of_a_commit_with_an_unknown_outcome_are_stored_once(kept: Persisting, fault: Fault, part: str) -> None:
    kept.bench.submit("chat/a")
    lease = kept.bench.lease()
    kept.bench.append(lease, tokens(0, 3))
    kept.drain()
    kept.bench.append(lease, tokens(3, 5))
    kept.blobs.fail_next_put(fault, key_part=part)
    with pytest.raises(StorageUnavailable):
        kept.drain()
    kept.bench.append(lease, tokens(5, 6))
    kept.drain()
    kept.blobs.release()
    assert kept.job("chat/a").ids == (0, 1, 2, 3, 4, 5)
    kept.bench.queue.park([(lease.id, lease.fence)])
    kept.drain()
    assert differences(kept.bench.queue, kept.store) == []


def test_two_persisters_that_take_turns_agree_on_the_tokens(kept: Persisting) -> None:
    other = Journal(kept.bench.queue)
    kept.bench.submit("chat/a", tenant="t", cost=7)
    lease = kept.bench.lease()
    fingerprints = ["f", "f", "other", "other", "f"]
    offset = 0
    for number, fingerprint in enumerate(fingerprints):
        for journal, writer in ((kept.journal, "p"), (other, "q"), (other, "q"), (kept.journal, "p")):
            kept.bench.append(lease, tokens(offset, offset + 2))
            offset += 2
            drain(journal, kept.store, writer=writer)
            assert kept.job("chat/a").ids == tuple(range(offset))
        kept.bench.queue.park([(lease.id, lease.fence)])
        lease = kept.bench.lease(str(number), fingerprint=fingerprint)
        offset = kept.bench.row("chat/a").offset
    at = kept.store.read_head()
    assert at is not None
    fair = kept.store.state(at.head).fair
    assert fair is not None
    assert fair["normal"].paid == {"t": 7.0}


def test_a_job_under_the_id_of_an_old_one_has_its_own_tokens_alone(kept: Persisting) -> None:
    kept.bench.submit("chat/a")
    lease = kept.bench.lease()
    kept.bench.append(lease, tokens(0, 5))
    kept.drain()
    kept.bench.finish(lease, offset=5)
    kept.drain()
    kept.bench.clock.move(1000)
    kept.bench.queue.tick()
    assert kept.bench.queue.ids() == []
    kept.bench.submit("chat/a", digest="another")
    again = kept.bench.lease("B")
    kept.bench.append(again, tokens(0, 2))
    assert kept.progress() == [("chat/a", 0, (0, 1))]
    assert kept.job("chat/a").ids == (0, 1)
    assert kept.job("chat/a").state is None


def test_a_raised_incarnation_has_all_tokens_stored_anew(kept: Persisting) -> None:
    kept.bench.submit("chat/a")
    lease = kept.bench.lease()
    kept.bench.append(lease, tokens(0, 3))
    kept.drain()
    inc = int(kept.bench.queue.meta()["inc"]) + 1000
    kept.bench.raw.hset(kept.bench.keys.named("meta"), "inc", str(inc))
    assert kept.progress() == [("chat/a", 0, (0, 1, 2))]
    at = kept.store.read_head()
    assert at is not None
    assert at.head.inc == inc


def test_long_streams_and_many_jobs_are_read_in_small_calls(kept: Persisting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "ENTRIES_A_CALL", 3)
    monkeypatch.setattr(sampler, "JOBS_A_CALL", 2)
    names = [f"chat/{n}" for n in range(5)]
    kept.bench.submit(*names)
    for length, lease in enumerate(kept.bench.claim(slots=5).leases):
        for at in range(length * 2):
            kept.bench.append(lease, tokens(at, at + 1))
    assert {name: len(ids) for name, _, ids in kept.progress()} == {f"chat/{n}": n * 2 for n in range(5)}


def test_a_long_journal_is_stored_in_stretches_that_say_up_to_when_they_go(
    kept: Persisting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "BATCH_ENTRIES", 4)
    begin_ms = kept.bench.clock.now_ms
    for n in range(10):
        kept.bench.clock.move(1)
        kept.bench.submit(f"chat/{n}")
    assert drain(kept.journal, kept.store, writer="p")
    at = kept.store.read_head()
    assert at is not None
    assert at.head.as_of_ms == begin_ms + 4000
    kept.drain()
    at = kept.store.read_head()
    assert at is not None
    assert at.head.as_of_ms == begin_ms + 10_000
    assert differences(kept.bench.queue, kept.store) == []


def test_large_requests_are_stored_in_stretches(kept: Persisting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_records, "MAX_BATCH_BYTES", 500)
    monkeypatch.setattr(journal_records, "ENTRIES_A_READ", 2)
    kept.bench.submit(*(f"chat/{n}" for n in range(9)))
    assert drain(kept.journal, kept.store, writer="p")
    assert 0 < kept.bench.queue.journal_length() < 9
    kept.drain()
    assert kept.bench.queue.journal_length() == 0
    assert differences(kept.bench.queue, kept.store) == []


def test_a_job_that_was_dropped_is_dropped_from_storage(kept: Persisting) -> None:
    kept.bench.submit("chat/a")
    for _ in range(3):
        lease = kept.bench.lease()
        kept.bench.queue.park([(lease.id, lease.fence)], strike=True)
    assert kept.bench.row("chat/a").state is JobState.DEAD
    assert kept.bench.queue.run(upkeep.drop_dead("chat/a")) is upkeep.DeadAnswer.UNCOMMITTED
    kept.drain()
    assert kept.job("chat/a").state is JobState.DEAD
    assert kept.bench.queue.run(upkeep.drop_dead("chat/a")) is upkeep.DeadAnswer.OK
    batch = kept.drain()
    assert batch is not None
    assert [type(record) for record in batch.records] == [DropRecord]
    assert kept.store.find_job("chat/a") is None
    assert kept.bench.queue.run(upkeep.drop_dead("chat/a")) is upkeep.DeadAnswer.GONE
    assert kept.drain() is None


def test_a_row_that_cannot_be_read_holds_up_no_other_job(kept: Persisting) -> None:
    kept.bench.submit("chat/a", "chat/b")
    for lease in kept.bench.claim(slots=2).leases:
        kept.bench.append(lease, tokens(0, 1))
        kept.bench.finish(lease, offset=1)
    kept.bench.raw.hset(kept.bench.keys.named("run"), "chat/a", b"no row")
    kept.drain()
    assert kept.job("chat/b").state is JobState.FINISHED
    assert kept.job("chat/a").state is None
    assert kept.bench.queue.journal_length() == 0


def test_a_stream_that_cannot_be_read_holds_up_no_other_job(kept: Persisting) -> None:
    kept.bench.submit("chat/a", "chat/b", "chat/c")
    for lease in kept.bench.claim(slots=3).leases:
        kept.bench.append(lease, tokens(0, 2))
    kept.bench.queue.cancel("chat/b")
    for name in ("chat/a", "chat/b"):
        kept.bench.raw.xadd(kept.bench.keys.events(name), {"t": b"no tokens"})
    kept.drain()
    assert kept.job("chat/c").ids == (0, 1)
    assert kept.job("chat/a").ids == ()
    assert kept.store.find_result("chat/b") == (JobState.CANCELLED, b"")


def test_progress_alone_keeps_the_watermark(kept: Persisting) -> None:
    kept.bench.submit("chat/a")
    lease = kept.bench.lease()
    kept.drain()
    before = kept.store.read_head()
    kept.bench.clock.move(1)
    kept.bench.append(lease, tokens(0, 1))
    batch = kept.drain()
    after = kept.store.read_head()
    assert before is not None
    assert after is not None
    assert batch is not None
    assert (batch.first, batch.last) == (None, None)
    assert isinstance(batch.progress[0], Progress)
    assert after.head.watermark == before.head.watermark
    assert after.head.seq == before.head.seq + 1
    assert after.head.as_of_ms == kept.bench.clock.now_ms
