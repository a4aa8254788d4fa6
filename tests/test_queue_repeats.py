"""Q1: repeating any call gives the same reply and the same state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from headpond import JobState, upkeep
from headpond import operations as ops
from headpond.jobs import Priority
from headpond.operations import Append, LeaseStatus, Submitted
from queue_bench import Bench, entry, lease_key, tokens


def repeat_submit(b: Bench) -> Callable[[], Any]:
    return lambda: [x is Submitted.CONFLICT for x in b.submit("chat/a", "chat/b")]


def repeat_bounded_submit(b: Bench) -> Callable[[], Any]:
    b.submit("chat/a")
    return lambda: b.queue.submit([entry("chat/a"), entry("chat/b")], max_queued=1)


def repeat_claim(b: Bench) -> Callable[[], Any]:
    b.submit("chat/a", "chat/b", "chat/c")
    return lambda: b.queue.claim("A", seq=7, nonce="n", slots=2, fingerprint="f")


def repeat_claim_over_bands(b: Bench) -> Callable[[], Any]:
    b.submit("chat/a", "chat/b", cost=100)
    b.submit("chat/c", "chat/d", band=Priority.INTERACTIVE, cost=300)
    b.submit(*(f"chat/{n}" for n in range(9)), tenant="t", band=Priority.BATCH)
    return lambda: b.queue.claim("A", seq=7, nonce="n", slots=13, fingerprint="f")


def repeat_claim_that_settles_a_late_lease_with_a_gap(b: Bench) -> Callable[[], Any]:
    b.submit("chat/a", "chat/b")
    lease = b.lease("A")
    b.ticks(4.9, 4.9)
    b.clock.move(0.2)
    over = ops.Settlement(*lease_key(lease), ops.Settle.FINISHED, offset=5)
    return lambda: b.queue.claim("A", seq=7, nonce="n", slots=2, version="v1", fingerprint="f", settle=[over])


def repeat_claim_that_settles_a_gap_after_a_silence(b: Bench) -> Callable[[], Any]:
    b.submit("chat/a", "chat/b")
    lease = b.lease("A")
    b.clock.move(7)
    over = ops.Settlement(*lease_key(lease), ops.Settle.FINISHED, offset=5)
    return lambda: b.queue.claim("A", seq=7, nonce="n", slots=2, version="v1", fingerprint="f", settle=[over])


def repeat_empty_claim(b: Bench) -> Callable[[], Any]:
    return lambda: b.queue.claim("A", seq=7, nonce="n", slots=2, fingerprint="f")


def repeat_claim_of_a_bound_job(b: Bench) -> Callable[[], Any]:
    b.submit("chat/a")
    lease = b.lease()
    b.append(lease, tokens(0, 5))
    b.queue.park([(lease.id, lease.fence)], strike=False)
    return lambda: b.queue.claim("B", seq=1, nonce="n", slots=2, fingerprint="another")


def repeat_renew(b: Bench) -> Callable[[], Any]:
    b.submit("chat/a", "chat/b", "chat/c")
    kept, unnamed, cancelled = b.claim(slots=3).leases
    b.queue.cancel(cancelled.id)
    assert unnamed.id == "chat/b"
    return lambda: b.renew("A", kept, cancelled)


def repeat_renew_that_is_late(b: Bench) -> Callable[[], Any]:
    b.submit("chat/a")
    lease = b.lease("B")
    b.ticks(4.9, 4.9)
    b.clock.move(0.2)
    return lambda: b.renew("B", lease)


def repeat_renew_that_gives_back_an_urgent_job(b: Bench) -> Callable[[], Any]:
    b.submit("chat/batch", band=Priority.BATCH)
    batch = b.lease()
    b.append(batch, tokens(0, 60))
    b.submit("chat/urgent", band=Priority.INTERACTIVE)
    b.lease()
    return lambda: b.queue.renew("A", last_seq=2, row=b"", pairs=[lease_key(batch)], full_version="v1")


def repeat_renew_of_a_job_that_was_told_long_ago(b: Bench) -> Callable[[], Any]:
    b.submit("chat/a", "chat/b", band=Priority.BATCH)
    one, other = b.claim(slots=2).leases
    b.queue.append([Append(x.id, x.fence, tokens(0, 60)) for x in (one, other)])
    b.submit("chat/urgent", band=Priority.INTERACTIVE)
    pairs = [lease_key(one), lease_key(other)]
    told = b.queue.renew("A", last_seq=1, row=b"", pairs=pairs, full_version="v1")
    assert told == [LeaseStatus.PREEMPT, LeaseStatus.OK]
    b.ticks(3, 3)
    return lambda: b.queue.renew("A", last_seq=1, row=b"", pairs=pairs, full_version="v1")


def repeat_append(b: Bench) -> Callable[[], Any]:
    b.submit("chat/a", "chat/b")
    one, other = b.claim(slots=2).leases
    both = [Append(one.id, one.fence, tokens(0, 3)), Append(other.id, other.fence, tokens(0, 2))]
    return lambda: b.queue.append(both)


def repeat_append_with_a_gap(b: Bench) -> Callable[[], Any]:
    b.submit("chat/a")
    lease = b.lease()
    return lambda: b.append(lease, tokens(4, 6))


def repeat_finish(b: Bench) -> Callable[[], Any]:
    b.submit("chat/a")
    lease = b.lease()
    b.append(lease, tokens(0, 3))
    return lambda: b.finish(lease, offset=3)


def repeat_failed_finish(b: Bench) -> Callable[[], Any]:
    b.submit("chat/a")
    lease = b.lease()
    return lambda: b.finish(lease, offset=0, state=JobState.FAILED)


def repeat_park(b: Bench) -> Callable[[], Any]:
    b.submit("chat/a", "chat/b")
    one, other = b.claim(slots=2).leases
    b.queue.cancel(other.id)
    return lambda: b.queue.park([(one.id, one.fence), (other.id, other.fence)], strike=True)


def repeat_cancel_of_a_waiting_job(b: Bench) -> Callable[[], Any]:
    b.submit("chat/a")
    return lambda: b.queue.cancel("chat/a")


def repeat_cancel_of_a_running_job(b: Bench) -> Callable[[], Any]:
    b.submit("chat/a")
    b.append(b.lease(), tokens(0, 2))
    return lambda: b.queue.cancel("chat/a")


def repeat_cancel_of_nothing(b: Bench) -> Callable[[], Any]:
    return lambda: b.queue.cancel("chat/none")


def repeat_tick(b: Bench) -> Callable[[], Any]:
    b.submit("chat/late", deadline_s=5)
    b.submit("chat/due", delay_s=1)
    b.submit("chat/run")
    b.lease()
    b.clock.move(2)
    b.queue.tick()
    b.clock.move(3)
    return b.queue.tick


def repeat_late_tick(b: Bench) -> Callable[[], Any]:
    b.submit("chat/a")
    b.lease()
    b.clock.move(40)
    return b.queue.tick


def repeat_hello(b: Bench) -> Callable[[], Any]:
    b.submit("chat/a")
    return lambda: b.queue.run(ops.hello("another server", storage=False))


def repeat_hello_with_storage(b: Bench) -> Callable[[], Any]:
    b.submit("chat/a")
    b.finish(b.lease(), offset=0)
    b.submit("chat/b")
    return lambda: b.queue.run(ops.hello("the same", storage=True))


def repeat_register(b: Bench) -> Callable[[], Any]:
    return lambda: b.register("A")


def repeat_unregister(b: Bench) -> Callable[[], Any]:
    b.submit("chat/a")
    b.lease()
    return lambda: b.queue.unregister("A")


def repeat_trim(b: Bench) -> Callable[[], Any]:
    b.queue.run(ops.hello("the same", storage=True))
    b.queue.run(upkeep.open_queue("claim", lineage="L"))
    b.queue.run(upkeep.open_queue("open", lineage="L"))
    b.submit("chat/a")
    b.finish(b.lease(), offset=0)
    last = b.queue.journal(limit=100)[-1].journal_id
    inc = int(b.queue.meta()["inc"])
    return lambda: b.queue.run(upkeep.trim(inc=inc, through=last, ended=["chat/a"]))


def repeat_open(b: Bench) -> Callable[[], Any]:
    b.queue.run(ops.hello("the same", storage=True))
    b.submit("chat/a")
    b.queue.run(upkeep.open_queue("claim", lineage="L"))
    return lambda: b.queue.run(upkeep.open_queue("open", lineage="L"))


def repeat_close(b: Bench) -> Callable[[], Any]:
    return lambda: b.queue.run(upkeep.open_queue("close", reason="being restored"))


@pytest.mark.parametrize(
    "prepare", [value for name, value in sorted(globals().items()) if name.startswith("repeat_")],
    ids=lambda f: f.__name__.removeprefix("repeat_"),
)  # fmt: skip
def test_a_repeated_call_gets_the_same_reply_and_changes_nothing(
    bench: Bench, prepare: Callable[[Bench], Callable[[], Any]]
) -> None:
    call = prepare(bench)
    first = call()
    state = bench.dump()
    assert call() == first
    assert bench.dump() == state
    assert state


def test_a_repeated_submit_is_known(bench: Bench) -> None:
    assert bench.submit("chat/a", "chat/b", "chat/a") == [Submitted.NEW, Submitted.NEW, Submitted.KNOWN]
    state = bench.dump()
    assert bench.submit("chat/a", "chat/b") == [Submitted.KNOWN, Submitted.KNOWN]
    assert bench.dump() == state


def test_a_repeated_park_is_told_parked_even_when_the_job_runs_elsewhere(bench: Bench) -> None:
    bench.submit("chat/a")
    lease = bench.lease("A")
    assert bench.queue.park([(lease.id, lease.fence)], strike=False) == [LeaseStatus.PARKED]
    bench.lease("B")
    state = bench.dump()
    assert bench.queue.park([(lease.id, lease.fence)], strike=False) == [LeaseStatus.PARKED]
    assert bench.dump() == state


def test_a_row_that_cannot_be_read_does_not_stop_the_queue(bench: Bench) -> None:
    bench.submit("chat/bad", "chat/good")
    bench.server.read("HSET", bench.keys.named("run"), "chat/bad", b"\xc1not a row")
    assert [lease.id for lease in bench.claim(slots=2).leases] == ["chat/good"]
    assert bench.queue.cancel("chat/bad") is None


def test_a_request_that_cannot_be_read_does_not_stop_the_queue_and_leaves_its_job_in_no_limbo(bench: Bench) -> None:
    bench.submit("chat/delayed", delay_s=1)
    bench.submit("chat/queued", "chat/good")
    for job_id in ("chat/delayed", "chat/queued"):
        bench.server.read("HSET", bench.keys.named("data"), job_id, b"\xc1not an entry")
    bench.clock.move(1)
    bench.queue.tick()
    assert bench.queue.cancel("chat/queued") is JobState.CANCELLED
    assert {lease.id for lease in bench.claim(slots=3).leases} == {"chat/delayed", "chat/good"}
