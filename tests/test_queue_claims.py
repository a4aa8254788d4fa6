"""Q6, Q7: in which order jobs are claimed, and what wakes who claims them."""

from __future__ import annotations

import threading
import time

from conftest import eventually
from headpond import JobState
from headpond.operations import Claimed
from queue_bench import LEASE_S, Bench


def test_jobs_are_claimed_in_their_order_and_a_returned_one_keeps_its_place(bench: Bench) -> None:
    bench.submit("chat/a", "chat/b", "chat/c")
    first = bench.lease()
    assert first.id == "chat/a"
    bench.queue.park([(first.id, first.fence)], strike=False)
    assert [lease.id for lease in bench.claim(slots=3).leases] == ["chat/a", "chat/b", "chat/c"]


def test_a_thousand_submits_leave_one_wake_token(bench: Bench) -> None:
    for start in range(0, 1000, 50):
        bench.submit(*(f"chat/{i}" for i in range(start, start + 50)))
        assert bench.wake_tokens() == 1
    bench.server.read("LPOP", bench.keys.wake("any"))
    assert len(bench.claim(slots=10).leases) == 10
    assert bench.wake_tokens() == 1
    assert bench.queue.depths().ready == 990


def test_the_wake_token_is_there_exactly_when_something_can_be_claimed(bench: Bench) -> None:
    assert bench.wake_tokens() == 0
    bench.claim()
    assert bench.wake_tokens() == 0
    bench.submit("chat/a", "chat/b")
    assert bench.wake_tokens() == 1
    first = bench.lease()
    assert bench.wake_tokens() == 1
    second = bench.lease()
    assert bench.wake_tokens() == 0
    bench.queue.park([(second.id, second.fence)], strike=False)
    assert bench.wake_tokens() == 1
    second = bench.lease()
    assert bench.wake_tokens() == 0
    bench.finish(second, offset=0)
    assert bench.wake_tokens() == 0
    for _ in range(3):
        bench.clock.move(4)
        bench.queue.tick()
    assert bench.row(first.id).state is JobState.QUEUED
    assert bench.wake_tokens() == 1
    # The token of a dying consumer is set anew by the next claim, whoever makes it.
    bench.server.read("DEL", bench.keys.wake("any"))
    bench.submit("chat/c")
    bench.server.read("DEL", bench.keys.wake("any"))
    assert bench.lease("B").id == first.id
    assert bench.wake_tokens() == 1
    bench.queue.cancel("chat/c")
    assert bench.claim("B").leases == ()
    assert bench.wake_tokens() == 0


def test_a_lost_claim_reply_is_asked_for_again(bench: Bench) -> None:
    bench.submit("chat/a", "chat/b", "chat/c")
    first = bench.queue.claim("A", seq=1, nonce="one", slots=2, fingerprint="f")
    again = bench.queue.claim("A", seq=1, nonce="two", slots=2, fingerprint="f")
    assert again == first
    assert [lease.id for lease in again.leases] == ["chat/a", "chat/b"]
    # What of it has ended meanwhile is no lease any more.
    bench.finish(first.leases[0], offset=0)
    rest = bench.queue.claim("A", seq=1, nonce="three", slots=2, fingerprint="f")
    assert rest.leases == first.leases[1:]
    (new,) = bench.queue.claim("A", seq=2, nonce="four", slots=2, fingerprint="f").leases
    assert new.id == "chat/c"


def test_the_seqs_of_two_workers_are_their_own(bench: Bench) -> None:
    bench.submit("chat/a", "chat/b")
    (one,) = bench.queue.claim("A", seq=1, nonce="n", slots=1).leases
    (other,) = bench.queue.claim("B", seq=1, nonce="m", slots=1).leases
    assert {one.id, other.id} == {"chat/a", "chat/b"}
    assert one.fence != other.fence


def test_a_blocked_waiter_is_woken_by_a_submit(bench: Bench) -> None:
    waiter = bench.queue.waiter()
    woken: list[tuple[bool, float]] = []

    def wait() -> None:
        woken.append((waiter.wait(2.5), time.monotonic()))

    def blocked() -> bool:
        return any(c["cmd"] == "blpop" and "b" in c["flags"] for c in bench.raw.client_list())

    try:
        for job_id in ("chat/a", "chat/b"):
            thread = threading.Thread(target=wait, daemon=True)
            thread.start()
            eventually(blocked, what="a blocked waiter")
            submitted = time.monotonic()
            bench.submit(job_id)
            thread.join(5)
            token, at = woken.pop()
            assert token
            assert at - submitted < 1.0
            assert bench.lease().id == job_id
    finally:
        waiter.close()


def test_an_interrupted_waiter_returns_at_once_without_a_token(bench: Bench) -> None:
    waiter = bench.queue.waiter()
    woken: list[bool] = []
    thread = threading.Thread(target=lambda: woken.append(waiter.wait(2.5)), daemon=True)
    try:
        thread.start()
        eventually(lambda: any("b" in c["flags"] for c in bench.raw.client_list()), what="a blocked waiter")
        began = time.monotonic()
        waiter.interrupt()
        thread.join(5)
        assert time.monotonic() - began < 1.0
        assert woken == [False]
    finally:
        waiter.close()


def test_a_delayed_job_becomes_claimable_by_next_due_with_nobody_submitting(bench: Bench) -> None:
    bench.submit("chat/a", delay_s=2.5)
    assert bench.row("chat/a").state is JobState.DELAYED
    claimed = bench.claim()
    assert claimed == Claimed("open", 2.5, ())
    bench.clock.move(2.499)
    assert bench.claim() == Claimed("open", 0.001, ())
    bench.clock.move(0.001)
    lease = bench.lease()
    assert lease.id == "chat/a"
    assert lease.queued_s == 2.5


def test_a_delayed_submit_wakes_a_consumer_that_would_sleep_past_it(bench: Bench) -> None:
    assert bench.claim().next_due_s is None
    bench.submit("chat/a", delay_s=0.5)
    assert bench.wake_tokens() == 1
    assert bench.claim() == Claimed("open", 0.5, ())


def test_next_due_is_the_soonest_of_delays_deadlines_and_leases(bench: Bench) -> None:
    assert bench.queue.tick() is None
    bench.submit("chat/a", deadline_s=30)
    assert bench.queue.tick() == 30
    bench.submit("chat/b", delay_s=20)
    assert bench.queue.tick() == 20
    bench.lease()
    assert bench.queue.tick() == LEASE_S
    bench.clock.move(1)
    assert bench.queue.tick() == LEASE_S - 1
