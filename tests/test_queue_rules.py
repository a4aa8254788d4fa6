"""The rules that the queue keeps, each on a real server. Time is moved by the tests, not waited for."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from conftest import eventually
from headpond import AsyncClient, Client, JobState, upkeep
from headpond import operations as ops
from headpond.connections import RedisAddress
from headpond.errors import IdConflict, JobCancelled, JobGone, QueueFull
from headpond.folding import StreamFold, fold_tokens
from headpond.jobs import Chunk, Priority, Result
from headpond.keys import QueueKeys, queue_keys
from headpond.models import ModelRow
from headpond.operations import Append, Claimed, Entry, Lease, LeaseStatus, QueuePolicy, Submitted
from headpond.queue import JobQueue, Server
from headpond.results import build_result
from headpond.wire import (
    Call,
    Ended,
    Rewound,
    RunRow,
    TokenRun,
    pack,
    pack_data,
    pack_tokens,
    unpack,
    unpack_event,
    unpack_tokens,
)
from headpond.workers import WorkerRow, WorkerState
from headpond_workers.supervision.embedded_valkey import ValkeyProcess, running_valkey

LEASE_S = 10.0
RETENTION_S = 100.0
_names = count()


@dataclass
class Clock:
    """The server's time as the tests tell it, ms."""

    now_ms: int = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now_ms

    def move(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)


def entry(
    job_id: str,
    *,
    digest: str = "d",
    tenant: str = "",
    band: Priority = Priority.NORMAL,
    pinned: str = "",
    cost: int = 1,
    delay_s: float = 0.0,
    deadline_s: float | None = None,
) -> Entry:
    call = Call("generate", (), {"request": {"prompt": job_id}}, {}, 1)
    data = pack_data(call, digest=digest, tenant=tenant, band=band.value, pinned=pinned, cost=cost)
    return Entry(job_id, data, digest, tenant, band, pinned, cost, delay_s, deadline_s)


def lease_key(lease: Lease) -> tuple[str, str]:
    return lease.id, lease.fence


def tokens(start: int, end: int) -> TokenRun:
    ids = tuple(range(start, end))
    return TokenRun(start, ids, tuple(f" {i}" for i in ids))


@dataclass
class Bench:
    """One queue of a test, with a clock, and shorthands for what workers do."""

    server: Server
    queue: JobQueue
    clock: Clock
    raw: redis.Redis
    _seq: dict[str, int] = field(default_factory=dict)

    @property
    def keys(self) -> QueueKeys:
        return queue_keys(self.queue.name)

    def register(self, boot: str = "A", *, lease_s: float = LEASE_S, retention_s: float = RETENTION_S) -> WorkerRow:
        row = WorkerRow(
            boot, self.queue.name, "v1", "host", 1, f"chat-{boot}", 4, 0, WorkerState.READY, "", 1
        )  # fmt: skip
        self.queue.register(row, QueuePolicy(lease_s=lease_s, retention_s=retention_s), fingerprint="f")
        return row

    def submit(self, *ids: str, **options: Any) -> list[Submitted]:
        return self.queue.submit([entry(job_id, **options) for job_id in ids])

    def claim(
        self, boot: str = "A", *, slots: int = 1, version: str = "v1", fingerprint: str = "f", **more: Any
    ) -> Claimed:
        seq = self._seq[boot] = self._seq.get(boot, 0) + 1
        return self.queue.claim(
            boot, seq=seq, nonce=f"{boot}-{seq}", slots=slots, version=version, fingerprint=fingerprint, **more
        )

    def lease(self, boot: str = "A", *, version: str = "v1", fingerprint: str = "f") -> Lease:
        (lease,) = self.claim(boot, version=version, fingerprint=fingerprint).leases
        return lease

    def append(self, lease: Lease, run: TokenRun) -> ops.Outcome:
        (outcome,) = self.queue.append([Append(lease.id, lease.fence, run)])
        return outcome

    def finish(self, lease: Lease, *, offset: int, state: JobState = JobState.FINISHED) -> ops.Outcome:
        return self.queue.finish(lease.id, lease.fence, offset=offset, state=state, result=b"", reason="")

    def renew(self, boot: str, *leases: Lease, last_seq: int | None = None) -> list[LeaseStatus]:
        seq = self._seq.get(boot, 0) if last_seq is None else last_seq
        return self.queue.renew(boot, last_seq=seq, row=b"", pairs=[(x.id, x.fence) for x in leases])

    def row(self, job_id: str) -> RunRow:
        row = self.queue.run_row(job_id)
        assert row is not None
        return row

    def wake_tokens(self, lane: str = "any") -> int:
        return int(self.server.read("LLEN", self.keys.wake(lane)))

    def dump(self) -> dict[str, Any]:
        """Everything that the server holds of this queue."""
        readers: dict[str, Callable[[str], Any]] = {
            "hash": lambda key: self.server.read("HGETALL", key),
            "set": lambda key: sorted(self.server.read("SMEMBERS", key)),
            "zset": lambda key: self.server.read("ZRANGE", key, 0, -1, "WITHSCORES"),
            "list": lambda key: self.server.read("LRANGE", key, 0, -1),
            "stream": lambda key: self.server.read("XRANGE", key, "-", "+"),
        }
        names = sorted(key.decode() for key in self.server.read("KEYS", f"{self.keys.prefix}*"))
        return {key: readers[self.server.read("TYPE", key).decode()](key) for key in names}

    def events(self, job_id: str) -> list[tuple[str, TokenRun | Rewound | Ended]]:
        return [
            (at, unpack_tokens(fields[b"t"]) if b"t" in fields else unpack_event(fields[b"e"]))
            for at, fields in self.queue.events(job_id)
        ]


