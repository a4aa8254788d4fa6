"""Q2, S3, S8 in the queue: what waits while storage's part is put back, and what comes of what is put in."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from headpond import JobState, events, restoring, upkeep
from headpond import operations as ops
from headpond.errors import JobGone, QueueMending, RedisUnavailable, ServerWentBack
from headpond.events import ended_result, read_stream
from headpond.folding import StreamFold
from headpond.jobs import Priority
from headpond.operations import LeaseStatus, Settle, Settlement, Submitted
from headpond.queue import JobQueue
from headpond.restoring import PutIn, StoredJob
from headpond.wire import Ended, Rewound, TokenRun, unpack_run
from queue_bench import LEASE_S, Bench, Clock, bench_on, closing, lease_key, tokens

LINEAGE = "L"


def go_back(bench: Bench) -> None:
    """The server restarts. Whether it lost something, only storage knows."""
    bench.clock.move(1)
    bench.queue.run(ops.hello(f"restarted {bench.clock.now_ms}", storage=True))


def inc(bench: Bench) -> int:
    return int(bench.queue.meta()["inc"])


def state(bench: Bench) -> str:
    return bench.queue.meta()["state"]


def stored_job(bench: Bench, job_id: str) -> StoredJob:
    """A job as a persister would have it in storage now."""
    row, keys = bench.row(job_id), bench.keys
    raw = bench.server.read("HGET", keys.named("run"), job_id)
    data = bench.queue.data(job_id)
    assert data is not None
    what = row.state.value if row.state.ended or row.state is JobState.DELAYED else "queued"
    due = bench.server.read("ZSCORE", keys.named("delayed"), job_id)
    deadline = bench.server.read("ZSCORE", keys.named("deadlines"), job_id)
    return StoredJob(
        what, job_id, data, raw, int(due or 0), int(deadline or 0), tokens(0, row.offset), row.offset,
        bench.queue.result(job_id) or b"",
    )  # fmt: skip


def lose_all(bench: Bench) -> None:
    bench.raw.delete(*bench.raw.keys(f"{bench.keys.prefix}*"))
    bench.clock.move(5)
    bench.server.hello(bench.queue.name)


def begin_restore(bench: Bench, **more: Any) -> restoring.Condition:
    arguments = {"lineage": LINEAGE, "what": "all", "least_inc": 0, "fair": None}
    return bench.queue.run(restoring.begin_restore(**arguments | more))


def put_in(bench: Bench, *jobs: StoredJob) -> list[PutIn]:
    return bench.queue.run(restoring.put_in(jobs, inc=inc(bench)))


def end_restore(bench: Bench) -> None:
    after: str | None = restoring.JOURNAL_START
    while after is not None:
        after = bench.queue.run(restoring.rejournal(inc=inc(bench), after=after))
    assert bench.queue.run(restoring.end_restore(lineage=LINEAGE, inc=inc(bench))).state == "open"


@pytest.fixture
def lost(shared_url: str) -> Iterator[Bench]:
    """A queue with storage that is open, and whose server may lose all."""
    bench = bench_on(shared_url, Clock(), storage=True)
    bench.register("A")
    bench.queue.run(upkeep.open_queue("claim", lineage=LINEAGE))
    bench.queue.run(upkeep.open_queue("open", lineage=LINEAGE))
    yield from closing(bench)


def test_after_a_restart_nothing_is_leased_and_nothing_ends_until_storage_was_looked_at(stored: Bench) -> None:
    stored.submit("chat/a", "chat/b")
    lease = stored.lease()
    go_back(stored)
    assert state(stored) == "reconciling"
    assert stored.claim().state == "reconciling"
    before = stored.dump()
    for waits in (
        lambda: stored.finish(lease, offset=0),
        lambda: stored.queue.cancel("chat/b"),
        lambda: stored.queue.park([lease_key(lease)], strike=True),
        lambda: stored.queue.claim("A", seq=9, nonce="", slots=0, settle=[_settle(lease, Settle.FINISHED)]),
        lambda: stored.queue.claim("A", seq=9, nonce="n", slots=1, settle=[_settle(lease, Settle.FAULTY)]),
        lambda: stored.queue.run(upkeep.fsck("0", repair=True)),
    ):
        with pytest.raises(QueueMending, match="persister puts that back") as caught:
            waits()
        assert isinstance(caught.value, RedisUnavailable)
        assert caught.value.retry
    assert stored.dump() == before
    stored.queue.run(upkeep.open_queue("open", lineage=LINEAGE))
    assert stored.finish(lease, offset=0).status is LeaseStatus.DONE
    assert stored.lease().id == "chat/b"


def _settle(lease: ops.Lease, what: Settle) -> Settlement:
    return Settlement(*lease_key(lease), what)


def test_while_it_waits_workers_append_renew_and_park_and_producers_submit(stored: Bench) -> None:
    stored.submit("chat/a", "chat/b")
    first, second = stored.claim(slots=2).leases
    go_back(stored)
    assert stored.append(first, tokens(0, 3)).status is LeaseStatus.APPENDED
    assert stored.renew("A", first, second) == [LeaseStatus.OK, LeaseStatus.OK]
    parked = stored.queue.claim("A", seq=9, nonce="", slots=0, settle=[_settle(second, Settle.PARKED)])
    assert parked.settled == (LeaseStatus.PARKED,)
    assert stored.submit("chat/c") == [Submitted.NEW]
    assert stored.wake_tokens() == 0
    stored.queue.run(upkeep.open_queue("open", lineage=LINEAGE))
    assert stored.wake_tokens() == 1
    assert [lease.id for lease in stored.claim(slots=3).leases] == ["chat/b", "chat/c"]


def test_time_ends_nothing_while_it_waits_and_leases_are_whole_again_afterwards(stored: Bench) -> None:
    stored.submit("chat/expires", deadline_s=2)
    stored.submit("chat/runs")
    stored.claim(slots=1)
    go_back(stored)
    stored.ticks(LEASE_S * 2, LEASE_S * 2)
    assert [stored.row(job).state for job in ("chat/expires", "chat/runs")] == [JobState.RUNNING, JobState.QUEUED]
    stored.queue.run(upkeep.open_queue("open", lineage=LINEAGE))
    stored.queue.tick()
    assert stored.row("chat/expires").state is JobState.EXPIRED
    assert stored.row("chat/runs").strikes == 0


def test_a_server_that_goes_back_again_remembers_the_first_time(stored: Bench) -> None:
    stored.submit("chat/a")
    first = f"{inc(stored)}-1"
    go_back(stored)
    stored.submit("chat/b")
    go_back(stored)
    assert stored.queue.meta()["rolled_to"] == first
    opened = stored.queue.run(restoring.end_reconciling(lineage=LINEAGE, inc=inc(stored), least_inc=0))
    assert opened.state == "open"
    assert "rolled_to" not in stored.queue.meta()


def test_whoever_decided_before_the_server_went_back_again_opens_nothing(stored: Bench) -> None:
    go_back(stored)
    read = inc(stored)
    go_back(stored)
    assert stored.queue.run(restoring.end_reconciling(lineage=LINEAGE, inc=read, least_inc=0)).state == "reconciling"
    with pytest.raises(ServerWentBack):
        stored.queue.run(restoring.put_in([StoredJob("dropped", "chat/a")], inc=read))
    with pytest.raises(ServerWentBack):
        stored.queue.run(restoring.rejournal(inc=read))


def test_a_lost_queue_comes_back_with_its_order_its_tokens_and_its_ends(lost: Bench) -> None:
    lost.submit("chat/runs", tenant="t", cost=5)
    lost.submit("chat/next", tenant="t", cost=5)
    lost.submit("chat/other", tenant="u")
    lost.submit("chat/urgent", band=Priority.INTERACTIVE)
    lost.submit("chat/later", delay_s=60)
    lost.submit("chat/cancelled")
    lost.queue.cancel("chat/cancelled")
    (urgent,) = lost.claim().leases
    lost.queue.finish(urgent.id, urgent.fence, offset=0, state=JobState.FINISHED, result=b"its result")
    running = lost.lease()
    lost.append(running, tokens(0, 9))
    kept = [stored_job(lost, job) for job in lost.queue.ids()]
    rows = {job.id: unpack_run(job.row) for job in kept}
    old = inc(lost)
    lose_all(lost)

    begun = begin_restore(lost, least_inc=old, fair={"normal": (5.0, {"t": 10.0, "u": 1.0})})
    assert (begun.state, begun.restoring) == ("restoring", "all")
    assert begun.inc > old + 999
    assert set(put_in(lost, *kept)) == {PutIn.NEW}
    assert set(put_in(lost, *kept)) == {PutIn.NEW}
    assert lost.claim().state == "restoring"
    end_restore(lost)

    lost.register("A")
    assert lost.row("chat/cancelled").state is JobState.CANCELLED
    assert lost.queue.result("chat/urgent") == b"its result"
    assert lost.row("chat/urgent").durable
    assert lost.queue.journal_length() == 0
    again = lost.claim(slots=4).leases
    assert running.id == "chat/other"
    assert [(lease.id, lease.offset) for lease in again] == [("chat/runs", 0), ("chat/other", 9), ("chat/next", 0)]
    after = {job: lost.row(job) for job in rows}
    for field in ("tag", "attempt", "strikes", "faults", "band", "submitted_ms", "ended_ms", "pinned", "reason"):
        was = {job: getattr(row, field) for job, row in rows.items()}
        now = {job: getattr(row, field) for job, row in after.items()}
        leased = {lease.id: was[lease.id] + 1 for lease in again} if field == "attempt" else {}
        assert now == was | leased, field
    lost.ticks(61)
    assert lost.row("chat/later").state is JobState.QUEUED


def test_a_reader_who_had_more_than_was_restored_is_told_so(lost: Bench) -> None:
    lost.submit("chat/a")
    lease = lost.lease()
    lost.append(lease, tokens(0, 5))
    kept = stored_job(lost, "chat/a")
    lost.append(lease, tokens(5, 8))
    ahead, behind, last = StreamFold(), StreamFold(), "-"
    for entry_id, fields in lost.queue.events("chat/a"):
        ahead.feed(fields, entry_id)
        last = entry_id
    behind.given = 3
    lose_all(lost)
    begin_restore(lost)
    put_in(lost, kept)
    end_restore(lost)
    lost.append(lost.lease(), tokens(5, 7))
    seen = [[fold.feed(f, i) for i, f in lost.queue.events("chat/a", after=last)] for fold in (ahead, behind)]
    ahead_chunks, behind_chunks = ([chunk for chunk in chunks if chunk] for chunks in seen)
    assert [(c.offset, c.token_ids, c.restarted) for c in ahead_chunks] == [(5, (5, 6), True)]
    assert [(c.offset, c.token_ids, c.restarted) for c in behind_chunks] == [(3, (3, 4), False), (5, (5, 6), False)]


def test_a_job_that_a_closed_queue_does_not_hold_may_come_back_and_is_not_called_gone(lost: Bench) -> None:
    lost.submit("chat/a")
    lose_all(lost)
    for ask in (lambda: ended_result(lost.queue, "chat/a"), lambda: next(read_stream(lost.queue, "chat/a"))):
        with pytest.raises(QueueMending, match=r"is closed.*headpond restore"):
            ask()
    begin_restore(lost)
    with pytest.raises(QueueMending, match="is being restored"):
        ended_result(lost.queue, "chat/a")
    end_restore(lost)
    with pytest.raises(JobGone):
        ended_result(lost.queue, "chat/a")


def test_a_reader_bears_the_loss_of_its_job_until_it_is_back(lost: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    lost.submit("chat/a")
    lost.append(lost.lease("A"), tokens(0, 5))
    stored = stored_job(lost, "chat/a")
    missed = threading.Event()
    absence = JobQueue.absence

    def noted(queue: JobQueue, job_id: str) -> JobGone | QueueMending:
        missed.set()
        return absence(queue, job_id)

    monkeypatch.setattr(JobQueue, "absence", noted)
    monkeypatch.setattr(events, "BLOCK_S", 0.05)
    reading = read_stream(lost.queue, "chat/a")
    assert next(reading).token_ids == (0, 1, 2, 3, 4)
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(list, reading)
        lose_all(lost)
        assert missed.wait(30)
        begin_restore(lost)
        assert put_in(lost, stored) == [PutIn.NEW]
        end_restore(lost)
        lost.register("B")
        lease = lost.lease("B")
        lost.append(lease, tokens(5, 7))
        lost.finish(lease, offset=7)
        chunks = rest.result(30)
    assert [chunk.token_ids for chunk in chunks] == [(5, 6)]
    assert not any(chunk.restarted for chunk in chunks)


def test_what_a_lost_server_accepted_comes_after_what_it_had_and_storage_wins(lost: Bench) -> None:
    lost.submit("chat/same", "chat/other", "chat/first", tenant="t")
    kept = [stored_job(lost, job) for job in ("chat/same", "chat/other", "chat/first")]
    lose_all(lost)
    lost.submit("chat/new", "chat/same", tenant="t")
    lost.submit("chat/other", digest="another")
    lost.submit("chat/ended", tenant="t")
    lost.queue.cancel("chat/ended")
    early = {e.journal_id for e in lost.queue.journal(limit=10)}
    begin_restore(lost, fair={"normal": (0.0, {"t": 3.0})})
    lost.submit("chat/newer", tenant="t")
    assert put_in(lost, *kept) == [PutIn.MERGED, PutIn.CONFLICT, PutIn.NEW]
    assert put_in(lost, *kept) == [PutIn.MERGED, PutIn.CONFLICT, PutIn.NEW]
    end_restore(lost)
    assert lost.submit("chat/other", digest="another") == [Submitted.CONFLICT]
    assert lost.submit("chat/same", tenant="t") == [Submitted.KNOWN]
    journal = lost.queue.journal(limit=20)
    assert {(e.kind, e.job_id) for e in journal} == {
        ("submit", "chat/new"), ("submit", "chat/newer"), ("submit", "chat/ended"), ("end", "chat/ended"),
    }  # fmt: skip
    assert not early & {e.journal_id for e in journal}
    assert {int(e.journal_id.partition("-")[0]) for e in journal} == {inc(lost)}
    order = [lease.id for lease in lost.claim(slots=9).leases]
    assert order == ["chat/same", "chat/other", "chat/first", "chat/newer", "chat/new"]


def test_a_job_that_was_cancelled_on_a_lost_server_stays_cancelled(lost: Bench) -> None:
    lost.submit("chat/a")
    kept = stored_job(lost, "chat/a")
    lose_all(lost)
    lost.submit("chat/a")
    lost.queue.cancel("chat/a")
    begin_restore(lost)
    assert put_in(lost, kept) == [PutIn.KEPT]
    end_restore(lost)
    assert lost.row("chat/a").state is JobState.CANCELLED
    assert [(e.kind, e.job_id) for e in lost.queue.journal(limit=9)] == [("submit", "chat/a"), ("end", "chat/a")]


def test_a_deadline_that_passed_while_the_server_was_lost_ends_the_job(lost: Bench) -> None:
    lost.submit("chat/a", deadline_s=3)
    kept = stored_job(lost, "chat/a")
    lose_all(lost)
    begin_restore(lost)
    put_in(lost, kept)
    lost.queue.tick()
    assert lost.row("chat/a").state is JobState.QUEUED
    end_restore(lost)
    lost.queue.tick()
    assert lost.row("chat/a").state is JobState.EXPIRED


def test_a_queue_that_holds_a_history_is_not_restored(stored: Bench) -> None:
    stored.submit("chat/a")
    for make in (lambda: None, lambda: go_back(stored)):
        make()
        before = stored.dump()
        assert begin_restore(stored).state in ("open", "reconciling")
        assert stored.dump() == before


def test_two_restores_of_one_queue_must_restore_the_same(lost: Bench) -> None:
    lose_all(lost)
    assert begin_restore(lost, what="up to noon").state == "restoring"
    assert begin_restore(lost, what="all").restoring == "up to noon"
    assert begin_restore(lost, what="up to noon", lineage="another").lineage == LINEAGE
    before = lost.dump()
    assert begin_restore(lost, what="up to noon").restoring == "up to noon"
    assert lost.dump() == before


def test_nobody_else_opens_or_closes_a_queue_amid_its_restore(lost: Bench) -> None:
    lose_all(lost)
    begin_restore(lost)
    assert lost.queue.run(upkeep.open_queue("close", reason="another history")) == (LINEAGE, "restoring")
    assert lost.queue.run(upkeep.open_queue("open", lineage=LINEAGE)) == (LINEAGE, "restoring")
    go_back(lost)
    assert state(lost) == "restoring"
    end_restore(lost)


def test_an_end_that_the_server_forgot_is_put_back_and_a_late_writer_is_told(stored: Bench) -> None:
    stored.submit("chat/a", "chat/waits")
    lease = stored.lease()
    stored.append(lease, tokens(0, 4))
    reader, last = StreamFold(), "-"
    for last, fields in stored.queue.events("chat/a"):
        reader.feed(fields, last)
    go_back(stored)
    # Its worker has finished it in the life that was lost; here it goes on after another token than storage has.
    stored.append(lease, TokenRun(4, (99,), (" no",)))
    row = stored.row("chat/a")
    ended = StoredJob(
        "finished", "chat/a", stored.queue.data("chat/a") or b"", b"", tokens=tokens(0, 6), common=4,
        result=b"its result", last_event=stored.queue.last_event("chat/a"),
    )  # fmt: skip
    late = StoredJob(**{f: getattr(ended, f) for f in ended.__slots__} | {"last_event": last})
    assert put_in(stored, late) == [PutIn.AGAIN]
    assert stored.row("chat/a") == row
    assert put_in(stored, ended) == [PutIn.MERGED]
    assert stored.append(lease, tokens(5, 6)).status is LeaseStatus.FENCED
    stored.queue.run(restoring.end_reconciling(lineage=LINEAGE, inc=inc(stored), least_inc=0))
    assert stored.row("chat/a").state is JobState.FINISHED
    assert stored.row("chat/a").durable
    assert [event for _, event in stored.events("chat/a")] == [
        tokens(0, 4), Rewound(4, "restored from storage"), tokens(4, 6), Ended(JobState.FINISHED, 6),
    ]  # fmt: skip
    chunks = [reader.feed(fields, at) for at, fields in stored.queue.events("chat/a", after=last)]
    assert [(c.offset, c.token_ids) for c in chunks if c] == [(4, (4, 5))]
    assert stored.queue.result("chat/a") == b"its result"
    assert stored.lease().id == "chat/waits"


def test_a_lease_that_stands_goes_on_and_its_worker_sends_what_is_missing(stored: Bench) -> None:
    stored.submit("chat/a")
    lease = stored.lease()
    stored.append(lease, tokens(0, 2))
    ahead = StoredJob("queued", "chat/a", stored.queue.data("chat/a") or b"", tokens=tokens(0, 5))
    go_back(stored)
    assert put_in(stored, ahead) == [PutIn.KEPT]
    stored.queue.run(restoring.end_reconciling(lineage=LINEAGE, inc=inc(stored), least_inc=0))
    assert stored.append(lease, tokens(5, 6)) == ops.Outcome(LeaseStatus.GAP, 2)
    assert stored.append(lease, tokens(2, 6)) == ops.Outcome(LeaseStatus.APPENDED, 6)
    assert stored.finish(lease, offset=6).status is LeaseStatus.DONE


def test_what_was_dropped_is_dropped_again_but_not_what_came_since(stored: Bench) -> None:
    stored.submit("chat/gone", "chat/anew")
    lease = stored.lease()
    go_back(stored)
    assert put_in(stored, StoredJob("dropped", "chat/gone")) == [PutIn.DROPPED]
    assert put_in(stored, StoredJob("dropped", "chat/gone")) == [PutIn.DROPPED]
    assert stored.queue.run_row("chat/gone") is None
    assert stored.append(lease, tokens(0, 1)).status is LeaseStatus.FENCED
    stored.submit("chat/gone")
    assert put_in(stored, StoredJob("dropped", "chat/gone")) == [PutIn.KEPT]
    stored.queue.run(restoring.end_reconciling(lineage=LINEAGE, inc=inc(stored), least_inc=0))
    assert {lease.id for lease in stored.claim(slots=5).leases} == {"chat/gone", "chat/anew"}


def test_a_submit_that_came_before_the_incarnation_was_raised_is_not_below_what_storage_has(stored: Bench) -> None:
    stored.submit("chat/old")
    go_back(stored)
    stored.submit("chat/between")
    seen = inc(stored) + 50_000
    read = inc(stored)
    assert (
        stored.queue.run(restoring.begin_reconciling(lineage=LINEAGE, inc=read, least_inc=seen, fair=None)).inc > seen
    )
    after: str | None = restoring.JOURNAL_START
    while after is not None:
        after = stored.queue.run(restoring.rejournal(inc=inc(stored), after=after))
    stored.queue.run(restoring.end_reconciling(lineage=LINEAGE, inc=inc(stored), least_inc=0))
    old, between = stored.queue.journal(limit=9)
    assert (old.job_id, between.job_id) == ("chat/old", "chat/between")
    assert int(old.journal_id.partition("-")[0]) < read
    assert int(between.journal_id.partition("-")[0]) == inc(stored)
