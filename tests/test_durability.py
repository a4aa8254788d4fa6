"""durability="storage": a submit returns once storage has the job, or says that this is not known. Real servers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from conftest import Deployment, WorkerChild, eventually
from headpond import AsyncClient, Client, Job, JobState
from headpond.errors import DurabilityUnknown, HeadpondError, InvalidRequest, ManyRefused
from headpond.models import ModelRow
from headpond.queue import JobQueue, Server
from headpond.settings import load_settings
from headpond_workers.persistence.records import SubmitRecord
from headpond_workers.persistence.segments import StateStore
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.settings import storage_of
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from queue_bench import Bench
from stored_deployment import start_persister, storage_table
from test_cli import run, said

MODELS = """
[models.chat]
engine = "scripted"
answer_tokens = 20
lease_s = 1.0

[models.embedder]
engine = "scripted"
embed_dimensions = 4
lease_s = 1.0
"""


class Town:
    """A Valkey, a SeaweedFS, and the persister that a test starts."""

    def __init__(self, deployment: Deployment, seaweed: SeaweedProcess) -> None:
        self.deployment, self.seaweed = deployment, seaweed
        deployment.configure(MODELS, extra=storage_table(seaweed, deployment.folder))
        self.server = deployment.server()
        for name in ("chat", "embedder"):
            self.server.configure_model(name, ModelRow("scripted", 0, storage=True, context_tokens=2048))

    def queue(self, model: str = "chat") -> JobQueue:
        return self.server.queue(model, storage=True)

    def start_persister(self) -> WorkerChild:
        return start_persister(self.deployment)

    def stored_submits(self, model: str = "chat") -> set[str]:
        """Ids whose submit storage has now, read by a reader of its own."""
        address = storage_of(load_settings(self.deployment.config))
        assert address is not None
        store = StateStore(S3Blobs(address), model)
        at = store.read_head()
        assert at is not None
        return {record.id for record in store.records(at.head) if isinstance(record, SubmitRecord)}


@pytest.fixture
def town(deployment: Deployment, tmp_path: Path) -> Iterator[Town]:
    with running_seaweed(tmp_path / "storage") as seaweed:
        yield Town(deployment, seaweed)
        deployment.close()


@pytest.mark.slow
def test_a_submit_that_waited_for_storage_is_in_storage(town: Town, client: Client) -> None:
    town.start_persister()
    job = client.submit("chat", "hello", id="chat/one", durability="storage")
    assert town.stored_submits() == {"chat/one"}
    assert job.state() is JobState.QUEUED
    # A repeat is known, and committed long since: it need not wait for another commit.
    assert client.submit("chat", "hello", id="chat/one", durability="storage", durability_timeout=10).id == job.id


@pytest.mark.slow
def test_many_and_embeddings_and_asyncio_wait_as_well(town: Town, client: Client) -> None:
    town.start_persister()
    many = client.submit_many("chat", [{"prompt": f"hello {n}"} for n in range(250)], durability="storage")
    assert town.stored_submits() == {job.id for job in many}
    client.embed("embedder", ["a", "b"], id="embedder/one", durability="storage")
    assert town.stored_submits("embedder") == {"embedder/one"}

    async def submit() -> list[str]:
        async with AsyncClient(town.deployment.url) as hp:
            one = await hp.submit("chat", "hello", durability="storage")
            embedded = await hp.embed("embedder", "c", durability="storage")
            few = await hp.submit_many("chat", [{"prompt": "hello"}] * 2, durability="storage")
            return [one.id, embedded.id, *(job.id for job in few)]

    ids = set(asyncio.run(submit()))
    assert ids <= town.stored_submits() | town.stored_submits("embedder")


@pytest.mark.slow
def test_while_storage_is_away_the_outcome_is_unknown_and_the_same_submit_waits_on(town: Town, client: Client) -> None:
    town.start_persister()
    client.submit("chat", "hello", id="chat/before", durability="storage")
    os.kill(town.seaweed.pid, signal.SIGSTOP)
    try:
        with pytest.raises(DurabilityUnknown, match=r"chat/during.*not told within 1.5 s") as caught:
            client.submit("chat", "hello", id="chat/during", durability="storage", durability_timeout=1.5)
        assert caught.value.job_ids == ("chat/during",)
        assert caught.value.retry
        assert client.job("chat/during").state() is JobState.QUEUED
    finally:
        os.kill(town.seaweed.pid, signal.SIGCONT)
    again = client.submit("chat", "hello", id="chat/during", durability="storage", durability_timeout=60)
    assert again.id in town.stored_submits()
    assert town.queue().depths().ready == 2


@pytest.mark.slow
def test_a_restart_of_the_server_while_one_waits_is_an_unknown_outcome(town: Town, client: Client) -> None:
    persister = town.start_persister()
    client.submit("chat", "hello", id="chat/before", durability="storage")
    persister.signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.submit, "chat", "hello", id="chat/during", durability="storage")
        eventually(lambda: town.queue().run_row("chat/during"), what="the submit")
        town.deployment.valkey.kill()
        town.deployment.valkey.start()
        with pytest.raises(DurabilityUnknown, match="restarted meanwhile"):
            waiting.result(30)
    persister.signal(signal.SIGCONT)
    client.submit("chat", "hello", id="chat/during", durability="storage")
    assert town.stored_submits() == {"chat/before", "chat/during"}


@pytest.mark.slow
def test_the_command_waits_and_says_when_the_outcome_is_unknown(town: Town) -> None:
    folder = town.deployment.folder
    town.queue()
    asked = ("submit", "chat", "hello", "--id", "chat/one", "--durability", "storage", "--detach")
    unknown = run(*asked, "--durability-timeout", "0.5", cwd=folder)
    assert unknown.returncode == 6
    assert "chat/one" in said(unknown)
    assert "under the same id" in said(unknown)
    town.start_persister()
    done = run(*asked, "--json", cwd=folder)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"id": "chat/one"})
    assert town.stored_submits() == {"chat/one"}
    embedded = run("embed", "embedder", "a", "--durability", "storage", "--detach", cwd=folder)
    assert embedded.returncode == 0
    assert town.stored_submits("embedder") == {embedded.stdout.decode().strip()}


def without_storage(url: str) -> Server:
    bench_server = Client(url)._server
    bench_server.configure_model("plain", ModelRow("scripted", 0, storage=False, context_tokens=2048))
    return bench_server


SUBMITS: dict[str, Callable[[Client], Any]] = {
    "submit": lambda hp: hp.submit("plain", "hello", durability="storage"),
    "submit a version": lambda hp: hp.submit("plain@3", "hello", durability="storage"),
    "submit_many": lambda hp: hp.submit_many("plain", [{"prompt": "hello"}], durability="storage"),
    "embed": lambda hp: hp.embed("plain", "hello", durability="storage"),
}


@pytest.mark.parametrize("how", SUBMITS)
def test_without_storage_nothing_is_enqueued(shared_url: str, how: str) -> None:
    server = without_storage(shared_url)
    with Client(shared_url) as hp:
        with pytest.raises(InvalidRequest, match="'plain' has no storage") as caught:
            SUBMITS[how](hp)
        assert caught.value.field == "durability"
    assert server.queue("plain").ids() == []
    server.close()


def test_asyncio_without_storage_enqueues_nothing(shared_url: str) -> None:
    server = without_storage(shared_url)

    async def submit() -> None:
        async with AsyncClient(shared_url) as hp:
            await hp.submit("plain", "hello", durability="storage")

    with pytest.raises(InvalidRequest, match="'plain' has no storage"):
        asyncio.run(submit())
    assert server.queue("plain").ids() == []
    server.close()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"durability": "disk"}, "durability"),
        ({"durability": "storage", "durability_timeout": 0}, "durability_timeout"),
        ({"durability": "storage", "durability_timeout": float("nan")}, "durability_timeout"),
        ({"durability": "storage", "durability_timeout": float("inf")}, "durability_timeout"),
    ],
)
def test_what_is_no_durability_is_refused(
    stored: Bench, shared_url: str, arguments: dict[str, Any], field: str
) -> None:
    with Client(shared_url) as hp, pytest.raises(InvalidRequest) as caught:
        hp.submit(stored.queue.name, "hello", **arguments)
    assert caught.value.field == field
    assert stored.queue.ids() == []


def test_storage_is_noticed_that_was_added_since_the_models_were_read(stored: Bench, shared_url: str) -> None:
    name = stored.queue.name
    stored.server.configure_model(name, ModelRow("scripted", 0, storage=False, context_tokens=8192))
    with Client(shared_url) as hp:
        hp.models()
        stored.server.configure_model(name, ModelRow("scripted", 0, storage=True, context_tokens=8192))
        with pytest.raises(DurabilityUnknown):
            hp.submit(name, "hello", durability="storage", durability_timeout=0.1)
    assert len(stored.queue.ids()) == 1


def test_a_commit_of_what_came_before_does_not_end_the_wait(stored: Bench, shared_url: str) -> None:
    name = stored.queue.name
    stored.submit(f"{name}/before")
    (earlier,) = stored.queue.journal(limit=10)
    told: list[Job | HeadpondError] = []

    def submit() -> None:
        with Client(shared_url) as hp:
            try:
                told.append(hp.submit(name, "hello", id=f"{name}/after", durability="storage", durability_timeout=60))
            except HeadpondError as error:
                told.append(error)

    thread = threading.Thread(target=submit)
    thread.start()
    eventually(lambda: len(stored.queue.journal(limit=10)) == 2, what="the submit")
    inc = int(stored.queue.meta()["inc"])
    later = stored.queue.journal(limit=10)[-1]
    stored.trim(inc, earlier.journal_id)
    assert stored.queue.wait_for_commits(after="0-0", block_s=1) == [earlier.journal_id]
    assert not told
    stored.trim(inc, later.journal_id)
    thread.join(30)
    (job,) = told
    assert isinstance(job, Job)
    assert job.id == f"{name}/after"


def test_a_refused_job_of_many_is_told_at_once(stored: Bench, shared_url: str) -> None:
    name = stored.queue.name
    stored.server.configure_model(name, ModelRow("scripted", 1, storage=True, context_tokens=8192))
    with Client(shared_url) as hp, pytest.raises(ManyRefused) as caught:
        hp.submit_many(name, [{"prompt": "a"}, {"prompt": "b"}], durability="storage", durability_timeout=3600)
    assert len(caught.value.accepted) == 1


def test_commits_only_rise_and_a_repeated_trim_adds_none(stored: Bench) -> None:
    for n in range(40):
        stored.submit(f"{stored.queue.name}/{n}")
    inc = int(stored.queue.meta()["inc"])
    ids = [entry.journal_id for entry in stored.queue.journal(limit=100)]
    for journal_id in ids:
        stored.trim(inc, journal_id)
        stored.trim(inc, journal_id)
        stored.trim(inc, ids[0])
    told = stored.queue.wait_for_commits(after="0-0", block_s=1)
    assert told == ids[-len(told) :]
    assert stored.queue.wait_for_commits(after=ids[-2], block_s=1) == ids[-1:]
    stored.trim(inc - 1, f"{inc}-1000")
    assert stored.queue.wait_for_commits(after=ids[-1], block_s=0.01) == []
