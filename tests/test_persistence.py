"""From the queue to storage with real processes: nothing is lost, and nobody waits for S3."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from conftest import Deployment, WorkerChild, eventually
from headpond import Client, JobState
from headpond.errors import JobCancelled, JobGone, NotStored
from headpond.jobs import JobId
from headpond.settings import load_settings
from headpond_workers.persistence.documents import Head
from headpond_workers.persistence.reading import read_result
from headpond_workers.persistence.segments import StateStore
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.settings import storage_of
from headpond_workers.supervision.deployment import Deployment as UpDeployment
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess
from stored_state import differences

pytestmark = pytest.mark.slow

MODEL = """
[models.chat]
engine = "scripted"
tokens_per_s = {speed}
answer_tokens = 40
lease_s = 1.0
retention_s = {retention}
"""


class Stored:
    """A deployment with storage of its own and a persister."""

    def __init__(self, deployment: Deployment, seaweed: SeaweedProcess) -> None:
        self.deployment, self.seaweed = deployment, seaweed
        self.folder = deployment.folder

    def configure(self, *, speed: int = 200, retention: float = 3600) -> None:
        for name, value in (("access", self.seaweed.access_key), ("secret", self.seaweed.secret_key)):
            (self.folder / name).touch(mode=0o600)
            (self.folder / name).write_text(value)
        storage = (
            f'[storage]\nendpoint_url = "{self.seaweed.url}"\n'
            'access_key = {file = "ACCESS"}\nsecret_key = {file = "SECRET"}\n'
        )
        storage = storage.replace("ACCESS", str(self.folder / "access")).replace("SECRET", str(self.folder / "secret"))
        self.deployment.configure(MODEL.format(speed=speed, retention=retention), extra=storage)

    def start_persister(self, *, before: str = "") -> WorkerChild:
        """before: what its process runs first."""
        log = self.folder / "persister.log"
        run = f"{before}\nimport sys\nfrom headpond_workers.persister import main\nmain(sys.argv[1:])"
        command = [sys.executable, "-c", run, "--config", str(self.deployment.config)]
        with log.open("ab") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.folder)
        child = WorkerChild(process, log)
        self.deployment.children.append(child)
        return child

    def store(self) -> StateStore:
        address = storage_of(load_settings(self.deployment.config))
        assert address is not None
        return StateStore(S3Blobs(address), "chat")


@pytest.fixture
def stored(deployment: Deployment, tmp_path: Path) -> Iterator[Stored]:
    seaweed = SeaweedProcess(tmp_path / "storage")
    seaweed.start()
    try:
        yield Stored(deployment, seaweed)
    finally:
        deployment.close()
        seaweed.stop()


def test_a_result_is_durable_and_outlives_redis_retention(stored: Stored, client: Client) -> None:
    stored.configure(retention=1.0)
    stored.start_persister()
    stored.deployment.start("chat", "chat-0")
    job = client.submit("chat", "hello", id="chat/one")
    answered = job.result(timeout=30)
    assert answered.state is JobState.FINISHED

    def forgotten() -> bool:
        try:
            job.state()
        except JobGone:
            return True
        return False

    eventually(forgotten, what="Redis forgetting the job")
    kept = read_result(JobId.parse("chat/one"), start=stored.folder)
    assert kept.durable
    assert (kept.text, kept.token_ids, kept.attempts) == (answered.text, answered.token_ids, 1)
    with pytest.raises(NotStored, match="chat/two"):
        read_result(JobId.parse("chat/two"), start=stored.folder)


def test_a_cancelled_job_is_stored_with_the_tokens_it_had(stored: Stored, client: Client) -> None:
    stored.configure(speed=20)
    stored.start_persister()
    stored.deployment.start("chat", "chat-0")
    job = client.submit("chat", "hello", id="chat/one")
    seen = [chunk for chunk, _ in zip(job.stream(), range(5), strict=False)]
    job.cancel()
    with pytest.raises(JobCancelled) as caught:
        job.result(timeout=10)
    partial = caught.value.result
    assert len(partial.token_ids) >= len(seen)
    eventually(lambda: _durable(job.id, stored), what="the commit")
    kept = read_result(JobId.parse(job.id), start=stored.folder)
    assert (kept.state, kept.text, kept.token_ids) == (JobState.CANCELLED, partial.text, partial.token_ids)


def _durable(job_id: str, stored: Stored) -> bool:
    row = stored.deployment.queue("chat").run_row(job_id)
    return row is not None and row.durable


def test_no_token_waits_for_storage_and_an_outage_loses_nothing(stored: Stored, client: Client) -> None:
    stored.configure()
    persister = stored.start_persister()
    stored.deployment.start("chat", "chat-0")
    client.submit("chat", "hello", id="chat/before").result(timeout=30)
    eventually(lambda: _durable("chat/before", stored), what="the first commit")
    stored.seaweed.kill()
    results = [client.submit("chat", f"hello {i}", id=f"chat/during-{i}").result(timeout=30) for i in range(5)]
    assert [r.state for r in results] == [JobState.FINISHED] * 5
    assert not any(r.durable for r in results)
    persister.kill()
    stored.seaweed.start()
    stored.start_persister()
    for result in results:
        eventually(partial(_durable, result.id, stored), what="the commit after the outage")
        kept = read_result(JobId.parse(result.id), start=stored.folder)
        assert (kept.text, kept.token_ids) == (result.text, result.token_ids)
    assert stored.deployment.queue("chat").journal_length() == 0


def test_killed_persisters_leave_one_whole_chain_with_each_change_once(stored: Stored, client: Client) -> None:
    stored.configure(speed=2000)
    stored.deployment.start("chat", "chat-0")
    ids = []
    queue = stored.deployment.queue("chat")
    for round_number in range(4):
        persister = stored.start_persister()
        for i in range(20):
            ids.append(client.submit("chat", f"hello {round_number} {i}", max_tokens=3).id)
        eventually(lambda: queue.journal_length() == 0 or _durable(ids[0], stored), what="some commit")
        persister.kill()
    stored.start_persister()
    for job_id in ids:
        client.job(job_id).result(timeout=30)
    eventually(lambda: all(_durable(job_id, stored) for job_id in ids), what="all commits")
    at = stored.store().read_head()
    assert at is not None
    records = list(stored.store().records(at.head))
    ended = [record.id for record in records if type(record).__name__ == "EndRecord"]
    submitted = [record.id for record in records if type(record).__name__ == "SubmitRecord"]
    assert sorted(ended) == sorted(ids)
    assert sorted(submitted) == sorted(ids)


SNAPSHOTS_OFTEN = """
from headpond_workers.persistence import snapshots
snapshots.SEGMENTS_ABOVE = 2
snapshots.PART_TARGET_BYTES = 2000
"""


def test_storage_holds_what_redis_holds_whenever_persisters_and_workers_are_killed(
    stored: Stored, client: Client
) -> None:
    stored.configure(speed=15)
    chance = random.Random(7)
    worker = stored.deployment.start("chat", "chat-0")
    queue = stored.deployment.queue("chat")
    ids: list[str] = []
    for number in range(4):
        persister = stored.start_persister(before=SNAPSHOTS_OFTEN)
        seen = _seq(stored)
        for i in range(6):
            ids.append(client.submit("chat", f"hello {number} {i}", tenant=f"t{i % 3}", max_tokens=40).id)
        client.job(chance.choice(ids)).cancel()
        eventually(lambda seen=seen: _seq(stored) > seen, what="a commit")  # type: ignore[misc]
        until = time.monotonic() + chance.uniform(0, 0.7)
        eventually(lambda until=until: time.monotonic() > until, what="some moment")  # type: ignore[misc]
        persister.kill()
        if number % 2:
            worker.kill()
            worker = stored.deployment.start("chat", "chat-0")
    assert _head(stored).snapshot is not None
    worker.kill()

    def nothing_runs() -> bool:
        queue.tick()
        return not queue.leased()

    eventually(nothing_runs, what="the end of all leases")
    log = stored.folder / "persister.log"
    began = log.read_text().count("persister_ready")
    persister = stored.start_persister(before=SNAPSHOTS_OFTEN)
    # The journal may be empty already: before this it would not know the signal.
    eventually(lambda: log.read_text().count("persister_ready") > began, what="the last persister")
    eventually(lambda: queue.journal_length() == 0, what="the last commit")
    persister.signal(signal.SIGTERM)
    assert persister.wait() == 0
    assert differences(queue, stored.store()) == []
    rows = [queue.run_row(job_id) for job_id in ids]
    assert any(row is not None and not row.state.ended and row.offset > 0 for row in rows)
    assert any(row is not None and row.state is JobState.FINISHED for row in rows)


def _head(stored: Stored) -> Head:
    at = stored.store().read_head()
    assert at is not None
    return at.head


def _seq(stored: Stored) -> int:
    at = stored.store().read_head()
    return 0 if at is None else at.head.seq


def test_a_running_job_has_its_tokens_in_storage_and_a_persister_that_leaves_commits_the_last(
    stored: Stored, client: Client
) -> None:
    stored.configure(speed=4)
    persister = stored.start_persister()
    stored.deployment.start("chat", "chat-0")
    job = client.submit("chat", "hello", id="chat/one")

    def tokens() -> int:
        item = stored.store().find_job(job.id)
        return 0 if item is None else len(item.ids)

    eventually(lambda: tokens() > 0, what="tokens in storage")
    before = tokens()
    eventually(lambda: tokens() > before, what="more of them")
    last = [chunk.offset + len(chunk.token_ids) for chunk, _ in zip(job.stream(), range(before + 2), strict=False)][-1]
    persister.signal(signal.SIGTERM)
    assert persister.wait() == 0
    item = stored.store().find_job(job.id)
    assert item is not None
    assert item.state is not None or len(item.ids) >= last


def test_two_persisters_share_the_work_and_a_zombie_does_no_harm(stored: Stored, client: Client) -> None:
    stored.configure(speed=2000)
    stored.deployment.start("chat", "chat-0")
    zombie, _ = stored.start_persister(), stored.start_persister()
    ids = [client.submit("chat", f"hello {i}", max_tokens=3).id for i in range(30)]
    eventually(lambda: any(_durable(job_id, stored) for job_id in ids), what="a first commit")
    zombie.signal(signal.SIGSTOP)
    ids += [client.submit("chat", f"more {i}", max_tokens=3).id for i in range(30)]
    eventually(lambda: all(_durable(job_id, stored) for job_id in ids), what="commits of the other persister")
    zombie.signal(signal.SIGCONT)
    ids += [client.submit("chat", f"last {i}", max_tokens=3).id for i in range(10)]
    eventually(lambda: all(_durable(job_id, stored) for job_id in ids), what="the last commits")
    at = stored.store().read_head()
    assert at is not None
    ended = [r.id for r in stored.store().records(at.head) if type(r).__name__ == "EndRecord"]
    assert sorted(ended) == sorted(ids)
    assert zombie.process.poll() is None


def test_a_wiped_redis_stays_closed_and_says_why(stored: Stored, client: Client) -> None:
    stored.configure()
    stored.start_persister()
    worker = stored.deployment.start("chat", "chat-0")
    client.submit("chat", "hello", id="chat/one").result(timeout=30)
    eventually(lambda: _durable("chat/one", stored), what="the commit")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    stored.deployment.server().redis.flushall()
    stored.deployment.start("chat", "chat-1")
    queue = stored.deployment.queue("chat")
    eventually(lambda: "lineage" in queue.meta().get("closed_reason", ""), what="the queue being closed with a reason")
    job = client.submit("chat", "hello", id="chat/two")
    assert job.state() is JobState.QUEUED
    assert queue.claim("somebody", seq=1, nonce="n", slots=1).leases == ()
    assert queue.meta()["state"] == "closed"


def test_with_servers_of_ones_own_nothing_embedded_starts(stored: Stored, client: Client) -> None:
    stored.configure()
    up = UpDeployment(load_settings(stored.deployment.config))
    try:
        up.up()
        status = up.wait_ready(timeout_s=60)
        assert [worker.state.value for worker in status.workers] == ["ready"]
        supervisor = up.supervisor()
        assert supervisor is not None
        assert sorted(supervisor.processes()) == ["chat-0", "persister"]
        assert not (up.folder / "valkey").exists()
        assert not (up.folder / "seaweedfs").exists()
        client.submit("chat", "hello", id="chat/own").result(timeout=30)
        eventually(partial(_durable, "chat/own", stored), what="the commit")
    finally:
        up.down()
    assert read_result(JobId.parse("chat/own"), start=stored.folder).durable
