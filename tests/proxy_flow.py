"""What tests of proxy workers share: a table that is quick to give up, and streams read with their restarts."""

from __future__ import annotations

import threading

from conftest import Deployment, WorkerChild, eventually
from headpond import Chunk, Job
from headpond.queue import JobQueue
from headpond.wire import Rewound, unpack_event
from headpond.workers import WorkerRow

KEY = "sk-of-the-tests"


def table(url: str, **settings: object) -> str:
    """[models.remote] for headpond.toml. settings: as TOML has them, a text with its quotes."""
    quick = {
        "slots": 4, "lease_s": 1.0, "drain_timeout_s": 0.3, "api_key": '{env = "TEST_UPSTREAM_KEY"}',
        "upstream_model": '"m"', "max_retries": 1, "backoff_s": 0.05, "max_backoff_s": 0.2,
        "first_token_timeout_s": 1.0, "token_timeout_s": 1.0, "max_response_bytes": 1 << 20,
    }  # fmt: skip
    lines = [f"{key} = {value}" for key, value in (quick | settings).items()]
    return "\n".join(["[models.remote]", 'engine = "openai"', f'base_url = "{url}"', *lines, ""])


def start(deployment: Deployment, instance: str, **environment: str) -> WorkerChild:
    return deployment.start("remote", instance, environment={"TEST_UPSTREAM_KEY": KEY, **environment})


def row_of(queue: JobQueue, worker: WorkerChild) -> WorkerRow:
    (row,) = [row for row in queue.workers() if row.pid == worker.pid]
    return row


def rewinds(queue: JobQueue, job: Job) -> list[Rewound]:
    events = [unpack_event(fields[b"e"]) for _, fields in queue.events(job.id) if b"e" in fields]
    return [event for event in events if isinstance(event, Rewound)]


class Reading(threading.Thread):
    """A stream that is read as a producer does, who drops what a restart makes void."""

    def __init__(self, job: Job) -> None:
        super().__init__(daemon=True)
        self.job = job
        self.chunks: list[Chunk] = []
        self.start()

    def run(self) -> None:
        for chunk in self.job.stream():
            self.chunks.append(chunk)

    @property
    def restarts(self) -> int:
        return sum(chunk.restarted for chunk in list(self.chunks))

    @property
    def text(self) -> str:
        """What stands at last."""
        pieces: list[Chunk] = []
        for chunk in list(self.chunks):
            if chunk.restarted:
                pieces = [piece for piece in pieces if piece.offset < chunk.offset]
            assert chunk.offset == sum(len(piece.token_ids) for piece in pieces)
            pieces.append(chunk)
        return "".join(piece.text for piece in pieces)

    def await_tokens(self, count: int) -> None:
        eventually(lambda: sum(len(c.token_ids) for c in list(self.chunks)) >= count, what=f"{count} tokens")

    def ended(self, timeout_s: float = 60.0) -> None:
        self.join(timeout_s)
        assert not self.is_alive()
