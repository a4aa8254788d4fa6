"""Q10, Q11: how jobs end, how long they are kept, and what their readers are told."""

from __future__ import annotations

import threading

import pytest

from conftest import eventually
from headpond import Client, JobState, upkeep
from headpond import operations as ops
from headpond.errors import JobCancelled, JobGone
from headpond.jobs import Result
from headpond.operations import LeaseStatus, Submitted
from headpond.results import build_result
from headpond.wire import (
    Ended,
)
from headpond_workers.supervision.embedded_valkey import ValkeyProcess
from queue_bench import RETENTION_S, Bench, lease_key, tokens


def test_a_finish_with_a_wrong_offset_is_a_gap_and_a_repeat_is_done(bench: Bench) -> None:
    bench.submit("chat/a")
    lease = bench.lease()
    bench.append(lease, tokens(0, 3))
    for wrong in (2, 4, 0):
        state = bench.dump()
        assert bench.finish(lease, offset=wrong) == ops.Outcome(LeaseStatus.GAP, 3)
        assert bench.dump() == state
    assert bench.finish(lease, offset=3) == ops.Outcome(LeaseStatus.DONE, 3)
    assert bench.finish(lease, offset=3) == ops.Outcome(LeaseStatus.DONE, 3)
    assert [event for _, event in bench.events("chat/a")][-1] == Ended(JobState.FINISHED, 3)
    assert bench.append(lease, tokens(3, 4)).status is LeaseStatus.FENCED
    assert bench.queue.depths().running == 0


def test_the_end_of_a_job_is_written_at_once(stored: Bench) -> None:
    stored.submit("chat/a")
    lease = stored.lease()
    stored.append(lease, tokens(0, 2))
    stored.queue.finish(lease.id, lease.fence, offset=2, state=JobState.FINISHED, result=b"the answer")
    row = stored.row("chat/a")
    assert (row.state, row.ended_ms, row.durable) == (JobState.FINISHED, stored.clock.now_ms, False)
    assert stored.queue.result("chat/a") == b"the answer"
    assert [(e.kind, e.job_id) for e in stored.queue.journal(limit=9)] == [("submit", "chat/a"), ("end", "chat/a")]
    assert stored.server.read("EXISTS", stored.keys.named("leases")) == 0


@pytest.mark.parametrize("how", ["cancelled", "expired"])
def test_a_running_job_that_is_ended_by_others_stays_ended(bench: Bench, how: str) -> None:
    bench.submit("chat/a", deadline_s=5)
    lease = bench.lease()
    bench.append(lease, tokens(0, 3))
    if how == "cancelled":
        assert bench.queue.cancel("chat/a") is JobState.CANCELLED
    else:
        bench.clock.move(5)
        bench.queue.tick()
    ended = bench.events("chat/a")
    assert ended[-1][1] == Ended(JobState(how), 3)
    status = LeaseStatus(how)
    assert bench.finish(lease, offset=3) == ops.Outcome(status, 3)
    assert bench.append(lease, tokens(3, 4)) == ops.Outcome(status, 3)
    assert bench.queue.park([(lease.id, lease.fence)], strike=False) == [status]
    assert bench.renew("A", lease) == [status]
    for _ in range(5):
        bench.clock.move(4)
        bench.queue.tick()
    assert bench.events("chat/a") == ended
    assert bench.row("chat/a").state is JobState(how)
    assert bench.claim().leases == ()


def test_a_cancelled_job_never_runs_and_an_ended_one_keeps_its_end(bench: Bench) -> None:
    bench.submit("chat/queued")
    bench.submit("chat/delayed", delay_s=2)
    assert bench.queue.cancel("chat/queued") is JobState.CANCELLED
    assert bench.queue.cancel("chat/delayed") is JobState.CANCELLED
    bench.clock.move(3)
    assert bench.claim(slots=4).leases == ()
    bench.submit("chat/done")
    bench.finish(bench.lease(), offset=0)
    assert bench.queue.cancel("chat/done") is JobState.FINISHED


