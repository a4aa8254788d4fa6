"""Q3, Q8: a fence opens for one lease alone, and leases end, come back and bear an outage of the server."""

from __future__ import annotations

from pathlib import Path

import pytest

from headpond import JobState
from headpond import operations as ops
from headpond.operations import Lease, LeaseStatus, QueuePolicy
from headpond.workers import WorkerRow, WorkerState
from headpond_workers.supervision.embedded_valkey import ValkeyProcess
from queue_bench import LEASE_S, RETENTION_S, Bench, keep_data, lease_key, server_as_it_was, tokens


def assert_shut_out(bench: Bench, lease: Lease, *, offset: int) -> None:
    state = bench.dump()
    assert bench.append(lease, tokens(offset, offset + 1)).status is LeaseStatus.FENCED
    assert bench.append(lease, tokens(0, 1)).status is LeaseStatus.FENCED
    assert bench.finish(lease, offset=offset).status is LeaseStatus.FENCED
    assert bench.queue.park([(lease.id, lease.fence)], strike=True) == [LeaseStatus.FENCED]
    assert bench.dump() == state
    assert bench.renew("zombie", lease) == [LeaseStatus.FENCED]
    changed = {key for key, value in bench.dump().items() if state.get(key) != value}
    assert changed <= {bench.keys.named("workers"), bench.keys.named("meta")}


def test_a_replaced_fence_is_never_accepted_again(bench: Bench) -> None:
    bench.submit("chat/a")
    old = bench.lease("A")
    bench.append(old, tokens(0, 3))
    for _ in range(3):
        bench.clock.move(4)
        bench.queue.tick()
    assert bench.row("chat/a").state is JobState.QUEUED
    assert_shut_out(bench, old, offset=3)
    new = bench.lease("B")
    assert (new.attempt, new.offset) == (2, 3)
    assert new.fence != old.fence
    assert_shut_out(bench, old, offset=3)
    assert bench.finish(new, offset=3).status is LeaseStatus.DONE
    assert_shut_out(bench, old, offset=3)


def test_an_empty_fence_opens_nothing(bench: Bench) -> None:
    bench.submit("chat/a")
    waiting = Lease("chat/a", "", 0, 0, 0, 0.0, b"")
    assert_shut_out(bench, waiting, offset=0)
    unknown = Lease("chat/none", "x", 1, 0, 0, 0.0, b"")
    assert_shut_out(bench, unknown, offset=0)


def test_the_same_attempt_number_does_not_help_a_worker_from_before_a_rollback(
    own: Bench, valkey: ValkeyProcess, tmp_path: Path
) -> None:
    own.submit("chat/a")
    kept = keep_data(valkey, tmp_path / "kept")
    lost = own.lease("A")
    assert own.append(lost, tokens(0, 4)).status is LeaseStatus.APPENDED
    server_as_it_was(own, valkey, kept)
    now = own.lease("B")
    assert (now.attempt, now.offset) == (lost.attempt, 0)
    assert_shut_out(own, lost, offset=4)
    assert own.append(now, tokens(0, 2)) == ops.Outcome(LeaseStatus.APPENDED, 2)


def test_an_unnamed_lease_of_a_received_claim_comes_back_without_a_strike(bench: Bench) -> None:
    bench.submit("chat/a", "chat/b")
    kept, unnamed = bench.claim(slots=2).leases
    assert bench.renew("A", kept) == [LeaseStatus.OK]
    row = bench.row(unnamed.id)
    assert (row.state, row.strikes, row.attempt) == (JobState.QUEUED, 0, 1)
    assert bench.row(kept.id).state is JobState.RUNNING
    assert bench.wake_tokens() == 1
    assert_shut_out(bench, unnamed, offset=0)


def test_a_lease_of_a_later_claim_is_left_alone(bench: Bench) -> None:
    bench.submit("chat/a", "chat/b")
    first = bench.lease()
    later = bench.lease()
    assert bench.renew("A", first, last_seq=1) == [LeaseStatus.OK]
    assert bench.row(later.id).state is JobState.RUNNING
    assert bench.append(later, tokens(0, 1)).status is LeaseStatus.APPENDED
    assert bench.renew("A", first, last_seq=2) == [LeaseStatus.OK]
    assert bench.row(later.id).state is JobState.QUEUED


def test_a_renewal_leaves_the_leases_of_other_workers(bench: Bench) -> None:
    bench.submit("chat/a", "chat/b")
    mine, other = bench.lease("A"), bench.lease("B")
    bench.clock.move(4)
    assert bench.renew("A", mine) == [LeaseStatus.OK]
    leases = dict(bench.server.read("ZRANGE", bench.keys.named("leases"), 0, -1, "WITHSCORES"))
    assert leases[mine.id.encode()] == bench.clock.now_ms + LEASE_S * 1000
    assert leases[other.id.encode()] == bench.clock.now_ms + (LEASE_S - 4) * 1000


