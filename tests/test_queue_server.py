"""Q2: the server can go back in time, and a queue with storage is closed until its persister opens it."""

from __future__ import annotations

from pathlib import Path

import pytest

import headpond
from headpond import JobState, upkeep
from headpond import operations as ops
from headpond.operations import Claimed, Submitted
from headpond.scripts import load_script
from headpond.wire import (
    Rewound,
)
from headpond_workers.supervision.embedded_valkey import ValkeyProcess
from queue_bench import RETENTION_S, Bench, Clock, bench_on, entry

LUA = Path(headpond.__file__).parent / "lua"


def test_a_restarted_server_gets_a_higher_incarnation_before_its_first_command(
    own: Bench, valkey: ValkeyProcess
) -> None:
    own.submit("chat/a")
    before = own.queue.meta()
    valkey.kill()
    valkey.start()
    assert own.queue.run_row("chat/a") is not None
    after = own.queue.meta()
    assert int(after["inc"]) > int(before["inc"])
    assert after["run_id"] != before["run_id"]
    lease = own.lease()
    assert lease.gen >= int(after["inc"])
    assert own.events("chat/a")[0][1] == Rewound(0, "the server restarted")


@pytest.mark.parametrize("name", sorted(path.stem for path in LUA.glob("*.lua")))
def test_every_script_is_one_that_the_server_can_run(bench: Bench, name: str) -> None:
    """Lua has room for 200 locals in a function, and the parts alone take most of them."""
    script = load_script(name)
    assert bench.server.read("SCRIPT", "LOAD", script.source) == script.sha.encode()


def test_a_new_connection_to_the_same_server_leaves_the_incarnation(bench: Bench) -> None:
    before = bench.dump()
    bench.clock.move(5)
    bench.server.redis.connection_pool.disconnect()
    bench.queue.ids()
    assert bench.dump() == before


def test_a_blocking_connection_writes_nothing_and_so_says_no_hello(own: Bench, valkey: ValkeyProcess) -> None:
    before = int(own.queue.meta()["inc"])
    waiter = own.queue.waiter()
    try:
        valkey.kill()
        valkey.start()
        assert waiter.wait(0.01) is False
        assert int(own.raw.hget(own.keys.named("meta"), "inc") or 0) == before
        own.queue.tick()
        assert int(own.raw.hget(own.keys.named("meta"), "inc") or 0) > before
    finally:
        waiter.close()


def test_a_wiped_server_is_met_anew(own: Bench) -> None:
    own.submit("chat/a")
    own.raw.flushall()
    own.clock.move(1)
    assert own.submit("chat/a") == [Submitted.NEW]
    meta = own.queue.meta()
    assert meta["state"] == "open"
    assert int(meta["inc"]) == own.clock.now_ms
    assert own.lease().id == "chat/a"


def test_a_wiped_server_with_storage_is_closed_again(own: Bench) -> None:
    queue = own.server.queue("stored", storage=True)
    queue.run(upkeep.open_queue("claim", lineage="L"))
    assert queue.run(upkeep.open_queue("open", lineage="L")) == ("L", "open")
    own.raw.flushall()
    assert queue.submit([entry("stored/a")]) == [Submitted.NEW]
    assert queue.claim("A", seq=1, nonce="n", slots=1) == Claimed("closed", None, ())


def test_an_incarnation_rises_above_all_generations_where_the_clock_stands_still(bench: Bench) -> None:
    before = int(bench.queue.meta()["inc"])
    assert bench.queue.run(ops.hello("one more", storage=False)) == (before + 1000, "open")
    bench.clock.move(-3600)
    assert bench.queue.run(ops.hello("and another", storage=False)) == (before + 2000, "open")


def test_a_restart_notes_up_to_where_the_journal_went(stored: Bench) -> None:
    stored.submit("chat/a", "chat/b")
    last = stored.queue.journal(limit=10)[-1].journal_id
    stored.queue.run(ops.hello("restarted", storage=True))
    assert stored.queue.meta()["rolled_to"] == last
    stored.submit("chat/c")
    after = stored.queue.journal(limit=10)[-1].journal_id
    assert int(after.partition("-")[0]) == int(stored.queue.meta()["inc"]) > int(last.partition("-")[0])


def test_a_queue_without_storage_is_open_from_its_first_use(bench: Bench) -> None:
    assert bench.queue.meta()["state"] == "open"
    bench.submit("chat/a")
    assert bench.lease().id == "chat/a"


def test_a_worker_that_claims_in_vain_from_a_closed_queue_serves_its_version(shared_url: str) -> None:
    bench = bench_on(shared_url, Clock(), storage=True)
    try:
        bench.register("A", lease_s=2.0, version_wait_s=20.0)
        bench.submit("chat/pinned", pinned="v1")
        # Without leases it renews seldom: its claims say that it lives, and others sweep meanwhile.
        for second in range(60):
            bench.clock.move(1)
            bench.queue.tick()
            if second % 2:
                assert bench.claim().state == "closed"
        assert bench.row("chat/pinned").state is JobState.QUEUED
        for _ in range(60):
            bench.clock.move(1)
            bench.queue.tick()
        assert bench.row("chat/pinned").state is JobState.FAILED
    finally:
        bench.server.close()
        bench.raw.close()


def test_an_empty_queue_with_storage_is_closed_until_its_persister_opens_it(shared_url: str) -> None:
    bench = bench_on(shared_url, Clock(), storage=True)
    try:
        bench.register("A")
        assert bench.submit("chat/a") == [Submitted.NEW]
        assert bench.claim() == Claimed("closed", None, ())
        bench.queue.tick()
        assert bench.claim() == Claimed("closed", None, ())
        assert bench.row("chat/a").state is JobState.QUEUED
        # No lineage yet: nobody may open it.
        assert bench.queue.run(upkeep.open_queue("open", lineage="L")) == ("", "closed")
        assert bench.queue.run(upkeep.open_queue("claim", lineage="L")) == ("L", "closed")
        assert bench.queue.run(upkeep.open_queue("claim", lineage="other")) == ("L", "closed")
        assert bench.queue.run(upkeep.open_queue("open", lineage="other")) == ("L", "closed")
        assert bench.claim().leases == ()
        assert bench.queue.run(upkeep.open_queue("open", lineage="L")) == ("L", "open")
        assert bench.wake_tokens() == 1
        assert bench.lease().id == "chat/a"
        assert bench.queue.run(upkeep.open_queue("close", reason="a restore runs")) == ("L", "closed")
        assert bench.queue.meta()["closed_reason"] == "a restore runs"
    finally:
        bench.server.close()
        bench.raw.close()


def test_storage_that_comes_later_journals_every_job_that_is_there(bench: Bench) -> None:
    bench.submit("chat/ended", "chat/waits")
    bench.finish(bench.lease(), offset=0)
    assert bench.queue.journal_length() == 0
    bench.server.queue(bench.queue.name, storage=True)
    kinds = sorted((e.kind, e.job_id) for e in bench.queue.journal(limit=10))
    assert kinds == [("end", "chat/ended"), ("submit", "chat/ended"), ("submit", "chat/waits")]
    # What is not committed may not be dropped.
    bench.clock.move(RETENTION_S + 1)
    bench.queue.tick()
    assert bench.row("chat/ended").state is JobState.FINISHED