def test_a_journal_is_written_only_with_storage(bench: Bench, stored: Bench) -> None:
    for b in (bench, stored):
        b.submit("chat/a", "chat/b", "chat/c")
        b.submit("chat/d", deadline_s=1)
        b.submit("chat/a")
        done, failed, *_ = b.claim(slots=3).leases
        b.finish(done, offset=0)
        b.finish(failed, offset=0, state=JobState.FAILED)
        b.queue.cancel("chat/c")
        b.clock.move(1)
        b.queue.tick()
    assert bench.queue.journal_length() == 0
    entries = stored.queue.journal(limit=100)
    assert sorted((e.kind, e.job_id) for e in entries) == sorted(
        (kind, f"chat/{name}") for kind in ("submit", "end") for name in "abcd"
    )
    inc = stored.queue.meta()["inc"]
    assert [e.journal_id for e in entries] == [f"{inc}-{n}" for n in range(1, 9)]


def held_of(bench: Bench, job_id: str) -> list[bool]:
    """Whether there is still something in data, run, result and events."""
    return [
        bench.queue.data(job_id) is not None,
        bench.queue.run_row(job_id) is not None,
        bench.queue.result(job_id) is not None,
        bool(bench.queue.events(job_id)),
    ]


def test_an_ended_job_is_dropped_whole_after_its_retention(bench: Bench) -> None:
    bench.submit("chat/a", "chat/b")
    lease, other = bench.claim(slots=2).leases
    bench.append(lease, tokens(0, 2))
    bench.queue.finish(lease.id, lease.fence, offset=2, state=JobState.FINISHED, result=b"r")
    bench.clock.move(RETENTION_S - 0.001)
    bench.queue.tick()
    assert held_of(bench, "chat/a") == [True] * 4
    bench.clock.move(0.001)
    bench.queue.tick()
    assert held_of(bench, "chat/a") == [False] * 4
    assert bench.queue.ids() == [other.id]
    assert bench.server.read("ZCARD", bench.keys.named("ended")) == 0
    # Idempotency holds within the retention.
    assert bench.submit("chat/a", digest="other") == [Submitted.NEW]


def test_a_stream_is_dropped_before_its_job_only_where_a_result_stands_for_it(bench: Bench) -> None:
    bench.register("A", stream_retention_s=10.0)
    bench.submit("chat/result", "chat/none", "chat/cancelled")
    for lease in bench.claim(slots=3).leases:
        bench.append(lease, tokens(0, 3))
        document = b"r" if lease.id == "chat/result" else b""
        if lease.id == "chat/cancelled":
            bench.queue.cancel(lease.id)
        else:
            bench.queue.finish(lease.id, lease.fence, offset=3, state=JobState.FINISHED, result=document)
    names = ("result", "none", "cancelled")
    for seconds, kept in [(9.999, [True, True, True]), (0.001, [False, True, True])]:
        bench.clock.move(seconds)
        bench.queue.tick()
        assert [bool(bench.queue.events(f"chat/{name}")) for name in names] == kept
    assert held_of(bench, "chat/result") == [True, True, True, False]
    bench.clock.move(RETENTION_S)
    bench.queue.tick()
    assert bench.queue.ids() == []
    assert bench.raw.zcard(bench.keys.named("streams")) == 0


def test_with_storage_only_a_commit_lets_a_job_expire(stored: Bench) -> None:
    stored.submit("chat/a", "chat/b")
    lease, _ = stored.claim(slots=2).leases
    stored.finish(lease, offset=0)
    stored.clock.move(RETENTION_S * 2)
    stored.queue.tick()
    assert stored.row("chat/a").state is JobState.FINISHED
    inc = int(stored.queue.meta()["inc"])
    entries = stored.queue.journal(limit=10)
    through = entries[-1].journal_id
    assert not stored.queue.run(upkeep.trim(inc=inc - 1, through=through, ended=["chat/a"]))
    assert stored.queue.journal_length() == len(entries)
    # chat/b has not ended: naming it may not drop it.
    assert stored.queue.run(
        upkeep.trim(inc=inc, through=entries[1].journal_id, ended=["chat/a", "chat/b", "chat/none"])
    )
    assert [e.journal_id for e in stored.queue.journal(limit=10)] == [e.journal_id for e in entries[2:]]
    assert stored.row("chat/a").durable
    assert not stored.row("chat/b").durable
    stored.clock.move(RETENTION_S)
    stored.queue.tick()
    assert stored.queue.run_row("chat/a") is None
    assert stored.queue.run_row("chat/b") is not None


