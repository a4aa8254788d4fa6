"""Workers of one model that follow an alias, as the queue sees them: rows, claims, and what they ask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count

import pytest

from headpond.operations import QueuePolicy
from headpond.switching import Assignment, Serve
from headpond.workers import WorkerRow, WorkerState, pack_worker
from queue_bench import LEASE_S, RETENTION_S, Bench, Clock, bench_on

VERSION_WAIT_S = 60.0
POLICY = QueuePolicy(LEASE_S, RETENTION_S, version_wait_s=VERSION_WAIT_S)


@dataclass
class Follower:
    """One worker, process after process. version: what it serves; '' while it loads. loading: what it loads."""

    bench: Bench
    name: str
    boot: str
    version: str = ""
    loading: str = ""
    own_lane: bool = False
    busy: int = 0
    draining: bool = False
    who: str = ""

    def __post_init__(self) -> None:
        self.who = f"site/host/{self.name}"

    def row(self) -> WorkerRow:
        state = WorkerState.DRAINING if self.draining else WorkerState.READY if self.version else WorkerState.LOADING
        return WorkerRow(
            self.boot, self.bench.queue.name, self.version or self.loading, "host", 1, self.name, 4, self.busy, state,
            "", 1, deployment="site",
        )  # fmt: skip

    def register(self) -> None:
        self.bench.queue.register(self.row(), POLICY, fingerprint="f")

    def ask(self) -> Assignment:
        """Once, and once more as after a lost reply, which changes nothing."""
        first = self._ask()
        before = self.bench.dump()
        assert self._ask() == first, "a repeat was told otherwise"
        assert self.bench.dump() == before
        if self.version:
            self.own_lane = first.serve is Serve.OWN_LANE
        return first

    def _ask(self) -> Assignment:
        return self.bench.queue.assign(boot=self.boot, who=self.who, version=self.version, busy=self.busy)

    def starts(self, boot: str) -> str:
        """A new process asks what to load, and begins to."""
        self.boot, self.version, self.draining, self.own_lane, self.busy = boot, "", False, False, 0
        self.loading = self.ask().version
        self.register()
        return self.loading

    def serves(self) -> Assignment:
        """It has loaded, and asks for the first time."""
        self.version, self.loading = self.loading, ""
        self.register()
        return self.ask()

    def drains(self) -> None:
        self.draining = True
        self.register()

    def claim(self, slots: int = 9) -> list[str]:
        claimed = self.bench.claim(
            self.boot, slots=slots, version=self.version, fingerprint=f"f{self.version}", own_lane=self.own_lane
        )
        return [lease.id for lease in claimed.leases]


@dataclass
class Fleet:
    """All workers of one queue, and its clock."""

    bench: Bench
    workers: dict[str, Follower] = field(default_factory=dict)
    seq: int = 0
    _boots: Iterator[int] = field(default_factory=count)

    def boot(self) -> str:
        return f"boot{next(self._boots)}"

    def add(self, name: str) -> Follower:
        self.workers[name] = Follower(self.bench, name, "")
        return self.workers[name]

    def serving(self, version: str, *names: str) -> list[Follower]:
        """Workers that serve a version already, whatever the alias says."""
        found = []
        for name in names:
            worker = self.add(name)
            worker.boot, worker.version = self.boot(), version
            worker.register()
            found.append(worker)
        return found

    def alias(self, target: str, previous: str = "", *, trial: str = "", permille: int = 0) -> int:
        """The alias is moved. Returns how many jobs are left in lanes of trials that are over."""
        self.seq += 1
        reply = self.bench.queue.switch(seq=self.seq, target=target, previous=previous, trial=trial, permille=permille)
        assert reply.seq == self.seq
        return reply.left

    def pass_time(self, seconds: float, *, silent: tuple[str, ...] = ()) -> None:
        """In steps that nobody is forgiven for; every worker but those that are silent renews."""
        for _ in range(round(seconds / 4)):
            self.bench.clock.move(4)
            self.bench.queue.tick()
            for worker in self.workers.values():
                if worker.name not in silent:
                    self.bench.queue.renew(worker.boot, last_seq=0, row=pack_worker(worker.row()), pairs=[])

    def move(self, worker: Follower) -> str:
        """It was told to move: it drains, starts anew, loads and serves. Returns the version."""
        worker.drains()
        worker.starts(self.boot())
        worker.serves()
        return worker.version

    def settle(self, rounds: int = 12) -> list[tuple[str, str]]:
        """Everybody asks, and does as told, until nobody is told anything. Returns who moved where."""
        moved = []
        for _ in range(rounds):
            told = [(worker, worker.ask()) for worker in self.workers.values()]
            movers = [worker for worker, answer in told if answer.move]
            assert len(movers) <= 1, "two workers were told to move at once"
            if not movers:
                return moved
            moved.append((movers[0].name, self.move(movers[0])))
        raise AssertionError(f"workers go on moving: {moved}")

    def versions(self) -> dict[str, str]:
        return {name: worker.version for name, worker in self.workers.items()}


def told(answer: Assignment) -> Assignment:
    """Without the alias's number."""
    return replace(answer, seq=0)


@pytest.fixture
def fleet(shared_url: str) -> Iterator[Fleet]:
    bench = bench_on(shared_url, Clock())
    try:
        yield Fleet(bench)
    finally:
        bench.server.close()
        bench.raw.close()
