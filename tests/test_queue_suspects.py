"""Q11: strikes, the lane of suspects, and who is forgiven."""

from __future__ import annotations

from headpond import JobState
from headpond.jobs import Priority
from queue_bench import LEASE_S, Bench, lease_key, tokens
from queue_holes.strikes import crash, make_suspects

SUSPECT_WAIT_S = 30.0


def make_suspect(bench: Bench, job_id: str) -> None:
    """Submit a job that its engine fails of twice, at once."""
    bench.submit(job_id)
    for _ in range(2):
        lease = bench.lease()
        assert lease.id == job_id
        bench.queue.park([lease_key(lease)], strike=True, reason="out of memory")


def test_the_second_strike_makes_a_suspect_and_the_third_ends_it(bench: Bench) -> None:
    bench.submit("chat/a")
    lanes, strikes = [], []
    for n in range(3):
        crash(bench, f"boot{n}", after=7)
        row = bench.row("chat/a")
        lanes.append(row.lane)
        strikes.append(row.strikes)
    # Tokens bind it to the version that made them.
    assert lanes == ["v1", "suspect@v1", "suspect@v1"]
    assert strikes == [1, 2, 3]
    row = bench.row("chat/a")
    assert row.state is JobState.DEAD
    assert row.reason.startswith("3 leases in a row ended without progress")
    assert [(a.boot, a.how) for a in bench.queue.attempts("chat/a")] == [(f"boot{n}", "expired") for n in range(3)]


def test_one_suspect_runs_at_a_time_and_beside_innocents(bench: Bench) -> None:
    make_suspects(bench, "chat/s1", "chat/s2")
    bench.submit("chat/innocent1", "chat/innocent2")
    first = bench.claim("A", slots=3).leases
    assert sorted(lease.id for lease in first) == ["chat/innocent1", "chat/innocent2", "chat/s1"]
    assert bench.claim("B", slots=3).leases == ()
    assert bench.queue.depths().suspects == 1
    suspect = next(lease for lease in first if lease.id == "chat/s1")
    bench.finish(suspect, offset=0)
    assert bench.lease("B").id == "chat/s2"


def test_a_suspect_with_progress_is_none_any_more(bench: Bench) -> None:
    make_suspects(bench, "chat/a", "chat/b")
    lease = bench.lease()
    bench.append(lease, tokens(0, 8))
    bench.queue.park([lease_key(lease)])
    assert (bench.row(lease.id).strikes, bench.row(lease.id).lane) == (0, "v1")
    # So another may be tried beside it.
    assert {lease.id for lease in bench.claim(slots=3).leases} == {"chat/a", "chat/b"}


def test_a_suspect_that_is_cancelled_lets_the_next_one_run(bench: Bench) -> None:
    make_suspects(bench, "chat/a", "chat/b")
    running = bench.lease()
    assert bench.claim("B").leases == ()
    bench.queue.cancel(running.id)
    assert bench.wake_tokens("suspect") == 1
    assert bench.lease("B").id == "chat/b"


def test_a_suspect_whose_row_was_lost_does_not_keep_the_others_waiting(bench: Bench) -> None:
    make_suspects(bench, "chat/a", "chat/b")
    running = bench.lease()
    bench.raw.hdel(bench.keys.named("run"), running.id)
    assert bench.lease("B").id == "chat/b"


def test_a_suspect_that_waited_long_enough_is_first_of_its_band(bench: Bench) -> None:
    bench.register("A", suspect_wait_s=SUSPECT_WAIT_S)
    bench.submit(*(f"chat/first{n}" for n in range(2)))
    bench.submit("chat/urgent", band=Priority.INTERACTIVE)
    held = bench.claim("other", slots=3).leases
    make_suspect(bench, "chat/suspect")
    bench.queue.park([lease_key(lease) for lease in held])
    assert bench.queue.depths().ready == 4
    ticks = round(SUSPECT_WAIT_S / 3)
    for _ in range(ticks):
        bench.clock.move(3)
        bench.queue.tick()
    assert [bench.lease().id for _ in range(3)] == ["chat/urgent", "chat/suspect", "chat/first0"]


def test_before_that_a_suspect_keeps_the_place_that_it_had(bench: Bench) -> None:
    bench.register("A", suspect_wait_s=SUSPECT_WAIT_S)
    bench.submit("chat/before")
    held = bench.lease("other")
    make_suspect(bench, "chat/suspect")
    bench.queue.park([lease_key(held)])
    bench.submit("chat/after")
    assert [bench.lease().id for _ in range(3)] == ["chat/before", "chat/suspect", "chat/after"]


def test_a_boot_that_speaks_again_takes_its_strikes_back(bench: Bench) -> None:
    make_suspects(bench, "chat/a")
    assert (bench.row("chat/a").lane, bench.row("chat/a").strikes) == ("suspect", 2)
    bench.renew("dies too")
    row = bench.row("chat/a")
    assert (row.lane, row.strikes, row.faults, row.state) == ("any", 1, 1, JobState.QUEUED)
    assert bench.queue.depths().suspects == 0
    # The first strike is another's, and its time has passed: the job was claimed since.
    bench.renew("dies")
    assert bench.row("chat/a").strikes == 1
    assert bench.lease().id == "chat/a"


def test_a_strike_stands_once_the_job_was_claimed_again(bench: Bench) -> None:
    bench.submit("chat/a")
    crash(bench, "slow", after=0)
    bench.lease("B")
    bench.renew("slow")
    assert bench.row("chat/a").strikes == 1
    assert bench.row("chat/a").state is JobState.RUNNING
    assert bench.raw.exists(f"{bench.keys.prefix}struck:slow") == 0


def test_a_claim_of_the_same_boot_forgives_before_it_takes(bench: Bench) -> None:
    bench.submit("chat/a")
    crash(bench, "slow", after=0)
    assert bench.row("chat/a").strikes == 1
    assert bench.lease("slow").id == "chat/a"
    assert bench.row("chat/a").strikes == 0


def test_a_worker_that_leaves_in_order_is_forgiven_too(bench: Bench) -> None:
    bench.submit("chat/a")
    crash(bench, "slow", after=0)
    bench.queue.unregister("slow")
    assert bench.row("chat/a").strikes == 0


def test_nobody_is_woken_by_a_suspect_while_another_runs(bench: Bench) -> None:
    make_suspects(bench, "chat/a")
    bench.submit("chat/b")
    bench.lease("A")
    bench.claim("boot1")
    bench.clock.move(LEASE_S * 0.4)
    assert bench.wake_tokens("suspect") == 0