def test_a_renewal_hears_what_became_of_its_jobs(bench: Bench) -> None:
    bench.submit("chat/cancelled", "chat/fine")
    bench.submit("chat/expired", deadline_s=3)
    cancelled, fine, expired = bench.claim(slots=3).leases
    bench.queue.cancel("chat/cancelled")
    bench.clock.move(3)
    assert bench.renew("A", cancelled, fine, expired) == [
        LeaseStatus.CANCELLED, LeaseStatus.OK, LeaseStatus.EXPIRED,
    ]  # fmt: skip
    assert bench.row("chat/expired").state is JobState.EXPIRED


def test_ticks_alone_end_leases_promote_delayed_jobs_and_end_deadlines(bench: Bench) -> None:
    bench.submit("chat/leased")
    bench.lease()
    bench.submit("chat/delayed", delay_s=6)
    bench.submit("chat/late", deadline_s=9)
    bench.submit("chat/later", delay_s=5, deadline_s=8)
    states = []
    for _ in range(3):
        bench.clock.move(4)
        bench.queue.tick()
        states.append([bench.row(f"chat/{name}").state.value for name in ("leased", "delayed", "late", "later")])
    assert states == [
        ["running", "delayed", "queued", "delayed"],
        ["running", "queued", "queued", "expired"],
        ["queued", "queued", "expired", "expired"],
    ]
    assert bench.row("chat/leased").strikes == 1
    # One that expired while it was due is in no set any more.
    ids = {lease.id for lease in bench.claim(slots=10).leases}
    assert ids == {"chat/leased", "chat/delayed"}


def test_progress_clears_strikes(bench: Bench) -> None:
    bench.submit("chat/a")

    boots = iter("BCDE")

    def lease_ends(made: int) -> int:
        lease = bench.lease(next(boots))
        bench.append(lease, tokens(lease.offset, lease.offset + made))
        for _ in range(3):
            bench.clock.move(4)
            bench.queue.tick()
        return bench.row("chat/a").strikes

    assert [lease_ends(made) for made in (0, 7, 8, 1)] == [1, 2, 0, 1]


def test_a_late_tick_moves_every_lease_instead_of_blaming_a_worker(bench: Bench) -> None:
    bench.submit("chat/a", "chat/b")
    leases = bench.claim(slots=2).leases
    bench.queue.tick()
    bench.clock.move(LEASE_S * 1.5)
    bench.queue.tick()
    for lease in leases:
        row = bench.row(lease.id)
        assert (row.state, row.strikes) == (JobState.RUNNING, 0)
        assert bench.append(lease, tokens(0, 1)).status is LeaseStatus.APPENDED
    bench.clock.move(1)
    assert bench.renew("A", *leases) == [LeaseStatus.OK, LeaseStatus.OK]


@pytest.mark.parametrize("away_s", [6.0, 15.0, 25.0, 3600.0])
def test_an_outage_of_any_length_costs_no_lease_and_no_strike(bench: Bench, away_s: float) -> None:
    bench.submit("chat/a")
    lease = bench.lease()
    for _ in range(3):
        bench.clock.move(away_s)
        assert bench.renew("A", lease) == [LeaseStatus.OK]
        bench.clock.move(1)
        assert bench.renew("A", lease) == [LeaseStatus.OK]
    row = bench.row("chat/a")
    assert (row.state, row.strikes, row.attempt) == (JobState.RUNNING, 0, 1)


@pytest.mark.parametrize("back_s", [0.001, 30.0, 3600.0])
def test_a_clock_that_goes_back_costs_no_strike_and_keeps_no_dead_workers_job(bench: Bench, back_s: float) -> None:
    bench.submit("chat/a")
    lease = bench.lease()
    bench.clock.move(-back_s)
    bench.queue.tick()
    row = bench.row("chat/a")
    assert (row.state, row.strikes) == (JobState.RUNNING, 0)
    assert bench.append(lease, tokens(0, 1)).status is LeaseStatus.APPENDED
    # Its worker is dead all the same: two leases later at most, another may have the job.
    for _ in range(6):
        bench.clock.move(4)
        bench.queue.tick()
    assert bench.row("chat/a").state is JobState.QUEUED


@pytest.mark.parametrize("every_s", [0.5, 2.5, 6.0, 9.0, 11.0])
def test_a_dead_workers_lease_ends_however_rarely_someone_looks(bench: Bench, every_s: float) -> None:
    bench.submit("chat/a")
    bench.lease()
    waited_s = 0.0
    while bench.row("chat/a").state is JobState.RUNNING:
        bench.clock.move(every_s)
        waited_s += every_s
        bench.queue.tick()
        assert waited_s <= 2 * LEASE_S + 2 * every_s
    assert bench.row("chat/a").state is JobState.QUEUED


