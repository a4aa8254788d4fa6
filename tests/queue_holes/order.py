"""Q4, Q6: what is taken in, and in which order jobs have their turn."""

from __future__ import annotations

from collections import Counter

from headpond.jobs import Priority
from queue_bench import Bench, entry, lease_key
from queue_holes.hole import Ground, Hole, LuaCut


def repeat_a_submit_of_a_full_queue(ground: Ground) -> object:
    bench = ground.bench()
    bench.queue.submit([entry("chat/a")], max_queued=1)
    return [answer.value for answer in bench.queue.submit([entry("chat/a"), entry("chat/b")], max_queued=1)]


def submit_of(bench: Bench, tenant: str, count: int, **options: object) -> None:
    for start in range(0, count, 50):
        ids = (f"chat/{tenant}-{bench.clock.now_ms}-{n}" for n in range(start, min(start + 50, count)))
        bench.submit(*ids, tenant=tenant, **options)


def tenants_of_claims(bench: Bench, count: int) -> Counter[str]:
    """Whose jobs the next claims get; each of them is finished."""
    tenants = Counter[str]()
    while tenants.total() < count:
        leases = bench.claim(slots=min(10, count - tenants.total())).leases
        assert leases, "nothing left to claim"
        for lease in leases:
            tenants[lease.id.removeprefix("chat/").partition("-")[0]] += 1
            bench.finish(lease, offset=0)
    return tenants


def share_of_a_tenant_from_before_an_empty_queue(ground: Ground) -> object:
    """How many of 200 claims go to a tenant who had 200 jobs before, the last of which still runs, beside one who is
    new."""
    bench = ground.bench()
    submit_of(bench, "old", 200)
    tenants_of_claims(bench, 199)
    bench.lease()
    bench.clock.move(1)
    submit_of(bench, "old", 200)
    submit_of(bench, "new", 200)
    return tenants_of_claims(bench, 200)["old"]


def order_after_a_return(ground: Ground) -> object:
    bench = ground.bench()
    bench.submit("chat/a")
    lease = bench.lease()
    bench.submit("chat/b", "chat/c")
    bench.queue.park([lease_key(lease)])
    return [lease.id for lease in bench.claim(slots=3).leases]


def batch_jobs_under_load(ground: Ground) -> object:
    """How many of 80 claims are of the batch band, while interactive jobs always wait."""
    bench = ground.bench()
    submit_of(bench, "batch", 50, band=Priority.BATCH)
    submit_of(bench, "urgent", 100, band=Priority.INTERACTIVE)
    return tenants_of_claims(bench, 80)["batch"]


def share_beside_delayed_jobs(ground: Ground) -> object:
    """How many of 33 claims go to a tenant of weight 1 whose jobs cost 10, beside one of weight 2 whose jobs cost 10
    and were delayed."""
    bench = ground.bench()
    bench.register("A", weights={"late": 2.0})
    submit_of(bench, "late", 60, cost=10, delay_s=1)
    bench.clock.move(1)
    bench.queue.tick()
    submit_of(bench, "calm", 60, cost=10)
    return tenants_of_claims(bench, 33)["calm"]


PROMOTION = "r[TAG] = fair_tag(r[BAND], header[3], header[6])\n      make_ready(id, r, now)"

FULL = "max_queued > 0 and queued >= max_queued"
BATCH_TURN = "batch_first and { 'batch', 'interactive', 'normal' } or"

HOLES = [
    Hole(
        "a repeat of an accepted submit is refused once the queue is full",
        "Q4",
        repeat_a_submit_of_a_full_queue,
        kept=["known", "full"],
        broken=["full", "full"],
        cuts=(LuaCut("submit.lua", "  if header then\n", f"  if header and not ({FULL}) then\n"),),
    ),
    Hole(
        "a tenant gets nothing after the queue was empty",
        "Q6",
        share_of_a_tenant_from_before_an_empty_queue,
        kept=99,
        broken=0,
        cuts=(
            LuaCut(
                "claim.lua",
                "    call('HSET', meta, unpack(set))",
                "    call('HSET', meta, unpack(set))\n"
                "    if not has_jobs('any') then call('HDEL', meta, 'v:interactive', 'v:normal', 'v:batch') end",
            ),
        ),
    ),
    Hole(
        "a job that comes back stands behind all that came later",
        "Q6",
        order_after_a_return,
        kept=["chat/a", "chat/b", "chat/c"],
        broken=["chat/b", "chat/c", "chat/a"],
        cuts=(
            LuaCut(
                "parts/ends.lua",
                "  else\n    make_ready(id, r, now)",
                "  else\n    r[TAG] = fair_tag(r[BAND], '', 1)\n    make_ready(id, r, now)",
            ),
        ),
    ),
    Hole(
        "batch jobs never have a turn under load",
        "Q6",
        batch_jobs_under_load,
        kept=10,
        broken=0,
        cuts=(LuaCut("claim.lua", f"{BATCH_TURN} BANDS", "BANDS"),),
    ),
    Hole(
        "a delayed job that comes due belongs to nobody",
        "Q6",
        share_beside_delayed_jobs,
        kept=11,
        broken=3,
        cuts=(LuaCut("parts/sweep.lua", PROMOTION, PROMOTION.replace("header[3], header[6]", "'', 1")),),
    ),
]
