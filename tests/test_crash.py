"""P1 and P2 with real processes: what a kill may not do to a job and its stream."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

from conftest import Deployment, eventually
from headpond import Chunk, Client, Job, JobState
from headpond.workers import WorkerState
from headpond_workers.supervision.embedded_valkey import running_valkey

MODEL = """
[models.chat]
engine = "scripted"
tokens_per_s = {speed}
slots = 4
lease_s = 1.0
answer_tokens = {tokens}
"""
PROMPT = "Tell me of the river."


def undisturbed(folder: Path, *, tokens: int) -> tuple[tuple[int, ...], str]:
    """Ids and text of the same job in a deployment of its own in which nothing goes wrong."""
    folder.mkdir(mode=0o700)
    with running_valkey(folder / "server") as valkey:
        calm = Deployment(valkey, folder)
        try:
            calm.configure(MODEL.format(speed=2000, tokens=tokens))
            calm.start("chat", "chat-0")
            with Client(valkey.url) as client:
                result = client.submit("chat", PROMPT, id="chat/one", max_tokens=1000).result(timeout=30)
        finally:
            calm.close()
    assert result.attempts == 1
    assert len(result.token_ids) == tokens
    return result.token_ids, result.text


class Reader(threading.Thread):
    """Reads a stream from its beginning, as a producer does."""

    def __init__(self, job: Job) -> None:
        super().__init__(daemon=True)
        self.job = job
        self.chunks: list[Chunk] = []
        self.start()

    def run(self) -> None:
        for chunk in self.job.stream():
            self.chunks.append(chunk)

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(i for chunk in self.chunks for i in chunk.token_ids)

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    def finish(self) -> None:
        self.join(30)
        assert not self.is_alive()


def assert_contiguous(chunks: list[Chunk]) -> None:
    offset = 0
    for chunk in chunks:
        assert chunk.offset == offset
        assert not chunk.restarted
        offset += len(chunk.token_ids)


def test_a_second_worker_goes_on_where_a_killed_one_stopped(
    deployment: Deployment, client: Client, tmp_path: Path
) -> None:
    ids, text = undisturbed(tmp_path / "calm", tokens=120)
    deployment.configure(MODEL.format(speed=60, tokens=120))
    first = deployment.start("chat", "chat-0")
    job = client.submit("chat", PROMPT, id="chat/one", max_tokens=1000)
    reader = Reader(job)
    eventually(lambda: len(reader.ids) >= 20, what="twenty tokens")
    assert job.state() is JobState.RUNNING
    first.kill()
    before = len(reader.ids)
    assert before < 120
    deployment.start("chat", "chat-1")

    result = job.result(timeout=30)
    reader.finish()

    assert result.attempts == 2
    assert (result.token_ids, result.text) == (ids, text)
    assert (reader.ids, reader.text) == (ids, text)
    assert_contiguous(reader.chunks)
    # A late reader, and ones that have a part already, get the exact rest.
    assert tuple(i for chunk in job.stream() for i in chunk.token_ids) == ids
    assert "".join(chunk.text for chunk in job.stream()) == text
    for after in (1, 17, before, 119):
        rest = list(job.stream(after=after))
        assert tuple(i for chunk in rest for i in chunk.token_ids) == ids[after:]
        assert rest[0].offset == after
        head = "".join(chunk.text for chunk in job.stream())[: len(text) - len("".join(c.text for c in rest))]
        assert head + "".join(chunk.text for chunk in rest) == text
    assert list(job.stream(after=120)) == []


def test_a_zombie_past_its_lease_is_fenced(deployment: Deployment, client: Client, tmp_path: Path) -> None:
    ids, text = undisturbed(tmp_path / "calm", tokens=100)
    deployment.configure(MODEL.format(speed=50, tokens=100))
    zombie = deployment.start("chat", "chat-0")
    job = client.submit("chat", PROMPT, id="chat/one", max_tokens=1000)
    reader = Reader(job)
    eventually(lambda: len(reader.ids) >= 10, what="ten tokens")
    zombie.signal(signal.SIGSTOP)
    deployment.start("chat", "chat-1")
    queue = deployment.queue("chat")

    def attempt() -> int:
        row = queue.run_row("chat/one")
        assert row is not None
        return row.attempt

    eventually(lambda: attempt() == 2, what="the second worker's lease")
    zombie.signal(signal.SIGCONT)

    result = job.result(timeout=30)
    reader.finish()
    assert result.attempts == 2
    assert (result.token_ids, result.text) == (ids, text)
    assert reader.ids == ids
    assert_contiguous(reader.chunks)
    eventually(lambda: "status=fenced" in zombie.log.read_text(), what="the zombie hearing that it is fenced")
    assert zombie.process.poll() is None


def test_a_killed_server_loses_no_token_and_repeats_none(
    deployment: Deployment, client: Client, tmp_path: Path
) -> None:
    ids, text = undisturbed(tmp_path / "calm", tokens=150)
    deployment.configure(MODEL.format(speed=60, tokens=150))
    deployment.start("chat", "chat-0")
    job = client.submit("chat", PROMPT, id="chat/one", max_tokens=1000)
    reader = Reader(job)
    eventually(lambda: len(reader.ids) >= 20, what="twenty tokens")
    deployment.valkey.kill()
    deployment.valkey.start()

    result = job.result(timeout=30)
    reader.finish()
    assert (result.token_ids, result.text) == (ids, text)
    assert reader.ids == ids
    assert_contiguous(reader.chunks)


def test_a_draining_worker_parks_what_does_not_end_in_time(
    deployment: Deployment, client: Client, tmp_path: Path
) -> None:
    ids, text = undisturbed(tmp_path / "calm", tokens=150)
    deployment.configure(MODEL.format(speed=50, tokens=150) + "drain_timeout_s = 0.2\n")
    first = deployment.start("chat", "chat-0")
    job = client.submit("chat", PROMPT, id="chat/one", max_tokens=1000)
    reader = Reader(job)
    eventually(lambda: len(reader.ids) >= 10, what="ten tokens")
    first.signal(signal.SIGTERM)
    assert first.wait() == 0
    assert job.state() is JobState.QUEUED
    row = deployment.queue("chat").run_row("chat/one")
    assert row is not None
    assert row.strikes == 0
    deployment.start("chat", "chat-1")
    result = job.result(timeout=30)
    reader.finish()
    assert (result.token_ids, result.text) == (ids, text)
    assert reader.ids == ids
    assert_contiguous(reader.chunks)


def test_a_draining_worker_lets_its_job_end(deployment: Deployment, client: Client) -> None:
    deployment.configure(MODEL.format(speed=50, tokens=60))
    worker = deployment.start("chat", "chat-0")
    job = client.submit("chat", PROMPT, max_tokens=1000)
    eventually(lambda: job.state() is JobState.RUNNING, what="the job running")
    waiting = client.submit("chat", PROMPT, max_tokens=1000)
    eventually(lambda: waiting.state() is JobState.RUNNING, what="the other job running")
    worker.signal(signal.SIGTERM)
    queue = deployment.queue("chat")
    eventually(lambda: queue.workers()[0].state is WorkerState.DRAINING, what="the worker saying that it drains")
    late = client.submit("chat", PROMPT, max_tokens=1000)
    assert worker.wait() == 0
    assert job.result(timeout=1).attempts == 1
    assert waiting.result(timeout=1).attempts == 1
    assert late.state() is JobState.QUEUED
