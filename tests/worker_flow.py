"""What tests of worker processes with a slow engine share: a patient start, rows, and streams read as producers do."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from conftest import Deployment, WorkerChild, eventually
from headpond import Chunk, Job, Result
from headpond.queue import JobQueue
from headpond.wire import RunRow
from headpond.workers import WorkerState

READY_S = 240.0
ENDED_S = 120.0


def start_worker(
    deployment: Deployment,
    instance: str,
    *,
    program: str = "headpond_workers.worker",
    environment: Mapping[str, str] | None = None,
) -> WorkerChild:
    """Start a worker of the model `chat`, and wait until it is ready."""
    worker = deployment.start("chat", instance, ready=False, program=[program], environment=environment)
    queue = deployment.queue("chat")

    def settled() -> bool:
        serves = any(row.pid == worker.pid and row.state is WorkerState.READY for row in queue.workers())
        return serves or worker.process.poll() is not None

    eventually(settled, deadline_s=READY_S, what=f"{instance} being ready")
    assert worker.process.poll() is None, worker.log.read_text()[-3000:]
    return worker


def row_of(queue: JobQueue, job: Job) -> RunRow:
    row = queue.run_row(job.id)
    assert row is not None
    return row


def await_tokens(queue: JobQueue, job: Job, tokens: int) -> None:
    """Wait until the job has so many tokens. Fails the test if it ends with fewer."""

    def settled() -> RunRow | None:
        row = row_of(queue, job)
        return row if row.offset >= tokens or row.state.ended else None

    row = eventually(settled, deadline_s=ENDED_S, what=f"{tokens} tokens")
    assert row is not None
    assert row.offset >= tokens, f"{job.id} is {row.state} with {row.offset} tokens"


class Reading(threading.Thread):
    """A stream that is read from its beginning to the end of the job."""

    def __init__(self, job: Job) -> None:
        # A daemon: a test that fails leaves the job without an end.
        super().__init__(daemon=True)
        self.job = job
        self.chunks: list[Chunk] = []
        self.start()

    def run(self) -> None:
        for chunk in self.job.stream():
            self.chunks.append(chunk)

    @property
    def ids(self) -> tuple[int, ...]:
        """Those that were read so far."""
        return tuple(i for chunk in list(self.chunks) for i in chunk.token_ids)


def assert_read_once(reading: Reading, result: Result) -> None:
    """Every token came once and in order, whichever worker made it."""
    reading.join(ENDED_S)
    assert not reading.is_alive()
    offset = 0
    for chunk in reading.chunks:
        assert chunk.offset == offset
        assert not chunk.restarted
        offset += len(chunk.token_ids)
    assert reading.ids == result.token_ids
    assert "".join(chunk.text for chunk in reading.chunks) == result.text
