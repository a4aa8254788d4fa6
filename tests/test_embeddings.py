"""Jobs that embed: from the producer through the real queue and worker processes, killed, drained and cancelled."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Deployment, eventually
from headpond import AsyncClient, Client, FinishReason, Job, JobState
from headpond.bundle import parse_bundle, write_bundle
from headpond.dead import bundle_of
from headpond.errors import InvalidRequest, JobCancelled, JobExpired, JobFailed
from headpond.jobs import Result
from headpond.queue import JobQueue
from headpond.wire import pack_result, unpack_result
from headpond_workers.persistence.documents import Segment
from headpond_workers.persistence.journal_id import JournalId
from headpond_workers.persistence.records import EndRecord
from worker_flow import ENDED_S, row_of

HEADPOND = Path(sys.executable).with_name("headpond")
DIMENSIONS = 24
TABLE = """
[models.chat]
engine = "scripted"
tokens_per_s = 1000
[models.embedder]
engine = "scripted"
embed_dimensions = {dimensions}
prefill_tokens_per_s = {rate}
slots = 2
lease_s = 1.0
drain_timeout_s = 0.2
"""
TEXTS = [f"text number {n}, \u6c34" for n in range(12)]
SLOW = 100
"""Bytes a second: all of TEXTS take about two seconds."""


def configure(deployment: Deployment, *, rate: float = 1e6) -> None:
    deployment.configure(TABLE.format(dimensions=DIMENSIONS, rate=rate))


def await_running(queue: JobQueue, job: Job) -> None:
    eventually(lambda: row_of(queue, job).state is JobState.RUNNING, what="the job running")


def assert_vectors(result: Result, texts: list[str]) -> None:
    assert result.embeddings is not None
    assert [len(vector) for vector in result.embeddings] == [DIMENSIONS] * len(texts)
    for vector in result.embeddings:
        assert math.hypot(*vector) == pytest.approx(1, abs=1e-5)
    assert len(set(result.embeddings)) == len(set(texts))
    assert (result.text, result.token_ids, result.finish_reason) == ("", (), FinishReason.STOP)
    assert result.usage.prompt_tokens == sum(len(text.encode()) for text in texts)
    assert result.usage.completion_tokens == 0


def test_a_producer_gets_one_vector_a_text_in_their_order(deployment: Deployment, client: Client) -> None:
    configure(deployment)
    deployment.start("embedder", "embedder-0")

    result = client.embed("embedder", TEXTS, id="embedder/all").result(ENDED_S)

    assert_vectors(result, TEXTS)
    (alone,) = client.embed("embedder", TEXTS[3]).result(ENDED_S).embeddings or ()
    assert result.embeddings is not None
    assert alone == result.embeddings[3]
    assert client.embed("embedder", TEXTS, id="embedder/all").result(ENDED_S) == result
    many = client.submit_many("embedder", [{"input": TEXTS[:2]}, {"input": TEXTS[2]}])
    assert [len(job.result(ENDED_S).embeddings or ()) for job in many] == [2, 1]
    assert list(many[0].stream()) == []
    twins = asyncio.run(_embed_asynchronously(deployment.url))
    assert twins.embeddings == result.embeddings
    with pytest.raises(InvalidRequest, match=r"input\.1"):
        client.embed("embedder", ["a", ""])
    with pytest.raises(InvalidRequest, match="input"):
        client.embed("embedder", [])
    with pytest.raises(InvalidRequest, match="take no max_tokens"):
        client.submit_many("embedder", [{"input": ["a"], "max_tokens": 3}])


async def _embed_asynchronously(url: str) -> Result:
    async with AsyncClient(url) as client:
        return await (await client.embed("embedder", TEXTS)).result(ENDED_S)


def test_a_model_that_lacks_what_is_asked_for_fails_the_job_and_says_so(deployment: Deployment, client: Client) -> None:
    configure(deployment)
    deployment.start("chat", "chat-0")
    schema = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}
    asked = {
        "cannot embed texts with this model's table. Write embed_dimensions": client.embed("chat", "a text"),
        "cannot bind an answer to JSON or to a schema": client.submit("chat", "hello", response_format=schema),
        "cannot bind an answer to a grammar": client.submit("chat", "hello", grammar='root ::= "a"'),
        "cannot sample with top_k": client.submit("chat", "hello", top_k=40),
    }
    for told, job in asked.items():
        with pytest.raises(JobFailed, match=told):
            job.result(ENDED_S)
    assert client.submit("chat", "hello", top_k=0, response_format={"type": "text"}).result(ENDED_S).text


def test_vectors_stand_in_a_segment_as_they_stand_in_redis() -> None:
    vectors = tuple(tuple(float(n * 64 + k) for k in range(DIMENSIONS)) for n in range(1024))
    result = Result("embedder/a", JobState.FINISHED, "", (), FinishReason.STOP, embeddings=vectors, durable=True)
    at = JournalId(1, 1)
    segment = Segment(
        txn="5f" * 16, created_ms=1, writer="w", model="embedder", lineage="l", epoch=1, seq=1, prev=None, first=at,
        last=at, inc=at.inc, records=(EndRecord(at, "embedder/a", JobState.FINISHED, pack_result(result)),),
    )  # fmt: skip
    (record,) = Segment.unpack(segment.pack()).records
    assert isinstance(record, EndRecord)
    assert unpack_result(record.result, durable=True) == result


@pytest.mark.slow
def test_a_killed_worker_leaves_a_job_that_its_successor_embeds_anew(deployment: Deployment, client: Client) -> None:
    configure(deployment, rate=SLOW)
    first = deployment.start("embedder", "embedder-0")
    queue = deployment.queue("embedder")
    job = client.embed("embedder", TEXTS)
    await_running(queue, job)
    first.kill()
    assert row_of(queue, job).state is JobState.RUNNING
    configure(deployment)
    deployment.start("embedder", "embedder-1")

    result = job.result(ENDED_S)

    assert result.attempts == 2
    assert_vectors(result, TEXTS)
    assert client.embed("embedder", TEXTS).result(ENDED_S).embeddings == result.embeddings


@pytest.mark.slow
def test_a_drain_a_cancel_and_a_deadline_are_heard_amid_an_embedding(deployment: Deployment, client: Client) -> None:
    configure(deployment, rate=SLOW)
    first = deployment.start("embedder", "embedder-0")
    queue = deployment.queue("embedder")
    doomed = client.embed("embedder", TEXTS * 40)
    await_running(queue, doomed)
    assert doomed.cancel() is JobState.CANCELLED
    with pytest.raises(JobCancelled):
        doomed.result(ENDED_S)
    late = client.embed("embedder", TEXTS * 40, deadline=0.5)
    with pytest.raises(JobExpired):
        late.result(ENDED_S)
    eventually(lambda: [row.busy for row in queue.workers()] == [0], what="both slots being free")
    parked = client.embed("embedder", TEXTS)
    await_running(queue, parked)

    first.signal(signal.SIGTERM)
    assert first.process.wait(ENDED_S) == 0

    row = row_of(queue, parked)
    assert (row.state, row.strikes) == (JobState.QUEUED, 0)
    configure(deployment)
    deployment.start("embedder", "embedder-1")
    result = parked.result(ENDED_S)
    assert result.attempts == 2
    assert_vectors(result, TEXTS)


@pytest.mark.slow
def test_the_command_embeds_arguments_and_lines_and_a_bundle_of_it_replays(
    deployment: Deployment, client: Client
) -> None:
    configure(deployment)
    deployment.start("embedder", "embedder-0")

    def run(*arguments: str, stdin: str = "") -> str:
        done = subprocess.run(
            [HEADPOND, *arguments], cwd=deployment.folder, input=stdin.encode(), capture_output=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    vectors = [json.loads(line) for line in run("embed", "embedder", *TEXTS).splitlines()]
    piped = json.loads(run("embed", "embedder", "--json", "--id", "embedder/piped", stdin="\n".join(TEXTS) + "\n"))
    result = client.job("embedder/piped").result(ENDED_S)
    assert_vectors(result, TEXTS)
    assert [tuple(vector) for vector in vectors] == [tuple(vector) for vector in piped["embeddings"]]
    assert tuple(map(tuple, vectors)) == result.embeddings
    assert json.loads(run("result", "embedder/piped").splitlines()[0]) == vectors[0]

    bundle = bundle_of(deployment.queue("embedder"), "embedder/piped")
    file = deployment.folder / "piped.json"
    write_bundle(bundle, file, force=False)
    assert parse_bundle(file.read_bytes()) == bundle
    assert bundle.embeddings is not None
    assert bundle.embeddings.vectors() == result.embeddings
    replayed = json.loads(run("replay", str(file), "--json"))
    assert replayed["how"] == "finished"
    assert replayed["embedded"]["texts"] == len(TEXTS)
    assert replayed["embedded"]["dimensions"] == DIMENSIONS
    assert replayed["embedded"]["furthest"] == pytest.approx(0, abs=1e-6)
    assert f"{len(TEXTS)} texts to embed" in run("dead", "show", "embedder/piped")
