"""Q8: what a live worker no longer names, and a server that was away."""

from __future__ import annotations

from headpond import JobState
from headpond.operations import Lease, LeaseStatus
from queue_bench import Bench, tokens
from queue_holes.hole import Ground, Hole, LuaCut

PAUSE_S = 15.0


def job_that_its_live_worker_forgot(ground: Ground) -> object:
    """State of the job after the renewal that does not name it, and the strikes that it has cost in the end."""
    bench = ground.bench()
    bench.submit("chat/named", "chat/forgotten")
    named, forgotten = bench.claim(slots=2).leases
    bench.renew("A", named)
    state = bench.row(forgotten.id).state
    for _ in range(3):
        bench.clock.move(4)
        bench.renew("A", named)
    return state, bench.row(forgotten.id).strikes


def job_of_a_claim_on_its_way(ground: Ground) -> object:
    """Status of the lease that a renewal could not name yet: the reply of its claim was on the way."""
    bench = ground.bench()
    bench.submit("chat/a")
    lease = bench.lease()
    bench.renew("A", last_seq=0)
    return bench.append(lease, tokens(0, 1)).status


def held_after(bench: Bench, boot: str, leases: list[Lease]) -> list[Lease]:
    statuses = bench.renew(boot, *leases)
    return [lease for lease, status in zip(leases, statuses, strict=True) if status is LeaseStatus.OK]


def eight_jobs_over_pauses_of_the_server(ground: Ground) -> object:
    """Of eight jobs on two live workers: how many are quarantined, and how many strikes the first pause gave."""
    bench = ground.bench()
    bench.register("B")
    bench.submit(*(f"chat/{n}" for n in range(8)))
    boots = ["A", "B"]
    held = {boot: list(bench.claim(boot, slots=4).leases) for boot in boots}
    strikes: list[int] = []
    for pause in range(18):
        bench.clock.move(PAUSE_S)
        # The one who comes first asks for more before the other has said that it lives.
        first, other = boots if pause % 2 == 0 else reversed(boots)
        held[first] += bench.claim(first, slots=8).leases
        strikes.append(sum(bench.row(job_id).strikes for job_id in bench.queue.ids()))
        for boot in (first, other):
            held[boot] = held_after(bench, boot, held[boot])
    return int(bench.queue.meta().get("count:dead", 0)), strikes[0]


def lease_after_the_clock_went_back(ground: Ground) -> object:
    """Whether a dead worker's job comes back in good time where the server's clock went back by an hour."""
    bench = ground.bench()
    bench.submit("chat/a")
    bench.lease()
    bench.clock.move(-3600)
    for _ in range(6):
        bench.queue.tick()
        bench.clock.move(4)
    return bench.row("chat/a").state


HOLES = [
    Hole(
        "a lease that its live worker does not name lives on",
        "Q8",
        job_that_its_live_worker_forgot,
        kept=(JobState.QUEUED, 0),
        broken=(JobState.RUNNING, 0),
        cuts=(LuaCut("renew.lua", "if not named[id .. '\\n' .. fence] and", "if false and"),),
    ),
    Hole(
        "a renewal takes back the lease of a claim whose reply is on its way",
        "Q8",
        job_of_a_claim_on_its_way,
        kept=LeaseStatus.APPENDED,
        broken=LeaseStatus.FENCED,
        cuts=(LuaCut("renew.lua", " and tonumber(its_seq) <= last_seq then", " then"),),
    ),
    Hole(
        "pauses of the server quarantine innocents",
        "Q8",
        eight_jobs_over_pauses_of_the_server,
        kept=(0, 0),
        broken=(8, 4),
        cuts=(LuaCut("parts/sweep.lua", "if back or (late and not graced) then", "if back then"),),
    ),
    Hole(
        "a clock that goes back keeps a dead worker's job",
        "Q8",
        lease_after_the_clock_went_back,
        kept=JobState.QUEUED,
        broken=JobState.RUNNING,
        cuts=(LuaCut("parts/sweep.lua", "if back or (late and not graced) then", "if late and not graced then"),),
    ),
]
