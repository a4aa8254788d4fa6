"""A job that kills its worker each time, among twenty innocent ones, on real worker processes.

Throughput is what the queue makes of the slots that there are: tokens of innocents, for each second of a slot whose
worker is alive and ready. A killed worker's slots are not there until its successor is ready, however long an
interpreter takes to start; a slot that is there and idle, or runs something that comes to nothing, counts in full. It
is taken while more innocents are left than slots, so that each slot could have one, and compared with the same jobs on
the same workers without the poison.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import pytest

from conftest import Deployment, WorkerChild, eventually
from headpond import Client, Job, JobState
from headpond.queue import JobQueue
from headpond.workers import WorkerState
from worker_flow import row_of

WORKERS, SLOTS = 3, 2
INNOCENTS = 20
ANSWER_TOKENS = [120 + 37 * n % 160 for n in range(INNOCENTS)]
"""They differ, so that slots do not become free all at once."""
MODEL = f"""
[models.chat]
engine = "scripted"
tokens_per_s = 50
slots = {SLOTS}
lease_s = 1.0
answer_tokens = 1000
crash_at = "token"
crash_token = 3
crash_prompt = "POISON"
"""


@dataclass
class Workers:
    """Worker processes, and who starts each again that was killed, as supervisord would."""

    deployment: Deployment
    queue: JobQueue
    alive: dict[str, WorkerChild] = field(default_factory=dict)
    killed: int = 0

    def start(self) -> None:
        for n in range(WORKERS):
            self.alive[f"chat-{n}"] = self.deployment.start("chat", f"chat-{n}", ready=False)
        eventually(lambda: self.ready_slots() == WORKERS * SLOTS, what="all workers being ready")

    def restart_killed(self) -> None:
        for instance, child in list(self.alive.items()):
            if child.process.poll() is not None:
                assert child.process.returncode == -9, child.log.read_text()[-3000:]
                self.killed += 1
                self.alive[instance] = self.deployment.start("chat", instance, ready=False)

    def ready_slots(self) -> int:
        ready = {row.pid for row in self.queue.workers() if row.state is WorkerState.READY}
        return SLOTS * sum(child.pid in ready and child.process.poll() is None for child in self.alive.values())


@dataclass
class Throughput:
    tokens: int = 0
    slot_seconds: float = 0.0
    until_ms: float = 0.0

    @property
    def per_slot_second(self) -> float:
        return self.tokens / self.slot_seconds


def measure(workers: Workers, innocents: list[Job]) -> Throughput:
    """Watch until all innocents have ended. What is measured ends as soon as there are fewer of them than slots."""
    measured, steady = Throughput(), True
    last = time.monotonic()
    until = last + 120
    while True:
        workers.restart_killed()
        slots = workers.ready_slots()
        rows = [row_of(workers.queue, job) for job in innocents]
        left = sum(not row.state.ended for row in rows)
        steady = steady and left >= WORKERS * SLOTS
        now = time.monotonic()
        if steady:
            measured.tokens = sum(row.offset for row in rows)
            measured.slot_seconds += slots * (now - last)
            measured.until_ms = time.time() * 1000
        elif left == 0:
            return measured
        last = now
        assert now < until, "the innocents did not end in time"
        threading.Event().wait(0.02)


def submit(client: Client, name: str, *, poison: bool) -> tuple[list[Job], Job | None]:
    requests: list[dict[str, object]] = [
        {"prompt": f"innocent {n}", "id": f"chat/{name}-{n}", "seed": n, "max_tokens": ANSWER_TOKENS[n]}
        for n in range(INNOCENTS)
    ]
    if poison:
        requests.insert(3, {"prompt": "POISON", "id": f"chat/{name}-poison"})
    jobs = client.submit_many("chat", requests)
    return [job for job in jobs if "poison" not in job.id], jobs[3] if poison else None


@pytest.mark.slow
def test_a_job_that_kills_its_workers_is_quarantined_and_costs_innocents_little(
    deployment: Deployment, client: Client
) -> None:
    deployment.configure(MODEL)
    queue = deployment.queue("chat")
    workers = Workers(deployment, queue)
    workers.start()

    calm_jobs, _ = submit(client, "calm", poison=False)
    calm = measure(workers, calm_jobs)
    assert workers.killed == 0
    jobs, poison = submit(client, "beside", poison=True)
    assert poison is not None
    disturbed = measure(workers, jobs)

    row = row_of(queue, poison)
    assert (row.state, row.strikes, row.attempt, workers.killed) == (JobState.DEAD, 3, 3, 3)
    attempts = queue.attempts(poison.id)
    assert [attempt.how for attempt in attempts] == ["killed"] * 3
    assert len({attempt.boot for attempt in attempts}) == 3
    assert [job_id for job_id, _ in queue.dead()] == [poison.id]
    # All of it fell into what was measured.
    assert row.ended_ms < disturbed.until_ms
    for job, undisturbed, tokens in zip(jobs, calm_jobs, ANSWER_TOKENS, strict=True):
        result = job.result(timeout=1)
        assert (result.token_ids, result.text) == (undisturbed.result(timeout=1).token_ids, result.text)
        assert len(result.token_ids) == tokens
    assert disturbed.per_slot_second >= 0.8 * calm.per_slot_second, (disturbed, calm)
