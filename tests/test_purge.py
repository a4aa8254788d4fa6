"""Purging jobs from Redis: whatever their state, nothing is left of them, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from headpond import JobState, upkeep
from headpond.errors import PurgeRefused
from headpond.jobs import Priority
from headpond.operations import LeaseStatus, Retention
from headpond.purging import await_clean, owned_jobs, purge_jobs, tenant_sessions
from headpond.upkeep import Owner
from queue_bench import Bench, entry, lease_key, tokens

Bring = Callable[[Bench], None]


def _queued(bench: Bench) -> None:
    bench.submit("m/a", tenant="acme")


def _delayed(bench: Bench) -> None:
    bench.submit("m/a", delay_s=60, deadline_s=90)


def _running(bench: Bench) -> None:
    bench.submit("m/a", band=Priority.BATCH, deadline_s=90)
    bench.append(bench.lease("A"), tokens(0, 3))


def _finished(bench: Bench) -> None:
    bench.submit("m/a")
    lease = bench.lease("A")
    bench.append(lease, tokens(0, 3))
    bench.queue.finish("m/a", lease.fence, offset=3, state=JobState.FINISHED, result=b"the answer")


def _struck(bench: Bench) -> None:
    bench.submit("m/a")
    bench.lease("A")
    bench.let_leases_end()


def _suspect(bench: Bench) -> None:
    _struck(bench)
    bench.lease("B")
    bench.let_leases_end()
    assert bench.row("m/a").lane == "suspect"


def _dead(bench: Bench) -> None:
    _suspect(bench)
    bench.lease("C")
    bench.let_leases_end()
    assert bench.row("m/a").state is JobState.DEAD


def _damaged(bench: Bench) -> None:
    bench.submit("m/a")
    bench.raw.hset(bench.keys.named("run"), "m/a", b"\xc1")


@pytest.mark.parametrize(
    "bring", [_queued, _delayed, _running, _finished, _struck, _suspect, _dead, _damaged], ids=lambda f: f.__name__
)
def test_nothing_is_left_of_a_purged_job_and_all_of_the_others(bench: Bench, bring: Bring) -> None:
    bring(bench)
    bench.submit("m/other")
    done = purge_jobs(bench.queue, ["m/a"])
    assert (done.jobs, done.in_redis, done.through) == (1, 1, "")
    assert "m/a'" not in repr(bench.dump())
    assert "the answer" not in repr(bench.dump())
    assert bench.queue.ids() == ["m/other"]
    assert bench.lease("D").id == "m/other"
    assert purge_jobs(bench.queue, ["m/a"]).in_redis == 0


def test_a_worker_whose_job_is_purged_is_fenced_and_told_at_once(bench: Bench) -> None:
    bench.submit("m/a")
    lease = bench.lease("A")
    purge_jobs(bench.queue, ["m/a"])
    assert bench.server.read("LLEN", bench.keys.notice("A")) == 1
    assert bench.append(lease, tokens(0, 1)).status is LeaseStatus.FENCED
    assert bench.renew("A", lease) == [LeaseStatus.FENCED]
    assert bench.finish(lease, offset=1).status is LeaseStatus.FENCED
    assert bench.queue.park([lease_key(lease)]) == [LeaseStatus.FENCED]
    assert bench.queue.ids() == []


def test_a_purged_suspect_lets_the_next_one_run(bench: Bench) -> None:
    bench.submit("m/a", "m/b")
    for boot in ("A", "B"):
        bench.claim(boot, slots=2)
        bench.let_leases_end()
    (running,) = bench.claim("C", slots=2).leases
    purge_jobs(bench.queue, [running.id])
    assert bench.wake_tokens("suspect") == 1
    assert bench.lease("D").id != running.id


def test_an_id_that_was_purged_may_be_submitted_anew(bench: Bench) -> None:
    bench.submit("m/a")
    purge_jobs(bench.queue, ["m/a"])
    bench.submit("m/a", digest="another")
    assert bench.lease("A").id == "m/a"


def test_a_tenants_jobs_are_found_in_pages_among_others(bench: Bench) -> None:
    bench.queue.submit([entry(f"m/a{n}", tenant="acme") for n in range(600)])
    bench.queue.submit([entry(f"m/b{n}", tenant="acm") for n in range(600)])
    bench.raw.hset(bench.keys.named("data"), "m/b7", b"\xc1")
    assert set(owned_jobs(bench.queue, Owner.TENANT, "acme")) == {f"m/a{n}" for n in range(600)}
    assert purge_jobs(bench.queue, owned_jobs(bench.queue, Owner.TENANT, "acme")).in_redis == 600
    assert len(bench.queue.ids()) == 600
    assert set(owned_jobs(bench.queue, Owner.TENANT, "acme")) == set()


def test_a_job_that_is_purged_leaves_its_session_to_the_next_one(bench: Bench) -> None:
    bench.queue.submit([entry("m/a", session="s"), entry("m/b", session="s"), entry("m/c", session="other")])
    lease = bench.lease("A")
    assert lease.id == "m/a"
    assert set(owned_jobs(bench.queue, Owner.SESSION, "s")) == {"m/a", "m/b"}
    purge_jobs(bench.queue, ["m/a"])
    assert bench.queue.session_jobs("s") == ["m/b"]
    assert {each.id for each in bench.claim("B", slots=2).leases} == {"m/b", "m/c"}


def test_a_session_is_purged_with_its_jobs_and_one_in_use_is_not(bench: Bench) -> None:
    bench.queue.submit([entry("m/a", session="s", tenant="acme"), entry("m/b", session="s", tenant="acme")])
    bench.queue.cancel("m/a")
    assert bench.queue.session_row("s") is not None
    assert tenant_sessions(bench.queue, "acme") == ["s"]
    assert tenant_sessions(bench.queue, "other") == []
    with pytest.raises(PurgeRefused, match="a job of the session 's'"):
        purge_jobs(bench.queue, ["m/a"], sessions=["s"])
    purge_jobs(bench.queue, owned_jobs(bench.queue, Owner.SESSION, "s"), sessions=["s", "unknown"])
    assert bench.queue.session_row("s") is None
    assert bench.queue.ids() == []


def test_with_storage_each_purge_is_journaled_and_awaited(stored: Bench) -> None:
    stored.submit("m/a")
    done = purge_jobs(stored.queue, ["m/a", "m/unknown"])
    assert (done.jobs, done.in_redis) == (2, 1)
    drops = [each for each in stored.queue.journal(limit=9) if each.kind == "drop"]
    assert [each.job_id for each in drops] == ["m/a", "m/unknown"]
    assert stored.queue.meta()["purged"] == done.through == drops[-1].journal_id
    assert not await_clean(stored.queue, done.through, timeout_s=0)
    inc = int(stored.queue.meta()["inc"])
    assert not stored.queue.run(upkeep.mark_clean(inc=inc - 1, through=done.through))
    assert stored.queue.run(upkeep.mark_clean(inc=inc, through=done.through))
    assert await_clean(stored.queue, done.through, timeout_s=0)
    assert stored.queue.run(upkeep.mark_clean(inc=inc, through=drops[0].journal_id))
    assert stored.queue.meta()["clean"] == done.through


def test_a_server_that_went_back_in_time_is_not_waited_for(stored: Bench) -> None:
    stored.submit("m/a")
    done = purge_jobs(stored.queue, ["m/a"])
    stored.raw.hincrby(stored.keys.named("meta"), "inc", 5)
    with pytest.raises(PurgeRefused, match="gone back in time"):
        await_clean(stored.queue, done.through, timeout_s=60)


@pytest.mark.parametrize("state", ["restoring", "reconciling"])
def test_nothing_is_purged_while_a_restore_goes_on(stored: Bench, state: str) -> None:
    stored.submit("m/a")
    stored.raw.hset(stored.keys.named("meta"), "state", state)
    with pytest.raises(PurgeRefused, match=state):
        purge_jobs(stored.queue, ["m/a"])
    assert stored.queue.ids() == ["m/a"]


def _ended_for_s(bench: Bench, job_id: str) -> float:
    score = bench.raw.zscore(bench.keys.named("ended"), job_id)
    assert isinstance(score, float)
    return (score - bench.clock.now_ms) / 1000


def test_an_ended_job_is_kept_as_long_as_its_tenants_are(bench: Bench) -> None:
    bench.register("A", tenant_retention={"acme": Retention(7.0), "other": Retention(9.0)}, weights={"acme": 2.0})
    bench.queue.submit([entry("m/a", tenant="acme"), entry("m/b", tenant="nobody"), entry("m/c")])
    for name in ("m/a", "m/b", "m/c"):
        bench.queue.cancel(name)
    assert [_ended_for_s(bench, name) for name in ("m/a", "m/b", "m/c")] == [7.0, 100.0, 100.0]
    bench.register("A", weights={"acme": 2.0})
    bench.submit("m/d", tenant="acme")
    bench.queue.cancel("m/d")
    assert _ended_for_s(bench, "m/d") == 100.0
    assert bench.raw.hgetall(bench.keys.named("weights")) == {b"acme": b"2.0"}
    bench.ticks(8)
    assert "m/a" not in bench.queue.ids()


def test_with_storage_a_tenants_time_begins_with_the_commit(stored: Bench) -> None:
    stored.register("A", tenant_retention={"acme": Retention(7.0, 30.0, 50.0)}, storage_retention_s=3.0)
    stored.submit("m/a", tenant="acme")
    stored.queue.cancel("m/a")
    (_, end) = stored.queue.journal(limit=9)
    inc = int(stored.queue.meta()["inc"])
    assert stored.queue.run(upkeep.trim(inc=inc, through=end.journal_id, ended=["m/a"]))
    assert _ended_for_s(stored, "m/a") == 7.0
    assert stored.raw.hgetall(stored.keys.named("retention")) == {b"acme": b"7000 30000 50000"}
    assert stored.queue.meta()["storage_retention_ms"] == "3000"
