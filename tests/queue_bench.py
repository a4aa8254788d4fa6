"""One queue on a real server as tests work with it: a clock that they move, and shorthands for what workers do."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import redis

from conftest import eventually
from headpond import JobState, upkeep
from headpond import operations as ops
from headpond.connections import RedisAddress
from headpond.jobs import Priority
from headpond.keys import QueueKeys, queue_keys
from headpond.models import ModelRow
from headpond.operations import Append, Claimed, Entry, Lease, LeaseStatus, QueuePolicy, Submitted
from headpond.queue import JobQueue, Server
from headpond.turns import Policy, TurnRequest
from headpond.wire import Call, Ended, Rewound, RunRow, TokenRun, pack_data, unpack_event, unpack_tokens
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
    session: str = "",
    policy: Policy | None = None,
    parent: str = "",
) -> Entry:
    turn = TurnRequest(session, policy, parent) if session else None
    call = Call("generate", (), {"request": {"prompt": job_id}}, {}, 1)
    data = pack_data(call, digest=digest, tenant=tenant, band=band.value, pinned=pinned, cost=cost, turn=turn)
    return Entry(job_id, data, digest, tenant, band, pinned, cost, delay_s, deadline_s, session)


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

    def register(
        self,
        boot: str = "A",
        *,
        version: str = "v1",
        lease_s: float = LEASE_S,
        retention_s: float = RETENTION_S,
        **policy: Any,
    ) -> WorkerRow:
        """policy: what else there is of QueuePolicy."""
        row = WorkerRow(boot, self.queue.name, version, "host", 1, f"chat-{boot}", 4, 0, WorkerState.READY, "", 1)
        self.queue.register(row, QueuePolicy(lease_s, retention_s, **policy), fingerprint="f")
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

    def append(self, lease: Lease, run: TokenRun, *, full_version: str = "") -> ops.Outcome:
        (outcome,) = self.queue.append([Append(lease.id, lease.fence, run)], full_version=full_version)
        return outcome

    def finish(self, lease: Lease, *, offset: int, state: JobState = JobState.FINISHED) -> ops.Outcome:
        return self.queue.finish(lease.id, lease.fence, offset=offset, state=state, result=b"", reason="")

    def renew(
        self, boot: str, *leases: Lease, last_seq: int | None = None, full_version: str = ""
    ) -> list[LeaseStatus]:
        seq = self._seq.get(boot, 0) if last_seq is None else last_seq
        return self.queue.renew(
            boot, last_seq=seq, row=b"", pairs=[lease_key(x) for x in leases], full_version=full_version
        )

    def trim(self, inc: int, through: str, *ended: str) -> bool:
        """As the persister does after a commit."""
        return self.queue.run(upkeep.trim(inc=inc, through=through, ended=ended))

    def let_leases_end(self) -> None:
        """Time passes, and somebody ticks often enough for nobody to be forgiven."""
        for _ in range(3):
            self.clock.move(LEASE_S * 0.4)
            self.queue.tick()

    def row(self, job_id: str) -> RunRow:
        row = self.queue.run_row(job_id)
        assert row is not None
        return row

    def ticks(self, *gaps_s: float) -> None:
        """Sweep, each time so long after the last."""
        for gap_s in gaps_s:
            self.clock.move(gap_s)
            self.queue.tick()

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
