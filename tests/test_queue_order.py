"""Q6: priorities, and turns of tenants by what their jobs cost. Fairness is measured in served cost, by claims."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from headpond.jobs import Priority
from headpond.operations import Entry, Lease
from queue_bench import Bench, entry, lease_key

LARGEST = 400
FLOOD_JOBS = 500


def owner(lease: Lease) -> str:
    return lease.id.removeprefix("chat/").partition("-")[0]


def jobs_of(tenant: str, costs: list[int], **options: object) -> list[Entry]:
    return [entry(f"chat/{tenant}-{n:04}", tenant=tenant, cost=cost, **options) for n, cost in enumerate(costs)]


def served(bench: Bench, costs: dict[str, int]) -> Iterator[tuple[Lease, int]]:
    """One worker with one slot: each job that it claims with its cost; it runs until the next is asked for."""
    while leases := bench.claim().leases:
        (lease,) = leases
        yield lease, costs[lease.id]
        bench.finish(lease, offset=0)


def test_a_more_urgent_band_is_claimed_first(bench: Bench) -> None:
    bench.submit("chat/batch", band=Priority.BATCH)
    bench.submit("chat/normal")
    bench.submit("chat/interactive", band=Priority.INTERACTIVE)
    ids = [bench.lease().id for _ in range(3)]
    assert ids == ["chat/interactive", "chat/normal", "chat/batch"]


def test_the_batch_band_has_one_of_eight_claims_and_all_of_them_where_nothing_else_waits(bench: Bench) -> None:
    bench.submit(*(f"chat/batch-{n}" for n in range(20)), band=Priority.BATCH)
    bench.submit(*(f"chat/normal-{n}" for n in range(28)))
    owners = [owner(lease) for _ in range(48) for lease in bench.claim().leases]
    assert [n + 1 for n, name in enumerate(owners[:32]) if name == "batch"] == [8, 16, 24, 32]
    assert owners[32:] == ["batch"] * 16


def test_one_claim_of_many_slots_takes_turns_as_many_claims_would(bench: Bench) -> None:
    bench.submit(*(f"chat/batch-{n}" for n in range(5)), band=Priority.BATCH)
    bench.submit(*(f"chat/a-{n}" for n in range(30)), tenant="a")
    bench.submit(*(f"chat/b-{n}" for n in range(30)), tenant="b")
    turns = Counter(owner(lease) for lease in bench.claim(slots=24).leases)
    assert turns["batch"] == 3
    assert abs(turns["a"] - turns["b"]) <= 1


def test_jobs_of_one_tenant_keep_their_order_whatever_they_cost(bench: Bench) -> None:
    entries = jobs_of("t", [500, 1, 70, 1, 300])
    bench.queue.submit(entries)
    assert [lease.id for lease in bench.claim(slots=5).leases] == [e.id for e in entries]


def test_bands_have_turns_of_their_own(bench: Bench) -> None:
    bench.queue.submit(jobs_of("busy", [100] * 20))
    for _ in range(20):
        bench.finish(bench.lease(), offset=0)
    # What a tenant had in one band is not held against it in another.
    bench.queue.submit(jobs_of("busy", [100], band=Priority.INTERACTIVE)[:1])
    assert bench.submit("chat/busy-x", tenant="busy", band=Priority.INTERACTIVE)
    bench.submit("chat/other-x", tenant="other", band=Priority.INTERACTIVE)
    assert {owner(lease) for lease in bench.claim(slots=2).leases} == {"busy", "other"}


@pytest.mark.parametrize("seed", range(3))
def test_a_job_beside_a_flood_waits_for_one_largest_job_at_most(bench: Bench, seed: int) -> None:
    """Who asks for no more than a share of his own waits for the rest of the job that runs; alone, for nothing."""
    draw = random.Random(seed)
    flood = jobs_of("flood", [draw.randint(1, LARGEST) for _ in range(FLOOD_JOBS)])
    costs = {e.id: e.cost for e in flood}
    for start in range(0, FLOOD_JOBS, 100):
        bench.queue.submit(flood[start : start + 100])
    waits: list[int] = []
    waited: int | None = None
    owed = 0
    for lease, cost in served(bench, costs):
        if owner(lease) == "calm":
            assert waited is not None
            waits.append(waited)
            waited, owed = None, cost
            continue
        owed -= cost
        if waited is not None:
            waited += cost
        elif owed <= 0 and draw.random() < 0.3:
            # It comes while this job runs, at a random time of it.
            new = entry(f"chat/calm-{len(waits)}", tenant="calm", cost=draw.randint(1, LARGEST))
            bench.queue.submit([new])
            costs[new.id], waited = new.cost, draw.randint(0, cost)
    assert len(waits) > 50
    assert max(waits) <= LARGEST


@pytest.mark.parametrize("weight", [1.0, 3.0, 0.25])
def test_a_tenant_beside_a_flood_is_served_its_share_to_within_one_largest_job(bench: Bench, weight: float) -> None:
    bench.register("A", weights={"calm": weight})
    draw = random.Random(7)
    flood = jobs_of("flood", [draw.randint(1, LARGEST) for _ in range(FLOOD_JOBS)])
    calm = jobs_of("calm", [draw.randint(1, LARGEST) for _ in range(60)])
    costs = {e.id: e.cost for e in (*flood, *calm)}
    for start in range(0, FLOOD_JOBS, 100):
        bench.queue.submit(flood[start : start + 100])
    head = served(bench, costs)
    for _ in range(20):
        next(head)
    bench.queue.submit(calm)
    got, share = Counter[str](), weight / (1 + weight)
    lags = []
    for lease, cost in head:
        got[owner(lease)] += cost
        lags.append(share * got.total() - got["calm"])
        if lease.id == calm[-1].id or lease.id == flood[-1].id:
            break
    assert len(lags) > 60
    assert max(lags) <= LARGEST
    assert got["calm"] > 20 * LARGEST * share / 2


def test_weights_are_those_of_the_worker_that_registered_last(bench: Bench) -> None:
    bench.register("A", weights={"a": 9.0})
    bench.register("A", weights={"b": 2.0})
    bench.queue.submit(jobs_of("a", [10] * 30) + jobs_of("b", [10] * 30))
    turns = Counter(owner(lease) for lease in bench.claim(slots=24).leases)
    assert turns in ({"a": 8, "b": 16}, {"a": 9, "b": 15})
    assert bench.raw.hgetall(bench.keys.named("weights")) == {b"b": b"2.0"}


def test_who_is_paid_up_is_forgotten(bench: Bench) -> None:
    for n in range(300):
        bench.submit(f"chat/tenant{n}-x", tenant=f"tenant{n}")
        bench.finish(bench.lease(), offset=0)
    assert bench.raw.zcard(f"{bench.keys.prefix}fair:normal") < 5


def test_who_had_an_idle_queue_to_himself_is_not_held_back_afterwards(bench: Bench) -> None:
    bench.submit("chat/alone-0", tenant="alone", cost=100_000)
    bench.finish(bench.lease(), offset=0)
    bench.queue.submit(jobs_of("alone", [10] * 20) + jobs_of("new", [10] * 20))
    assert Counter(owner(lease) for lease in bench.claim(slots=20).leases) == {"alone": 10, "new": 10}


@pytest.mark.parametrize("still", ["runs", "waits", "waits in a lane"])
def test_what_is_owed_is_owed_as_long_as_something_runs_or_waits(bench: Bench, still: str) -> None:
    bench.submit("chat/still-0", tenant="still", pinned="v2" if still == "waits in a lane" else "")
    bench.submit("chat/busy-first", tenant="busy", cost=100_000)
    for lease in bench.claim(slots=2).leases:
        if owner(lease) == "busy":
            bench.finish(lease, offset=0)
        elif still == "waits":
            bench.queue.park([lease_key(lease)])
    bench.queue.submit(jobs_of("busy", [10] * 20) + jobs_of("new", [10] * 20))
    assert {owner(lease) for lease in bench.claim(slots=20).leases} <= {"new", "still"}


@pytest.mark.parametrize("end", ["cancelled", "expired"])
def test_jobs_that_ended_unserved_are_not_paid_for(bench: Bench, end: str) -> None:
    bench.register("A", weights={"fickle": 2.0})
    bench.queue.submit(jobs_of("steady", [10] * 60))
    gone = jobs_of("fickle", [1000] * 50, deadline_s=1 if end == "expired" else None)
    bench.queue.submit(gone)
    if end == "cancelled":
        for e in gone:
            bench.queue.cancel(e.id)
    bench.clock.move(1)
    bench.queue.tick()
    assert {bench.row(e.id).state.value for e in gone} == {end}
    bench.submit("chat/fickle-after", tenant="fickle", cost=10)
    assert "fickle" in {owner(lease) for lease in bench.claim(slots=2).leases}


def test_a_job_that_was_cancelled_while_it_ran_is_paid_for(bench: Bench) -> None:
    bench.queue.submit(jobs_of("greedy", [1000]))
    greedy = bench.lease()
    bench.queue.submit(jobs_of("steady", [10] * 30))
    bench.queue.cancel(greedy.id)
    bench.submit("chat/greedy-after", tenant="greedy", cost=10)
    assert {owner(lease) for lease in bench.claim(slots=29).leases} == {"steady"}
