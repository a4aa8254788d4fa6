"""Storage is away while real workers generate and real persisters are killed, stopped and started."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from conftest import Deployment, WorkerChild, eventually
from headpond import Client, JobState
from headpond.settings import SPOOL_FOLDER, STATE_FOLDER, load_settings
from headpond.spooled import StorageTrouble
from headpond_workers.persistence.records import EndRecord, SubmitRecord
from headpond_workers.persistence.segments import StateStore
from headpond_workers.persistence.spool import FRAMES_FILE
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.settings import storage_of
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from stored_deployment import start_persister, storage_table
from test_cli import run, said

pytestmark = pytest.mark.slow

MODEL = """
[models.chat]
engine = "scripted"
tokens_per_s = {speed}
answer_tokens = 40
slots = 4
lease_s = 1.0
"""
LONG_S = 90.0
AFTER_ENTRIES = 5


class Town:
    """One Valkey, one SeaweedFS, one worker, and persisters."""

    def __init__(self, deployment: Deployment, seaweed: SeaweedProcess) -> None:
        self.deployment, self.seaweed = deployment, seaweed
        self.folder = deployment.folder

    def configure(self, *, speed: int = 2000) -> None:
        storage = storage_table(self.seaweed, self.folder) + f"spool_after_entries = {AFTER_ENTRIES}\n"
        self.deployment.configure(MODEL.format(speed=speed), extra=storage)

    @property
    def frames(self) -> Path:
        return self.folder / STATE_FOLDER / SPOOL_FOLDER / "chat" / FRAMES_FILE

    def start_persister(self) -> WorkerChild:
        return start_persister(self.deployment)

    def trouble(self) -> StorageTrouble | None:
        return self.deployment.queue("chat").storage_trouble()

    def spooled(self) -> bool:
        trouble = self.trouble()
        return trouble is not None and trouble.spooled is not None

    def durable(self, ids: list[str]) -> bool:
        queue = self.deployment.queue("chat")
        rows = [queue.run_row(job_id) for job_id in ids]
        return all(row is not None and row.durable for row in rows)

    def store(self) -> StateStore:
        address = storage_of(load_settings(self.deployment.config))
        assert address is not None
        return StateStore(S3Blobs(address), "chat")

    def check_chain(self, ids: list[str]) -> None:
        """Each job was submitted and ended once."""
        store = self.store()
        at = store.read_head()
        assert at is not None
        records = list(store.records(at.head))
        assert sorted(record.id for record in records if isinstance(record, SubmitRecord)) == sorted(ids)
        assert sorted(record.id for record in records if isinstance(record, EndRecord)) == sorted(ids)


@pytest.fixture
def town(deployment: Deployment, tmp_path: Path) -> Iterator[Town]:
    with running_seaweed(tmp_path / "storage") as seaweed:
        yield Town(deployment, seaweed)
        if psutil.pid_exists(seaweed.pid):
            os.kill(seaweed.pid, signal.SIGCONT)
        deployment.close()


def answered(client: Client, part: str, count: int) -> list[str]:
    jobs = [client.submit("chat", f"hello {part} {n}", id=f"chat/{part}-{n}", max_tokens=5) for n in range(count)]
    results = [job.result(timeout=LONG_S) for job in jobs]
    assert [result.state for result in results] == [JobState.FINISHED] * count
    return [job.id for job in jobs]


def test_persisters_that_are_killed_while_storage_is_away_lose_nothing(town: Town, client: Client) -> None:
    town.configure()
    persister = town.start_persister()
    town.deployment.start("chat", "chat-0")
    ids = answered(client, "before", 3)
    eventually(partial(town.durable, ids), what="the first commits", deadline_s=LONG_S)
    town.seaweed.kill()
    during = answered(client, "during", 10)
    eventually(town.spooled, what="a spool", deadline_s=LONG_S)
    persister.kill()
    during += answered(client, "killed", 10)
    # The next one comes up without storage, and spools all the same.
    town.start_persister()
    queue = town.deployment.queue("chat")
    eventually(lambda: queue.journal_length() <= AFTER_ENTRIES, what="the rest being spooled", deadline_s=LONG_S)
    assert not any(town.durable([job_id]) for job_id in during)
    shown = json.loads(run("storage", "spool", "--json", cwd=town.folder).stdout)
    (model,) = shown["models"]
    assert model["spool"]["folder"] == str(town.frames.parent)
    assert model["loss_window_s"] > 0
    status = run("status", cwd=town.folder)
    assert "the loss of all of Redis would cost the last" in status.stdout.decode()
    (shown_queue,) = json.loads(run("status", "--json", cwd=town.folder).stdout)["queues"]
    assert shown_queue["storage"]["spool"] == model["spool"]
    town.seaweed.start()
    eventually(partial(town.durable, during), what="commits after the outage", deadline_s=LONG_S)
    eventually(lambda: town.trouble() is None, what="the end of the trouble", deadline_s=LONG_S)
    assert not town.frames.exists()
    eventually(lambda: queue.journal_length() == 0, what="an empty journal", deadline_s=LONG_S)
    town.check_chain(ids + during)
    assert b"Nothing waits" in run("storage", "spool", cwd=town.folder).stdout


def test_a_spool_whose_disk_is_lost_is_given_up_by_hand(town: Town, client: Client) -> None:
    town.configure()
    persister = town.start_persister()
    town.deployment.start("chat", "chat-0")
    ids = answered(client, "before", 3)
    eventually(partial(town.durable, ids), what="the first commits", deadline_s=LONG_S)
    town.seaweed.kill()
    ids += answered(client, "during", 10)
    eventually(town.spooled, what="a spool", deadline_s=LONG_S)
    busy = run("storage", "spool", "chat", "--give-up", cwd=town.folder)
    assert busy.returncode == 2
    assert "add --yes" in said(busy)
    persister.kill()
    shutil.rmtree(town.frames.parent)
    town.seaweed.start()
    second = town.start_persister()
    eventually(lambda: "are in the spool of" in second.log.read_text(), what="the refusal", deadline_s=LONG_S)
    assert not town.durable(ids)
    for wrong, word in (("nobody", "no model is named 'nobody'"), ("", "name the model")):
        refused = run("storage", "spool", wrong, "--give-up", "--yes", cwd=town.folder)
        assert refused.returncode == 2
        assert word in said(refused)
    given_up = run("storage", "spool", "chat", "--give-up", "--yes", "--json", cwd=town.folder)
    assert given_up.returncode == 0, said(given_up)
    assert json.loads(given_up.stdout)["given_up"]["model"] == "chat"
    again = run("storage", "spool", "chat", "--give-up", "--yes", cwd=town.folder)
    assert again.returncode == 2
    assert "has no spool" in said(again)
    eventually(partial(town.durable, ids), what="commits of all that Redis holds", deadline_s=LONG_S)
    found = {job_id: town.store().find_result(job_id) for job_id in ids}
    assert all(end is not None and end[0] is JobState.FINISHED for end in found.values())


def test_nothing_that_generates_touches_storage(town: Town, client: Client) -> None:
    town.configure(speed=40)
    town.start_persister()
    worker = town.deployment.start("chat", "chat-0")
    client.submit("chat", "hello", id="chat/before", max_tokens=2).result(timeout=LONG_S)
    eventually(partial(town.durable, ["chat/before"]), what="the first commit", deadline_s=LONG_S)
    port = int(town.seaweed.url.rpartition(":")[2])
    os.kill(town.seaweed.pid, signal.SIGSTOP)
    process = psutil.Process(worker.pid)
    looked = 0
    job = client.submit("chat", "hello", id="chat/during")
    for _ in job.stream():
        # Every inet connection of the worker: those to Valkey, and none to storage.
        ports = [each.raddr.port for each in process.net_connections(kind="inet") if each.raddr]
        assert port not in ports
        assert town.deployment.valkey.port in ports
        looked += 1
    assert looked > 5
    result = job.result(timeout=LONG_S)
    assert (result.state, len(result.token_ids), result.durable) == (JobState.FINISHED, 40, False)
    os.kill(town.seaweed.pid, signal.SIGCONT)
    eventually(partial(town.durable, [job.id]), what="the commit afterwards", deadline_s=LONG_S)


def test_persisters_side_by_side_that_are_killed_and_stopped_leave_one_whole_chain(town: Town, client: Client) -> None:
    town.configure()
    town.deployment.start("chat", "chat-0")
    dice = random.Random(7)
    alive = [town.start_persister() for _ in range(3)]
    stopped: list[WorkerChild] = []
    ids: list[str] = []
    for round_number in range(5):
        ids += answered(client, f"round-{round_number}", 12)
        victim = alive.pop(dice.randrange(len(alive)))
        if round_number % 2:
            # A zombie: it sleeps for longer than its lease, and wakes while another goes on.
            victim.signal(signal.SIGSTOP)
            stopped.append(victim)
        else:
            victim.kill()
        alive.append(town.start_persister())
        if round_number == 3:
            stopped[0].signal(signal.SIGCONT)
    eventually(partial(town.durable, ids), what="commits of those that are left", deadline_s=LONG_S)
    for zombie in stopped:
        zombie.signal(signal.SIGCONT)
    ids += answered(client, "last", 5)
    eventually(partial(town.durable, ids), what="the last commits", deadline_s=LONG_S)
    town.check_chain(ids)
    assert all(zombie.process.poll() is None for zombie in stopped)
    queue = town.deployment.queue("chat")
    eventually(lambda: queue.journal_length() == 0, what="an empty journal", deadline_s=LONG_S)