def bench_on(url: str, clock: Clock, *, storage: bool = False, name: str | None = None) -> Bench:
    server = Server(RedisAddress(url, "the test"), clock=clock)
    queue = server.queue(name or f"chat{next(_names)}", storage=storage)
    server.configure_model(queue.name, ModelRow("scripted", 0, storage, 8192))
    return Bench(server, queue, clock, redis.Redis.from_url(url))


@pytest.fixture(scope="module")
def shared_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server for all tests that leave it alone; each takes a queue of its own."""
    with running_valkey(tmp_path_factory.mktemp("queue-rules")) as valkey:
        yield valkey.url


def closing(bench: Bench) -> Iterator[Bench]:
    try:
        yield bench
    finally:
        bench.server.close()
        bench.raw.close()


@pytest.fixture
def bench(shared_url: str) -> Iterator[Bench]:
    bench = bench_on(shared_url, Clock())
    bench.register("A")
    yield from closing(bench)


@pytest.fixture
def stored(shared_url: str) -> Iterator[Bench]:
    """A queue with storage that its persister has opened."""
    bench = bench_on(shared_url, Clock(), storage=True)
    bench.register("A")
    bench.queue.run(upkeep.open_queue("claim", lineage="L"))
    bench.queue.run(upkeep.open_queue("open", lineage="L"))
    yield from closing(bench)


@pytest.fixture
def own(valkey: ValkeyProcess) -> Iterator[Bench]:
    """A queue on a server of its own, that the test may kill."""
    bench = bench_on(valkey.url, Clock(), name="chat")
    bench.register("A")
    yield from closing(bench)


# Q1: repeating any call gives the same reply and the same state.


def repeat_submit(b: Bench) -> Callable[[], Any]:
    return lambda: [x is Submitted.CONFLICT for x in b.submit("chat/a", "chat/b")]


def repeat_bounded_submit(b: Bench) -> Callable[[], Any]:
    b.submit("chat/a")
    return lambda: b.queue.submit([entry("chat/a"), entry("chat/b")], max_queued=1)


def repeat_claim(b: Bench) -> Callable[[], Any]:
    b.submit("chat/a", "chat/b", "chat/c")
    return lambda: b.queue.claim("A", seq=7, nonce="n", slots=2, fingerprint="f")


def repeat_claim_over_bands(b: Bench) -> Callable[[], Any]:
    b.submit("chat/a", "chat/b", band=Priority.BATCH)
    b.submit("chat/c", "chat/d", band=Priority.NORMAL)
    b.submit("chat/e", "chat/f", band=Priority.INTERACTIVE)
    return lambda: b.queue.claim("A", seq=7, nonce="n", slots=6, fingerprint="f")


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
    ticks(b, 4.9, 4.9)
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
    ticks(b, 3, 3)
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


def ticks(b: Bench, *gaps_s: float) -> None:
    for gap_s in gaps_s:
        b.clock.move(gap_s)
        b.queue.tick()


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


# Q2: the server can go back in time.


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


# Q3: fences.


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


def server_as_it_was(own: Bench, valkey: ValkeyProcess, kept: Path) -> None:
    """Kill the server and start it with the data of an earlier moment."""
    own.clock.move(1)
    valkey.kill()
    shutil.rmtree(valkey.folder / "appendonlydir")
    shutil.copytree(kept, valkey.folder / "appendonlydir")
    valkey.start()


def keep_data(valkey: ValkeyProcess, kept: Path) -> Path:
    with redis.Redis.from_url(valkey.url) as client:
        # While the disk is busy, the server may write a moment later than it answers.
        eventually(lambda: client.info("persistence")["aof_buffer_length"] == 0, what="the log being written")
    shutil.copytree(valkey.folder / "appendonlydir", kept)
    return kept


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


# Q4: submit.


def test_another_request_under_a_known_id_is_a_conflict_that_shows_and_changes_nothing(bench: Bench) -> None:
    bench.submit("chat/a", digest="one", tenant="t")
    state = bench.dump()
    assert bench.submit("chat/a", digest="other", tenant="t") == [Submitted.CONFLICT]
    assert bench.submit("chat/a", digest="one", tenant="u") == [Submitted.CONFLICT]
    assert bench.dump() == state
    assert bench.submit("chat/b", digest="one") == [Submitted.NEW]
    twice = [entry("chat/c", digest="one"), entry("chat/c", digest="two")]
    assert bench.queue.submit(twice) == [Submitted.NEW, Submitted.CONFLICT]


def test_an_id_stays_taken_after_its_job_ended(bench: Bench) -> None:
    bench.submit("chat/a", digest="one")
    bench.finish(bench.lease(), offset=0)
    assert bench.submit("chat/a", digest="one") == [Submitted.KNOWN]
    assert bench.submit("chat/a", digest="two") == [Submitted.CONFLICT]
    assert bench.claim().leases == ()


def test_a_full_queue_still_knows_its_own_jobs(bench: Bench) -> None:
    both = [entry("chat/a"), entry("chat/b", delay_s=60)]
    assert bench.queue.submit(both, max_queued=2) == [Submitted.NEW, Submitted.NEW]
    more = [entry("chat/a"), entry("chat/c"), entry("chat/a", digest="x"), entry("chat/b", delay_s=60)]
    assert bench.queue.submit(more, max_queued=2) == [
        Submitted.KNOWN, Submitted.FULL, Submitted.CONFLICT, Submitted.KNOWN,
    ]  # fmt: skip
    assert bench.queue.run_row("chat/c") is None
    # A job that runs does not wait.
    bench.lease()
    assert bench.queue.submit([entry("chat/c")], max_queued=2) == [Submitted.NEW]


def test_a_bound_counts_the_jobs_of_one_submit(bench: Bench) -> None:
    answers = bench.queue.submit([entry(f"chat/{i}") for i in range(5)], max_queued=3)
    assert answers == [Submitted.NEW] * 3 + [Submitted.FULL] * 2


def test_a_producer_hears_of_conflicts_and_full_queues(bench: Bench, shared_url: str) -> None:
    name = bench.queue.name
    bench.server.configure_model(name, ModelRow("scripted", 2, storage=False, context_tokens=64))
    with Client(shared_url) as client:
        job = client.submit(name, "the first secret", id=f"{name}/a")
        with pytest.raises(IdConflict) as conflict:
            client.submit(name, "another", id=f"{name}/a")
        assert "secret" not in str(conflict.value)
        assert not conflict.value.retry
        client.submit(name, "second")
        with pytest.raises(QueueFull) as full:
            client.submit(name, "third")
        assert (full.value.model, full.value.limit, full.value.retry) == (name, 2, True)
        assert full.value.retry_after_s > 0
        assert client.submit(name, "the first secret", id=f"{name}/a").id == job.id
        assert len(bench.queue.ids()) == 2


# Q6: order.


def test_jobs_are_claimed_in_their_order_and_a_returned_one_keeps_its_place(bench: Bench) -> None:
    bench.submit("chat/a", "chat/b", "chat/c")
    first = bench.lease()
    assert first.id == "chat/a"
    bench.queue.park([(first.id, first.fence)], strike=False)
    assert [lease.id for lease in bench.claim(slots=3).leases] == ["chat/a", "chat/b", "chat/c"]


# Q7: claim.


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


# Q8: leases.


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


def test_a_process_that_replaces_another_takes_over_its_row(bench: Bench) -> None:
    bench.register("B")
    assert sorted(row.boot for row in bench.queue.workers()) == ["A", "B"]
    successor = WorkerRow("C", bench.queue.name, "v1", "host", 9, "chat-A", 4, 0, WorkerState.LOADING, "", 1)
    bench.queue.register(successor, QueuePolicy(lease_s=LEASE_S, retention_s=RETENTION_S))
    rows = {row.boot: row for row in bench.queue.workers()}
    assert sorted(rows) == ["B", "C"]
    assert rows["C"].pid == 9
    assert rows["C"].seen_ms == bench.clock.now_ms


# Q9: streams.


def test_an_entry_is_named_by_gen_and_offset_and_several_share_an_offset(bench: Bench) -> None:
    bench.submit("chat/a")
    lease = bench.lease()
    bench.append(lease, tokens(0, 3))
    bench.append(lease, tokens(3, 4))
    bench.queue.cancel("chat/a")
    assert bench.events("chat/a") == [
        (f"{lease.gen}-48", tokens(0, 3)),
        (f"{lease.gen}-64", tokens(3, 4)),
        (f"{lease.gen}-65", Ended(JobState.CANCELLED, 4)),
    ]


def test_the_seventeenth_entry_at_one_offset_raises_the_generation(bench: Bench) -> None:
    bench.submit("chat/a")
    lease = bench.lease()
    bench.append(lease, tokens(0, 2))
    run = bench.keys.named("run")
    row = unpack(bench.server.read("HGET", run, "chat/a"), kind="run row")
    assert row[8] == 1
    row[8] = 16
    bench.server.read("HSET", run, "chat/a", pack(row))
    bench.queue.cancel("chat/a")
    assert [at for at, _ in bench.events("chat/a")] == [f"{lease.gen}-32", f"{lease.gen + 1}-32"]


def test_every_claim_raises_the_generation(bench: Bench) -> None:
    bench.submit("chat/a")
    gens = []
    for _ in range(3):
        lease = bench.lease()
        gens.append(lease.gen)
        bench.append(lease, tokens(lease.offset, lease.offset + 1))
        bench.queue.park([(lease.id, lease.fence)], strike=False)
    assert gens == sorted(set(gens))
    assert gens[0] >= int(bench.queue.meta()["inc"])
    assert fold_tokens(bench.queue.events("chat/a")) == tokens(0, 3)


def test_a_repeated_append_appends_nothing_and_a_partly_covered_one_its_tail(bench: Bench) -> None:
    bench.submit("chat/a")
    lease = bench.lease()
    assert bench.append(lease, tokens(0, 5)) == ops.Outcome(LeaseStatus.APPENDED, 5)
    assert bench.append(lease, tokens(0, 5)) == ops.Outcome(LeaseStatus.APPENDED, 5)
    assert bench.append(lease, tokens(1, 4)) == ops.Outcome(LeaseStatus.APPENDED, 5)
    assert bench.append(lease, tokens(2, 8)) == ops.Outcome(LeaseStatus.APPENDED, 8)
    assert [event for _, event in bench.events("chat/a")] == [tokens(0, 5), tokens(5, 8)]
    assert bench.append(lease, tokens(9, 10)) == ops.Outcome(LeaseStatus.GAP, 8)
    assert bench.append(lease, tokens(8, 10)) == ops.Outcome(LeaseStatus.APPENDED, 10)
    assert fold_tokens(bench.queue.events("chat/a")) == tokens(0, 10)


def test_the_tail_of_a_partly_covered_append_keeps_any_text_and_id(bench: Bench) -> None:
    bench.submit("chat/a")
    lease = bench.lease()
    pieces = ("a", "", "\N{WATER WAVE}\N{LATIN SMALL LETTER E WITH ACUTE}", "x" * 300, "\x00\n", "y" * 70_000)
    ids = (0, 2**31, 2**52, 1, 255, 65_536)
    bench.append(lease, TokenRun(0, ids[:1], pieces[:1]))
    assert bench.append(lease, TokenRun(0, ids, pieces)).offset == 6
    assert fold_tokens(bench.queue.events("chat/a")) == TokenRun(0, ids, pieces)


def test_one_append_answers_each_job_for_itself(bench: Bench) -> None:
    bench.submit("chat/fine", "chat/gap", "chat/cancelled", "chat/fenced", "chat/parked")
    bench.submit("chat/expired", deadline_s=1)
    leases = {lease.id: lease for lease in bench.claim(slots=6).leases}
    bench.queue.cancel("chat/cancelled")
    bench.queue.park([(leases["chat/parked"].id, leases["chat/parked"].fence)], strike=False)
    bench.clock.move(1)
    bench.queue.tick()
    batch = [
        Append(job_id, "no such fence" if job_id == "chat/fenced" else leases[job_id].fence,
               tokens(1, 2) if job_id == "chat/gap" else tokens(0, 2))
        for job_id in ("chat/gap", "chat/cancelled", "chat/fine", "chat/fenced", "chat/expired", "chat/parked")
    ]  # fmt: skip
    assert [(o.status.value, o.offset) for o in bench.queue.append(batch)] == [
        ("gap", 0), ("cancelled", 0), ("appended", 2), ("fenced", 0), ("expired", 0), ("fenced", 0),
    ]  # fmt: skip
    assert bench.row("chat/fine").offset == 2


def test_the_first_append_in_a_new_incarnation_says_rewound(bench: Bench) -> None:
    bench.submit("chat/a")
    lease = bench.lease()
    bench.append(lease, tokens(0, 2))
    bench.clock.move(1)
    bench.queue.run(ops.hello("restarted", storage=False))
    inc = int(bench.queue.meta()["inc"])
    bench.append(lease, tokens(2, 3))
    bench.append(lease, tokens(3, 4))
    events = bench.events("chat/a")
    assert [event for _, event in events] == [
        tokens(0, 2), Rewound(2, "the server restarted"), tokens(2, 3), tokens(3, 4),
    ]  # fmt: skip
    assert all(int(at.partition("-")[0]) >= inc for at, _ in events[1:])
    assert [at for at, _ in events] == sorted((at for at, _ in events), key=lambda at: [*map(int, at.split("-"))])


def test_a_claim_by_another_fingerprint_rewinds_to_the_beginning(bench: Bench) -> None:
    bench.submit("chat/a")
    lease = bench.lease(fingerprint="f")
    bench.append(lease, tokens(0, 5))
    bench.queue.park([(lease.id, lease.fence)], strike=False)
    same = bench.lease("B", fingerprint="f")
    assert same.offset == 5
    bench.queue.park([(same.id, same.fence)], strike=False)
    other = bench.lease("C", fingerprint="g")
    assert other.offset == 0
    assert bench.append(other, TokenRun(0, (7,), ("seven",))).status is LeaseStatus.APPENDED
    assert [event for _, event in bench.events("chat/a")] == [
        tokens(0, 5), Rewound(0, "another version of the model goes on"), TokenRun(0, (7,), ("seven",)),
    ]  # fmt: skip
    assert fold_tokens(bench.queue.events("chat/a")) == TokenRun(0, (7,), ("seven",))


def test_a_reader_ahead_of_a_server_that_went_back_is_told_and_caught_up(
    own: Bench, valkey: ValkeyProcess, tmp_path: Path
) -> None:
    own.submit("chat/a")
    lease = own.lease()
    own.append(lease, tokens(0, 4))
    kept = keep_data(valkey, tmp_path / "kept")
    own.append(lease, tokens(4, 9))
    last, fold = feed_all(own, StreamFold(), "-")
    assert fold.given == 9
    server_as_it_was(own, valkey, kept)
    assert own.append(lease, tokens(9, 10)) == ops.Outcome(LeaseStatus.GAP, 4)
    assert own.append(lease, tokens(4, 10)) == ops.Outcome(LeaseStatus.APPENDED, 10)
    chunks = [chunk for _, fields in own.queue.events("chat/a", after=last) if (chunk := fold.feed(fields))]
    assert [(c.offset, c.token_ids, c.restarted) for c in chunks] == [(4, (4, 5, 6, 7, 8, 9), True)]


@pytest.mark.parametrize("how", ["cancel", "deadline", "finish"])
def test_a_reader_ahead_of_a_server_that_went_back_still_hears_the_end(
    own: Bench, valkey: ValkeyProcess, tmp_path: Path, how: str
) -> None:
    own.submit("chat/a", deadline_s=30 if how == "deadline" else None)
    lease = own.lease()
    own.append(lease, tokens(0, 4))
    kept = keep_data(valkey, tmp_path / "kept")
    own.append(lease, tokens(4, 9))
    last, fold = feed_all(own, StreamFold(), "-")
    server_as_it_was(own, valkey, kept)
    if how == "cancel":
        own.queue.cancel("chat/a")
    elif how == "deadline":
        own.clock.move(30)
        own.queue.tick()
    else:
        assert own.finish(lease, offset=9) == ops.Outcome(LeaseStatus.GAP, 4)
        own.finish(lease, offset=4)
    assert own.row("chat/a").state.ended
    for _, fields in own.queue.events("chat/a", after=last):
        fold.feed(fields)
    assert fold.ended is not None
    assert (fold.ended.offset, fold.given) == (4, 4)


def feed_all(bench: Bench, fold: StreamFold, after: str) -> tuple[str, StreamFold]:
    for at, fields in bench.queue.events("chat/a", after=after):
        after = at
        fold.feed(fields)
    return after, fold


def fields_of(event: TokenRun | int) -> dict[bytes, bytes]:
    if isinstance(event, TokenRun):
        return {b"t": pack_tokens(event)}
    return {b"e": pack([1, "rewound", event, "because"])}


@st.composite
def streams(draw: st.DrawFn) -> list[TokenRun | int]:
    """Streams as writers make them: each rewound says to where, and tokens go on from there."""
    events: list[TokenRun | int] = []
    offset, fresh = 0, 0
    for _ in range(draw(st.integers(0, 12))):
        if draw(st.booleans()) or not offset:
            n = draw(st.integers(1, 5))
            ids = tuple(range(fresh, fresh + n))
            events.append(TokenRun(offset, ids, tuple(f"<{i}>" for i in ids)))
            offset, fresh = offset + n, fresh + n
        else:
            offset = draw(st.integers(0, offset))
            events.append(offset)
    return events


@given(streams())
def test_a_reader_from_the_beginning_ends_with_exactly_the_valid_tokens(events: list[TokenRun | int]) -> None:
    fold = StreamFold()
    had: list[int] = []
    text: list[str] = []
    void_from: int | None = None
    for event in events:
        if isinstance(event, int) and event < len(had):
            void_from = event
        chunk = fold.feed(fields_of(event))
        if chunk is None:
            continue
        # restarted exactly when something that was given is void, and it says from where.
        assert chunk.restarted is (void_from is not None)
        if void_from is not None:
            assert chunk.offset == void_from
        assert chunk.offset <= len(had)
        assert chunk.restarted or chunk.offset == len(had)
        del had[chunk.offset :], text[chunk.offset :]
        had += chunk.token_ids
        text.append(chunk.text)
        text = list("".join(text).replace("><", ">\n<").split("\n"))
        void_from = None
    valid = fold_tokens((str(i), fields_of(event)) for i, event in enumerate(events))
    if void_from is None:
        assert (tuple(had), "".join(text)) == (valid.ids, "".join(valid.pieces))
    else:
        assert tuple(had[:void_from]) == valid.ids
    assert fold.given == len(valid.ids)


@given(st.lists(st.integers(1, 5), max_size=6), st.integers(0, 30))
def test_a_reader_who_has_a_part_is_given_the_exact_rest(sizes: list[int], after: int) -> None:
    fold, offset = StreamFold(after), 0
    given_ids: list[int] = []
    for n in sizes:
        chunk = fold.feed({b"t": pack_tokens(tokens(offset, offset + n))})
        offset += n
        if chunk is not None:
            assert not chunk.restarted
            assert chunk.offset == after + len(given_ids)
            assert chunk.text == "".join(f" {i}" for i in chunk.token_ids)
            given_ids += chunk.token_ids
    assert given_ids == list(range(after, offset))


# Q10: ends.


def test_a_finish_with_a_wrong_offset_is_a_gap_and_a_repeat_is_done(bench: Bench) -> None:
    bench.submit("chat/a")
    lease = bench.lease()
    bench.append(lease, tokens(0, 3))
    for wrong in (2, 4, 0):
        state = bench.dump()
        assert bench.finish(lease, offset=wrong) == ops.Outcome(LeaseStatus.GAP, 3)
        assert bench.dump() == state
    assert bench.finish(lease, offset=3) == ops.Outcome(LeaseStatus.DONE, 3)
    assert bench.finish(lease, offset=3) == ops.Outcome(LeaseStatus.DONE, 3)
    assert [event for _, event in bench.events("chat/a")][-1] == Ended(JobState.FINISHED, 3)
    assert bench.append(lease, tokens(3, 4)).status is LeaseStatus.FENCED
    assert bench.queue.depths().running == 0


def test_the_end_of_a_job_is_written_at_once(stored: Bench) -> None:
    stored.submit("chat/a")
    lease = stored.lease()
    stored.append(lease, tokens(0, 2))
    stored.queue.finish(lease.id, lease.fence, offset=2, state=JobState.FINISHED, result=b"the answer")
    row = stored.row("chat/a")
    assert (row.state, row.ended_ms, row.durable) == (JobState.FINISHED, stored.clock.now_ms, False)
    assert stored.queue.result("chat/a") == b"the answer"
    assert [(e.kind, e.job_id) for e in stored.queue.journal(limit=9)] == [("submit", "chat/a"), ("end", "chat/a")]
    assert stored.server.read("EXISTS", stored.keys.named("leases")) == 0


@pytest.mark.parametrize("how", ["cancelled", "expired"])
def test_a_running_job_that_is_ended_by_others_stays_ended(bench: Bench, how: str) -> None:
    bench.submit("chat/a", deadline_s=5)
    lease = bench.lease()
    bench.append(lease, tokens(0, 3))
    if how == "cancelled":
        assert bench.queue.cancel("chat/a") is JobState.CANCELLED
    else:
        bench.clock.move(5)
        bench.queue.tick()
    ended = bench.events("chat/a")
    assert ended[-1][1] == Ended(JobState(how), 3)
    status = LeaseStatus(how)
    assert bench.finish(lease, offset=3) == ops.Outcome(status, 3)
    assert bench.append(lease, tokens(3, 4)) == ops.Outcome(status, 3)
    assert bench.queue.park([(lease.id, lease.fence)], strike=False) == [status]
    assert bench.renew("A", lease) == [status]
    for _ in range(5):
        bench.clock.move(4)
        bench.queue.tick()
    assert bench.events("chat/a") == ended
    assert bench.row("chat/a").state is JobState(how)
    assert bench.claim().leases == ()


def test_a_cancelled_job_never_runs_and_an_ended_one_keeps_its_end(bench: Bench) -> None:
    bench.submit("chat/queued")
    bench.submit("chat/delayed", delay_s=2)
    assert bench.queue.cancel("chat/queued") is JobState.CANCELLED
    assert bench.queue.cancel("chat/delayed") is JobState.CANCELLED
    bench.clock.move(3)
    assert bench.claim(slots=4).leases == ()
    bench.submit("chat/done")
    bench.finish(bench.lease(), offset=0)
    assert bench.queue.cancel("chat/done") is JobState.FINISHED


def test_a_journal_is_written_only_with_storage(bench: Bench, stored: Bench) -> None:
    for b in (bench, stored):
        b.submit("chat/a", "chat/b", "chat/c")
        b.submit("chat/d", deadline_s=1)
        b.submit("chat/a")
        done, failed, *_ = b.claim(slots=3).leases
        b.finish(done, offset=0)
        b.finish(failed, offset=0, state=JobState.FAILED)
        b.queue.cancel("chat/c")
        b.clock.move(1)
        b.queue.tick()
    assert bench.queue.journal_length() == 0
    entries = stored.queue.journal(limit=100)
    assert sorted((e.kind, e.job_id) for e in entries) == sorted(
        (kind, f"chat/{name}") for kind in ("submit", "end") for name in "abcd"
    )
    inc = stored.queue.meta()["inc"]
    assert [e.journal_id for e in entries] == [f"{inc}-{n}" for n in range(1, 9)]


def held_of(bench: Bench, job_id: str) -> list[bool]:
    """Whether there is still something in data, run, result and events."""
    return [
        bench.queue.data(job_id) is not None,
        bench.queue.run_row(job_id) is not None,
        bench.queue.result(job_id) is not None,
        bool(bench.queue.events(job_id)),
    ]


def test_an_ended_job_is_dropped_whole_after_its_retention(bench: Bench) -> None:
    bench.submit("chat/a", "chat/b")
    lease, other = bench.claim(slots=2).leases
    bench.append(lease, tokens(0, 2))
    bench.queue.finish(lease.id, lease.fence, offset=2, state=JobState.FINISHED, result=b"r")
    bench.clock.move(RETENTION_S - 0.001)
    bench.queue.tick()
    assert held_of(bench, "chat/a") == [True] * 4
    bench.clock.move(0.001)
    bench.queue.tick()
    assert held_of(bench, "chat/a") == [False] * 4
    assert bench.queue.ids() == [other.id]
    assert bench.server.read("ZCARD", bench.keys.named("ended")) == 0
    # Idempotency holds within the retention.
    assert bench.submit("chat/a", digest="other") == [Submitted.NEW]


def test_with_storage_only_a_commit_lets_a_job_expire(stored: Bench) -> None:
    stored.submit("chat/a", "chat/b")
    lease, _ = stored.claim(slots=2).leases
    stored.finish(lease, offset=0)
    stored.clock.move(RETENTION_S * 2)
    stored.queue.tick()
    assert stored.row("chat/a").state is JobState.FINISHED
    inc = int(stored.queue.meta()["inc"])
    entries = stored.queue.journal(limit=10)
    through = entries[-1].journal_id
    assert not stored.queue.run(upkeep.trim(inc=inc - 1, through=through, ended=["chat/a"]))
    assert stored.queue.journal_length() == len(entries)
    # chat/b has not ended: naming it may not drop it.
    assert stored.queue.run(
        upkeep.trim(inc=inc, through=entries[1].journal_id, ended=["chat/a", "chat/b", "chat/none"])
    )
    assert [e.journal_id for e in stored.queue.journal(limit=10)] == [e.journal_id for e in entries[2:]]
    assert stored.row("chat/a").durable
    assert not stored.row("chat/b").durable
    stored.clock.move(RETENTION_S)
    stored.queue.tick()
    assert stored.queue.run_row("chat/a") is None
    assert stored.queue.run_row("chat/b") is not None


def test_the_third_strike_in_a_row_quarantines(bench: Bench) -> None:
    bench.submit("chat/a")
    for n in range(3):
        lease = bench.lease(f"boot{n}")
        bench.append(lease, tokens(lease.offset, lease.offset + 1))
        bench.queue.park([lease_key(lease)], strike=True, reason=f"out of memory {n}")
    row = bench.row("chat/a")
    assert (row.state, row.attempt, row.strikes) == (JobState.DEAD, 3, 3)
    assert row.reason == "3 leases in a row ended without progress; the last: out of memory 2"
    assert bench.claim().leases == ()
    assert bench.queue.depths().dead == 1
    assert bench.queue.dead() == [("chat/a", bench.clock.now_ms)]
    assert bench.events("chat/a")[-1][1] == Ended(JobState.DEAD, 3)
    assert [(a.attempt, a.boot, a.how, a.reason) for a in bench.queue.attempts("chat/a")] == [
        (n + 1, f"boot{n}", "failed", f"out of memory {n}") for n in range(3)
    ]


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
    ticks(bench, 4.9, 4.9)
    bench.clock.move(0.2)
    if call == "renew":
        assert bench.renew("B", lease) == [LeaseStatus.FENCED]
    else:
        assert [again.id for again in bench.claim("B").leases] == ["chat/a"]
    row = bench.row("chat/a")
    assert (row.state.ended, row.strikes, row.faults) == (False, 2, 2)


def test_a_job_that_ends_its_leases_by_faults_too_often_is_quarantined_in_spite_of_progress(bench: Bench) -> None:
    bench.submit("chat/a")
    for n in range(30):
        # What is nobody's fault counts for nothing.
        lease = bench.lease()
        bench.queue.park([lease_key(lease)])
        if n < 25:
            lease = bench.lease()
            assert bench.row("chat/a").state is JobState.RUNNING
            bench.append(lease, tokens(lease.offset, lease.offset + 8))
            bench.queue.park([lease_key(lease)], strike=True, reason="crash")
        if bench.row("chat/a").state.ended:
            break
    row = bench.row("chat/a")
    assert (row.state, row.faults, row.strikes, row.attempt) == (JobState.DEAD, 25, 0, 50)
    assert row.reason == "25 leases ended by a fault; the last: crash"


def test_a_result_without_a_document_is_folded_from_the_stream(bench: Bench) -> None:
    bench.submit("chat/a")
    bench.clock.move(2)
    lease = bench.lease()
    bench.append(lease, tokens(0, 3))
    bench.clock.move(1.5)
    bench.queue.cancel("chat/a")
    result = build_result("chat/a", bench.row("chat/a"), None, bench.queue.events("chat/a"))
    assert isinstance(result, Result)
    assert (result.text, result.token_ids, result.state) == (" 0 1 2", (0, 1, 2), JobState.CANCELLED)
    assert (result.timings.queued_s, result.timings.generate_s) == (2.0, 1.5)


def test_readers_of_a_job_that_is_gone_are_told(bench: Bench, shared_url: str) -> None:
    name = bench.queue.name
    job_id = f"{name}/a"
    bench.submit(job_id)
    with Client(shared_url) as client:
        job = client.job(job_id)
        assert job.state() is JobState.QUEUED
        bench.queue.cancel(job_id)
        with pytest.raises(JobCancelled):
            job.result(timeout=1)
        bench.clock.move(RETENTION_S)
        bench.queue.tick()
        for call in (job.state, job.result, job.cancel, lambda: list(job.stream())):
            with pytest.raises(JobGone) as gone:
                call()
            assert gone.value.job_id == job_id


async def read_asynchronously(url: str, given: list[Chunk]) -> None:
    async with AsyncClient(url) as client:
        async for chunk in client.job("chat/a").stream():
            given.append(chunk)


def read_synchronously(url: str, given: list[Chunk]) -> None:
    with Client(url) as client:
        for chunk in client.job("chat/a").stream():
            given.append(chunk)


@pytest.mark.parametrize("read", [read_synchronously, read_asynchronously], ids=["sync", "async"])
def test_a_reader_that_began_anew_in_what_a_server_forgot_gets_every_token(
    own: Bench, valkey: ValkeyProcess, tmp_path: Path, read: Callable[[str, list[Chunk]], Any]
) -> None:
    own.submit("chat/a")
    lease = own.lease("A")
    own.append(lease, tokens(0, 4))
    kept = keep_data(valkey, tmp_path / "kept")
    given: list[Chunk] = []

    def follow() -> None:
        reading = read(valkey.url, given)
        if reading is not None:
            asyncio.run(reading)

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    own.queue.park([lease_key(lease)])
    other = own.lease("B", fingerprint="another")
    assert other.offset == 0
    own.append(other, TokenRun(0, (70, 71), (" x", " y")))
    eventually(lambda: given and given[-1].token_ids == (70, 71), what="the tokens of the other model")
    # All that is forgotten: the reader obeyed a rewound to 0, and the server holds four tokens.
    server_as_it_was(own, valkey, kept)
    assert own.append(lease, tokens(4, 6)) == ops.Outcome(LeaseStatus.APPENDED, 6)
    assert own.finish(lease, offset=6).status is LeaseStatus.DONE
    reader.join(10)
    assert not reader.is_alive()
    has: list[int] = []
    for chunk in given:
        if chunk.restarted:
            del has[chunk.offset :]
        assert chunk.offset == len(has)
        has += chunk.token_ids
    assert has == [0, 1, 2, 3, 4, 5]


def test_a_reader_that_waits_for_a_job_that_vanishes_is_told_at_its_next_time_out(
    own: Bench, valkey: ValkeyProcess
) -> None:
    own.submit("chat/a")
    outcome: list[BaseException] = []
    with Client(valkey.url) as client:
        job = client.job("chat/a")

        def read() -> None:
            try:
                list(job.stream())
            except JobGone as error:
                outcome.append(error)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        eventually(lambda: any(c["cmd"] == "xread" for c in own.raw.client_list()), what="a waiting reader")
        own.raw.flushall()
        thread.join(5)
    assert [type(error) for error in outcome] == [JobGone]
