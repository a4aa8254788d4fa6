"""P7 with real processes: everything is killed and Redis's data are gone, or are those of an earlier moment."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from child_environment import with_test_modules
from conftest import Deployment, eventually
from headpond import Chunk, Client, Job, JobState
from headpond.errors import HeadpondError
from headpond.queue import JobQueue
from headpond.settings import load_settings
from headpond_workers.supervision.deployment import Deployment as UpDeployment
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess
from headpond_workers.supervision.embedded_valkey import ValkeyProcess
from headpond_workers.supervision.supervisord_process import process_runs
from queue_bench import keep_data
from stored_deployment import start_persister, storage_table

pytestmark = pytest.mark.slow

HEADPOND = [sys.executable, "-c", "from headpond.cli import main; main()"]
TOKENS = 60
CONFIG = f"""
[models.chat]
engine = "scripted"
workers = 2
slots = 3
tokens_per_s = 30
answer_tokens = {TOKENS}
lease_s = 2.0
[models.other]
engine = "scripted"
answer_tokens = 5
lease_s = 2.0
"""


class Reader(threading.Thread):
    """Reads a job as a producer does, over every outage."""

    def __init__(self, job: Job) -> None:
        super().__init__(daemon=True)
        self.job = job
        self.chunks: list[Chunk] = []
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            for chunk in self.job.stream():
                self.chunks.append(chunk)
        except HeadpondError as error:
            self.error = error

    def tokens(self) -> tuple[int, ...]:
        """What a producer holds who obeys `restarted`. Fails where a chunk leaves a gap, or repeats unsaid."""
        held: list[int] = []
        for chunk in self.chunks:
            if chunk.restarted:
                assert chunk.offset <= len(held)
                del held[chunk.offset :]
            assert chunk.offset == len(held)
            held += chunk.token_ids
        return tuple(held)


def headpond(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command, as at a shell in this folder."""
    return subprocess.run(
        [*HEADPOND, *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False,
        env={**with_test_modules(), "COLUMNS": "200"},
    )  # fmt: skip


def processes_of(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            words = " ".join(process.cmdline())
            if process.pid != os.getpid() and (str(folder) in words or process.cwd().startswith(str(folder))):
                found.append(process)
    return [process for process in found if process_runs(process.pid)]


def kill_all(folder: Path) -> None:
    def gone() -> bool:
        left = processes_of(folder)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process.kill()
        return not left

    eventually(gone, what="everything being dead")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with a configuration of embedded servers; what was started on it ends with the test."""
    (tmp_path / "headpond.toml").write_text(CONFIG)
    try:
        yield tmp_path
    finally:
        with contextlib.suppress(HeadpondError):
            up_of(tmp_path).down()
        kill_all(tmp_path)


def up_of(folder: Path) -> UpDeployment:
    return UpDeployment(load_settings(folder / "headpond.toml"))


def start(folder: Path) -> None:
    up = up_of(folder)
    up.up()
    up.wait_ready(timeout_s=90)


def test_everything_is_killed_and_redis_is_lost_and_all_jobs_end(folder: Path) -> None:
    start(folder)
    state = folder / ".headpond"
    url = json.loads((state / "run.json").read_text())["redis_url"]
    with Client(url) as client:
        first = [client.submit("chat", f"hello {n}", id=f"chat/first-{n}") for n in range(4)]
        answers = {job.id: job.result(timeout=60) for job in first}
        jobs = [client.submit("chat", f"hello {n}", id=f"chat/job-{n:02}", tenant="ab"[n % 2]) for n in range(20)]
        cancelled = client.submit("chat", "never", id="chat/cancelled", priority="batch", delay=3600)
        cancelled.cancel()
        other = client.submit("other", "x", id="other/a")
        other.result(timeout=60)
        eventually(lambda: all(job.result(timeout=10).durable for job in [*first, other]), what="commits of ends")
        running = eventually(lambda: [job for job in jobs if job.state() is JobState.RUNNING], what="jobs that run")
        had = next(chunk for chunk in running[0].stream() if chunk.offset > 40)
        assert had.token_ids

    kill_all(folder)
    shutil.rmtree(state / "valkey" / "appendonlydir")
    start(folder)

    url = json.loads((state / "run.json").read_text())["redis_url"]
    with Client(url) as client:
        meanwhile = client.submit("chat", "one more", id="chat/meanwhile")
        status = up_of(folder).status()
        assert {queue.model for queue in status.queues if queue.closed} == {"chat", "other"}
        told = headpond(folder, "restore", "--dry-run", "--json")
        assert told.returncode == 0, told.stderr
        planned = {model["model"]: model for model in json.loads(told.stdout)["models"]}
        done = headpond(folder, "restore", "--json")
        assert done.returncode == 0, done.stderr
        restored = {model["model"]: model for model in json.loads(done.stdout)["models"]}
        assert planned.keys() == restored.keys() == {"chat", "other"}
        chat = restored["chat"]
        assert chat["queued"] + sum(chat["ended"].values()) == 25
        assert chat["ended"]["cancelled"] == 1
        assert chat["resumed"] >= 1
        assert chat["lost_ms"] > 0

        for job in [*jobs, meanwhile]:
            result = client.job(job.id).result(timeout=90)
            assert (result.state, len(result.token_ids)) == (JobState.FINISHED, TOKENS)
        for job_id, before in answers.items():
            after = client.job(job_id).result(timeout=10)
            assert (after.token_ids, after.text, after.durable) == (before.token_ids, before.text, True)
        assert client.job("chat/cancelled").state() is JobState.CANCELLED
        assert client.submit("chat", "hello 3", id="chat/job-03", tenant="b").state() is JobState.FINISHED
    again = headpond(folder, "restore", "--model", "chat")
    assert again.returncode == 2
    assert "has not lost it" in again.stderr


def _offset(queue: JobQueue, job_id: str) -> int:
    row = queue.run_row(job_id)
    return 0 if row is None else row.offset


@pytest.fixture
def stored(deployment: Deployment, tmp_path: Path) -> Iterator[Deployment]:
    """A deployment with storage of its own, a persister and a worker."""
    seaweed = SeaweedProcess(tmp_path / "storage")
    seaweed.start()
    deployment.configure(CONFIG, extra=storage_table(seaweed, deployment.folder))
    try:
        yield deployment
    finally:
        deployment.close()
        seaweed.stop()


def test_a_server_that_comes_back_with_old_data_loses_nothing_that_was_committed(
    stored: Deployment, valkey: ValkeyProcess, client: Client, tmp_path: Path
) -> None:
    start_persister(stored)
    stored.start("chat", "chat-0")
    queue = stored.queue("chat")
    early = client.submit("chat", "early", id="chat/early")
    reader = Reader(client.job(early.id))
    eventually(lambda: len(reader.chunks) > 5, what="tokens of the first job")
    kept = keep_data(valkey, tmp_path / "kept")

    late = [client.submit("chat", f"late {n}", id=f"chat/late-{n}") for n in range(6)]
    readers = [Reader(client.job(job.id)) for job in late]
    waits = client.submit("chat", "waits", id="chat/waits", delay=20)
    cancelled = client.submit("chat", "never", id="chat/never")
    cancelled.cancel()
    answer = early.result(timeout=60)
    eventually(lambda: early.result(timeout=10).durable, what="the commit of an end")
    eventually(lambda: _offset(queue, late[2].id) > 10, what="tokens of a later job")
    eventually(lambda: queue.journal_length() == 0, what="all being committed")
    ended = {job.id: job.state() for job in [early, *late, cancelled] if job.state().ended}

    valkey.kill()
    shutil.rmtree(valkey.folder / "appendonlydir")
    shutil.copytree(kept, valkey.folder / "appendonlydir")
    valkey.start()
    eventually(lambda: queue.meta().get("state") == "open" and "rolled_to" not in queue.meta(), what="an open queue")

    assert {job: client.job(job).state() for job in ended} == ended
    same = client.job(early.id).result(timeout=10)
    assert (same.token_ids, same.text, same.durable) == (answer.token_ids, answer.text, True)
    results = {job.id: client.job(job.id).result(timeout=90) for job in late}
    assert {(result.state, len(result.token_ids)) for result in results.values()} == {(JobState.FINISHED, TOKENS)}
    assert client.job(waits.id).result(timeout=60).state is JobState.FINISHED
    for each in [reader, *readers]:
        each.join(60)
        assert not each.is_alive()
        assert each.error is None
        assert each.tokens() == client.job(each.job.id).result(timeout=10).token_ids


def test_a_queue_waits_for_storage_after_a_restart_and_generation_goes_on(
    deployment: Deployment, valkey: ValkeyProcess, client: Client, tmp_path: Path
) -> None:
    seaweed = SeaweedProcess(tmp_path / "storage")
    seaweed.start()
    try:
        deployment.configure(CONFIG, extra=storage_table(seaweed, deployment.folder))
        start_persister(deployment)
        deployment.start("chat", "chat-0")
        queue = deployment.queue("chat")
        job = client.submit("chat", "hello", id="chat/a")
        eventually(lambda: _offset(queue, job.id) > 5, what="tokens")
        seaweed.kill()
        valkey.kill()
        valkey.start()
        with redis.Redis.from_url(valkey.url) as raw:
            assert raw.ping()
        eventually(lambda: _offset(queue, job.id) == TOKENS, what="all tokens")
        assert queue.meta()["state"] == "reconciling"
        row = queue.run_row(job.id)
        assert row is not None
        assert row.state is JobState.RUNNING
        seaweed.start()
        result = job.result(timeout=60)
        assert (result.state, result.attempts, len(result.token_ids)) == (JobState.FINISHED, 1, TOKENS)
    finally:
        deployment.close()
        seaweed.stop()
