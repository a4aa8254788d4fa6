"""Invariant 8 at random: storage brings back whatever a queue went through, and a server that forgot hears of it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headpond import JobState, upkeep
from headpond.folding import fold_tokens
from headpond.jobs import Priority
from headpond.operations import Lease, Settle, Settlement
from headpond_workers.persistence.gate import open_queue
from headpond_workers.persistence.items import JobItem
from headpond_workers.persistence.journal import Journal, drain
from headpond_workers.persistence.restoring.restore import Restoration
from headpond_workers.persistence.segments import StateStore
from headpond_workers.persistence.snapshots import make_snapshot
from memory_blobs import MemoryBlobs
from queue_bench import Bench, Clock, bench_on, tokens

SLUGS = "abcdefgh"
BANDS = list(Priority)
Step = tuple[str, int, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["submit", "submit", "delay", "deadline", "claim", "append", "append", "finish", "park", "fault", "cancel",
             "time", "commit", "commit", "snapshot"]
        ),
        st.integers(0, 7), st.integers(0, 3),
    ),
    max_size=40,
)  # fmt: skip
several = settings(
    max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@dataclass
class Life:
    """One queue with its persister, and leases that a worker holds."""

    bench: Bench
    store: StateStore
    journal: Journal
    leases: dict[str, Lease] = field(default_factory=dict)
    claims: int = 0

    def take(self, steps: list[Step]) -> None:
        for what, which, more in steps:
            getattr(self, f"_{what}")(f"{self.bench.queue.name}/{SLUGS[which]}", more)

    def _submit(self, job: str, more: int) -> None:
        self.bench.submit(job, tenant="tuvw"[more], band=BANDS[more % 3], cost=more + 1)

    def _delay(self, job: str, more: int) -> None:
        self.bench.submit(job, delay_s=10.0 * (more + 1))

    def _deadline(self, job: str, more: int) -> None:
        self.bench.submit(job, deadline_s=20.0 * (more + 1))

    def _claim(self, _: str, more: int) -> None:
        for lease in self.bench.claim(slots=more + 1).leases:
            self.leases[lease.id] = lease

    def _append(self, job: str, more: int) -> None:
        if lease := self.leases.get(job):
            row = self.bench.queue.run_row(job)
            at = row.offset if row else 0
            self.bench.append(lease, tokens(at, at + more + 1))

    def _finish(self, job: str, more: int) -> None:
        if lease := self.leases.get(job):
            row = self.bench.queue.run_row(job)
            state = JobState.FAILED if more == 0 else JobState.FINISHED
            self.bench.finish(lease, offset=row.offset if row else 0, state=state)

    def _park(self, job: str, _: int) -> None:
        if lease := self.leases.pop(job, None):
            self.bench.queue.park([(lease.id, lease.fence)])

    def _fault(self, job: str, _: int) -> None:
        if lease := self.leases.pop(job, None):
            self.claims += 1
            settled = [Settlement(lease.id, lease.fence, Settle.FAULTY, reason="it failed")]
            self.bench.queue.claim("A", seq=10_000 + self.claims, nonce="", slots=0, settle=settled)

    def _cancel(self, job: str, _: int) -> None:
        self.bench.queue.cancel(job)

    def _time(self, _: str, more: int) -> None:
        self.bench.clock.move(3.0 * (more + 1))
        self.bench.queue.tick()

    def _commit(self, _: str, __: int) -> None:
        while drain(self.journal, self.store, writer="persister"):
            pass

    def _snapshot(self, _: str, __: int) -> None:
        at = self.store.read_head()
        assert at is not None
        make_snapshot(self.store, at, writer="persister")

    def items(self) -> dict[str, JobItem]:
        at = self.store.read_head()
        assert at is not None
        return {item.id: item for item in self.store.items(at.head) if isinstance(item, JobItem)}

    def tokens_of(self, job: str) -> tuple[int, ...]:
        return fold_tokens(self.bench.queue.events(job)).ids

    def run_to_the_end(self, had: dict[str, JobItem]) -> None:
        """Whatever waits is claimed and finished, so nothing was left in no place; what had ended stays as it was."""
        bench = self.bench
        bench.register("Z", version="v1")
        for _ in range(60):
            bench.clock.move(4)
            bench.queue.tick()
            for lease in bench.claim("Z", slots=9).leases:
                bench.append(lease, tokens(lease.offset, lease.offset + 9))
                bench.finish(lease, offset=lease.offset + 9)
        states = {job: bench.row(job).state for job in bench.queue.ids()}
        assert all(state.ended for state in states.values()), states
        ends = {job: item.state for job, item in had.items() if item.state is not None}
        assert {job: states[job] for job in ends} == ends
        found = bench.queue.run(upkeep.fsck("0", repair=False, rows=1000))
        assert found.faults == ()


def life(url: str) -> Life:
    name = f"r{secrets.token_hex(6)}"
    bench = bench_on(url, Clock(), storage=True, name=name)
    bench.register("A", retention_s=1e6)
    store = StateStore(MemoryBlobs(), name, now_ms=bench.clock)
    assert open_queue(bench.queue, store, writer="persister")
    return Life(bench, store, Journal(bench.queue))


def close(life: Life) -> None:
    life.bench.raw.delete(*life.bench.raw.keys(f"{life.bench.keys.prefix}*"))
    life.bench.server.close()
    life.bench.raw.close()


@pytest.mark.slow
@several
@given(before=steps, meanwhile=steps)
def test_whatever_is_in_storage_comes_back_into_an_empty_server(
    shared_url: str, before: list[Step], meanwhile: list[Step]
) -> None:
    it = life(shared_url)
    bench = it.bench
    try:
        it.take([("submit", 0, 0), *before, ("commit", 0, 0)])
        had = it.items()
        rows = {job: bench.queue.run_row(job) for job in had}
        bench.raw.delete(*bench.raw.keys(f"{bench.keys.prefix}*"))
        bench.clock.move(5)
        bench.server.hello(bench.queue.name)
        it.leases.clear()
        it.take([step for step in meanwhile if step[0] in ("submit", "delay", "time", "claim")])
        done = Restoration(bench.queue, it.store, None, writer="restore").run()
        assert done.tally.jobs == len(had)
        for job, item in had.items():
            row, was = bench.row(job), rows[job]
            assert was is not None
            if item.state is not None:
                assert (row.state, row.durable) == (item.state, True)
            else:
                assert row.state in (JobState.QUEUED, JobState.DELAYED)
                assert it.tokens_of(job) == item.ids
                assert row.offset == len(item.ids)
            assert (row.tag, row.strikes, row.faults, row.attempt) == (was.tag, was.strikes, was.faults, was.attempt)
        it.take([("commit", 0, 0)])
        assert it.items().keys() == set(bench.queue.ids())
        it.run_to_the_end(had)
    finally:
        close(it)


@pytest.mark.slow
@several
@given(before=steps, forgotten=steps, meanwhile=steps)
def test_a_server_that_went_back_ends_nothing_otherwise_than_storage_has_it(
    shared_url: str, before: list[Step], forgotten: list[Step], meanwhile: list[Step]
) -> None:
    it = life(shared_url)
    bench = it.bench
    try:
        it.take([("submit", 0, 0), *before])
        kept = {key: bench.raw.dump(key) for key in bench.raw.keys(f"{bench.keys.prefix}*")}
        leases = dict(it.leases)
        it.take([*forgotten, ("commit", 0, 0)])
        had = it.items()
        bench.raw.delete(*bench.raw.keys(f"{bench.keys.prefix}*"))
        for key, value in kept.items():
            assert isinstance(value, bytes)
            bench.raw.restore(key, 0, value)
        bench.clock.move(3)
        bench.raw.hset(bench.keys.named("meta"), "run_id", "an earlier life")
        bench.server.hello(bench.queue.name)
        it.leases = leases | it.leases
        it.take([step for step in meanwhile if step[0] in ("submit", "append", "claim", "time", "park", "commit")])
        assert open_queue(bench.queue, it.store, writer="persister")
        ids = set(bench.queue.ids())
        assert had.keys() <= ids
        for job, item in had.items():
            row = bench.row(job)
            assert (row.state if row.state.ended else None) == item.state, f"{job}: {row.state}, not {item.state}"
            if item.state is not None and bench.queue.events(job):
                assert len(it.tokens_of(job)) == row.offset
        it.take([("commit", 0, 0)])
        assert it.items().keys() == ids
        it.leases.clear()
        it.run_to_the_end(had)
        it.take([("commit", 0, 0)])
        assert all(item.state is not None for item in it.items().values())
    finally:
        close(it)