def test_a_tick_moves_at_most_a_hundred_jobs(bench: Bench) -> None:
    for start in range(0, 250, 50):
        bench.submit(*(f"chat/{i}" for i in range(start, start + 50)), delay_s=1)
    bench.clock.move(1)
    for ready in (100, 200, 250):
        due = bench.queue.tick()
        assert bench.queue.depths().ready == ready
        assert due == (0.0 if ready < 250 else None)


def test_unregister_returns_what_is_held_at_once_without_a_strike(bench: Bench) -> None:
    bench.submit("chat/a", "chat/b")
    lease, other = bench.claim(slots=2).leases
    bench.append(lease, tokens(0, 2))
    bench.finish(other, offset=0)
    bench.queue.unregister("A")
    row = bench.row("chat/a")
    assert (row.state, row.strikes, row.offset) == (JobState.QUEUED, 0, 2)
    assert bench.queue.workers() == []
    # It has tokens, so it waits in the lane of the version that made them.
    assert bench.wake_tokens("v1") == 1


def test_what_a_dead_worker_held_comes_back_at_once_with_a_strike_for_what_made_no_progress(bench: Bench) -> None:
    bench.submit("chat/a", "chat/b")
    lease, other = bench.claim(slots=2).leases
    bench.append(lease, tokens(0, 8))
    bench.append(other, tokens(0, 7))
    for _ in range(2):
        bench.queue.bury("A")
    rows = [bench.row(job) for job in ("chat/a", "chat/b")]
    assert [(row.state, row.strikes, row.faults, row.offset) for row in rows] == [
        (JobState.QUEUED, 0, 1, 8), (JobState.QUEUED, 1, 1, 7),
    ]  # fmt: skip
    assert bench.queue.workers() == []
    assert [attempt.how for attempt in bench.queue.attempts("chat/b")] == ["killed"]
    assert bench.wake_tokens("v1") == 1
    assert bench.append(lease, tokens(8, 1)).status is LeaseStatus.FENCED


def test_a_job_that_kills_three_workers_is_quarantined_however_soon_they_are_found_dead(bench: Bench) -> None:
    bench.submit("chat/a")
    for boot in ("A", "B", "C"):
        bench.lease(boot)
        bench.queue.bury(boot)
    row = bench.row("chat/a")
    assert row.state is JobState.DEAD
    assert row.reason == "3 leases in a row ended without progress; the last: its worker died"


def test_a_worker_that_was_taken_for_dead_and_speaks_takes_its_strike_back(bench: Bench) -> None:
    bench.submit("chat/a")
    lease = bench.lease("A")
    bench.queue.bury("A")
    assert bench.row("chat/a").strikes == 1
    assert bench.renew("A", lease) == [LeaseStatus.FENCED]
    assert (bench.row("chat/a").strikes, bench.row("chat/a").faults) == (0, 0)


def test_a_process_that_replaces_another_takes_over_its_row(bench: Bench) -> None:
    bench.register("B")
    assert sorted(row.boot for row in bench.queue.workers()) == ["A", "B"]
    successor = WorkerRow("C", bench.queue.name, "v1", "host", 9, "chat-A", 4, 0, WorkerState.LOADING, "", 1)
    bench.queue.register(successor, QueuePolicy(lease_s=LEASE_S, retention_s=RETENTION_S))
    rows = {row.boot: row for row in bench.queue.workers()}
    assert sorted(rows) == ["B", "C"]
    assert rows["C"].pid == 9
    assert rows["C"].seen_ms == bench.clock.now_ms


def test_a_lease_that_is_not_named_comes_back_though_an_older_one_of_its_job_is(bench: Bench) -> None:
    bench.submit("chat/a")
    old = bench.lease("A")
    bench.queue.unregister("A")
    new = bench.lease("A")
    assert bench.renew("A", old) == [LeaseStatus.FENCED]
    row = bench.row("chat/a")
    assert (row.state, row.attempt, row.strikes) == (JobState.QUEUED, 2, 0)
    assert bench.renew("A", new) == [LeaseStatus.FENCED]


@pytest.mark.parametrize("call", ["claim", "renew"])
def test_a_lease_that_ends_in_a_call_of_its_own_worker_is_no_strike(bench: Bench, call: str) -> None:
    bench.submit("chat/a")
    for _ in range(2):
        bench.queue.park([lease_key(bench.lease("B"))], strike=True)
    lease = bench.lease("B")
    bench.ticks(4.9, 4.9)
    bench.clock.move(0.2)
    if call == "renew":
        assert bench.renew("B", lease) == [LeaseStatus.FENCED]
    else:
        assert [again.id for again in bench.claim("B").leases] == ["chat/a"]
    row = bench.row("chat/a")
    assert (row.state.ended, row.strikes, row.faults) == (False, 2, 2)
