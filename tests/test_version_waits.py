"""How long a job waits for a worker of its version, and what does not count as waiting. On a real server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from headpond.connections import RedisAddress
from headpond.jobs import JobState
from headpond.operations import Append, Entry, QueuePolicy
from headpond.queue import JobQueue, Server
from headpond.wire import Call, TokenRun, pack_data
from headpond.workers import WorkerRow, WorkerState
from headpond_workers.supervision.embedded_valkey import running_valkey

LEASE_S = 10.0
WAIT_S = 300.0
HOUR_S = 3600.0


@dataclass
class Wait:
    """A queue whose time the test moves, and the one worker that has served version v1."""

    queue: JobQueue
    now_ms: int = 1_800_000_000_000

    def register(self, boot: str) -> None:
        row = WorkerRow(boot, "chat", "v1", "host", 1, "chat-0", 1, 0, WorkerState.READY, "", 1)
        policy = QueuePolicy(lease_s=LEASE_S, retention_s=HOUR_S, version_wait_s=WAIT_S)
        self.queue.register(row, policy, fingerprint="f")

    def submit(self, job_id: str, *, pinned: str = "") -> None:
        data = pack_data(Call("generate", (), {}, {}, 0), digest="d", pinned=pinned)
        self.queue.submit([Entry(job_id, data, "d", pinned=pinned)])

    def pass_by(self, seconds: float, *, step_s: float = LEASE_S / 4) -> None:
        """Let time pass as a queue has it that somebody looks after: a sweep now and then."""
        until_ms = self.now_ms + round(seconds * 1000)
        while self.now_ms < until_ms:
            self.now_ms = min(until_ms, self.now_ms + round(step_s * 1000))
            self.queue.tick()

    def state(self, job_id: str) -> JobState:
        row = self.queue.run_row(job_id)
        assert row is not None
        return row.state


@pytest.fixture
def wait(tmp_path: Path) -> Iterator[Wait]:
    with running_valkey(tmp_path) as valkey:
        server = Server(RedisAddress(valkey.url, "the test"), clock=lambda: moved.now_ms)
        moved = Wait(JobQueue(server, "chat"))
        server.queue("chat")
        moved.register("A")
        yield moved
        server.close()


def test_a_pinned_job_fails_once_nobody_has_served_its_version_for_long_enough(wait: Wait) -> None:
    wait.submit("chat/pinned", pinned="v1")
    wait.queue.unregister("A")
    wait.pass_by(WAIT_S)
    assert wait.state("chat/pinned") is JobState.QUEUED
    wait.pass_by(2 * LEASE_S)

    row = wait.queue.run_row("chat/pinned")
    assert row is not None
    assert (row.state, row.reason) == (JobState.FAILED, "no worker serves version v1 any more")


def test_a_pinned_job_waits_as_long_as_a_worker_of_its_version_is_heard_of(wait: Wait) -> None:
    wait.submit("chat/pinned", pinned="v1")
    for _ in range(round(2 * WAIT_S / LEASE_S)):
        wait.pass_by(LEASE_S)
        wait.register("A")
    assert wait.state("chat/pinned") is JobState.QUEUED


def test_an_unpinned_job_is_given_to_any_version_once_nobody_serves_that_of_its_tokens(wait: Wait) -> None:
    wait.submit("chat/bound")
    (lease,) = wait.queue.claim("A", seq=1, nonce="n", slots=1, version="v1", fingerprint="f").leases
    wait.queue.append([Append(lease.id, lease.fence, TokenRun(0, (7,), ("x",)))])
    wait.queue.unregister("A")
    row = wait.queue.run_row("chat/bound")
    assert row is not None
    assert (row.state, row.lane, row.offset) == (JobState.QUEUED, "v1", 1)

    wait.pass_by(WAIT_S + 2 * LEASE_S)

    row = wait.queue.run_row("chat/bound")
    assert row is not None
    assert (row.state, row.lane, row.offset) == (JobState.QUEUED, "any", 1)
    (lease,) = wait.queue.claim("B", seq=1, nonce="m", slots=1, version="v1", fingerprint="f").leases
    assert lease.offset == 1, "the same model came back, so its tokens are still good"


def test_time_in_which_nothing_ran_is_no_waiting_for_a_version(wait: Wait) -> None:
    wait.submit("chat/pinned", pinned="v1")
    wait.queue.unregister("A")
    wait.pass_by(2 * LEASE_S)

    # The machine is off. When it comes back, the persister is there before a worker has loaded its model.
    wait.now_ms += round(HOUR_S * 1000)
    wait.queue.tick()
    wait.pass_by(WAIT_S / 2)
    assert wait.state("chat/pinned") is JobState.QUEUED

    wait.register("B")
    assert [lease.id for lease in wait.queue.claim("B", seq=1, nonce="n", slots=1, version="v1").leases] == [
        "chat/pinned"
    ]


def test_where_only_a_rare_reader_looks_a_version_is_given_up_all_the_same(wait: Wait) -> None:
    wait.submit("chat/pinned", pinned="v1")
    wait.queue.unregister("A")
    wait.pass_by(3 * WAIT_S, step_s=2 * LEASE_S)
    assert wait.state("chat/pinned") is JobState.FAILED