def test_the_third_strike_in_a_row_quarantines(bench: Bench) -> None:
    bench.submit("chat/a")
    for n in range(3):
        lease = bench.lease(f"boot{n}")
        bench.append(lease, tokens(lease.offset, lease.offset + 1))
        bench.queue.park([lease_key(lease)], strike=True, reason=f"out of memory {n}")
    row = bench.row("chat/a")
    assert (row.state, row.attempt, row.strikes) == (JobState.DEAD, 3, 3)
    assert row.reason == "3 leases in a row ended without progress; the last: out of memory 2"
    assert bench.claim().leases == ()
    assert bench.queue.depths().dead == 1
    assert bench.queue.dead() == [("chat/a", bench.clock.now_ms)]
    assert bench.events("chat/a")[-1][1] == Ended(JobState.DEAD, 3)
    assert [(a.attempt, a.boot, a.how, a.reason) for a in bench.queue.attempts("chat/a")] == [
        (n + 1, f"boot{n}", "failed", f"out of memory {n}") for n in range(3)
    ]


def test_a_job_that_ends_its_leases_by_faults_too_often_is_quarantined_in_spite_of_progress(bench: Bench) -> None:
    bench.submit("chat/a")
    for n in range(30):
        # What is nobody's fault counts for nothing.
        lease = bench.lease()
        bench.queue.park([lease_key(lease)])
        if n < 25:
            lease = bench.lease()
            assert bench.row("chat/a").state is JobState.RUNNING
            bench.append(lease, tokens(lease.offset, lease.offset + 8))
            bench.queue.park([lease_key(lease)], strike=True, reason="crash")
        if bench.row("chat/a").state.ended:
            break
    row = bench.row("chat/a")
    assert (row.state, row.faults, row.strikes, row.attempt) == (JobState.DEAD, 25, 0, 50)
    assert row.reason == "25 leases ended by a fault; the last: crash"


def test_a_result_without_a_document_is_folded_from_the_stream(bench: Bench) -> None:
    bench.submit("chat/a")
    bench.clock.move(2)
    lease = bench.lease()
    bench.append(lease, tokens(0, 3))
    bench.clock.move(1.5)
    bench.queue.cancel("chat/a")
    result = build_result("chat/a", bench.row("chat/a"), None, bench.queue.events("chat/a"))
    assert isinstance(result, Result)
    assert (result.text, result.token_ids, result.state) == (" 0 1 2", (0, 1, 2), JobState.CANCELLED)
    assert (result.timings.queued_s, result.timings.generate_s) == (2.0, 1.5)


def test_readers_of_a_job_that_is_gone_are_told(bench: Bench, shared_url: str) -> None:
    name = bench.queue.name
    job_id = f"{name}/a"
    bench.submit(job_id)
    with Client(shared_url) as client:
        job = client.job(job_id)
        assert job.state() is JobState.QUEUED
        bench.queue.cancel(job_id)
        with pytest.raises(JobCancelled):
            job.result(timeout=1)
        bench.clock.move(RETENTION_S)
        bench.queue.tick()
        for call in (job.state, job.result, job.cancel, lambda: list(job.stream())):
            with pytest.raises(JobGone) as gone:
                call()
            assert gone.value.job_id == job_id


def test_a_reader_that_waits_for_a_job_that_vanishes_is_told_at_its_next_time_out(
    own: Bench, valkey: ValkeyProcess
) -> None:
    own.submit("chat/a")
    outcome: list[BaseException] = []
    with Client(valkey.url) as client:
        job = client.job("chat/a")

        def read() -> None:
            try:
                list(job.stream())
            except JobGone as error:
                outcome.append(error)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        eventually(lambda: any(c["cmd"] == "xread" for c in own.raw.client_list()), what="a waiting reader")
        own.raw.flushall()
        thread.join(5)
    assert [type(error) for error in outcome] == [JobGone]
