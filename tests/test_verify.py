"""`headpond verify` on real queues, storage and engines: what changed is named, and what did not is said to be so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import Deployment, eventually
from headpond import Client
from headpond.errors import JobFailed, JobGone
from headpond.jobs import Result
from headpond.keys import queue_keys
from headpond.provenance import digest_of_ids
from headpond.queue import JobQueue
from headpond.requests import JobRequest
from headpond.settings import load_settings
from headpond.wire import Call, pack_data, pack_result, unpack_entry
from headpond_workers.checkpoints.names import version_key
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.resolving import open_storage
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from headpond_workers.supervision.embedded_valkey import running_valkey
from misbehaving_server import misbehaving_server
from proxy_flow import start, table
from stored_deployment import start_persister, storage_table
from stored_versions import put_alias, put_version
from verified_jobs import ALL, named, said, verified

pytestmark = pytest.mark.slow

SCRIPTED = """
[models.chat]
engine = "scripted"
tokens_per_s = 2000
answer_tokens = {answer}
context_tokens = {context}
embed_dimensions = 8
retention_s = {retention}
"""
PROMPT = "Why do rivers bend?"


def scripted(*, answer: int = 30, context: int = 512, retention: float = 3600) -> str:
    return SCRIPTED.format(answer=answer, context=context, retention=retention)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Deployment, Client]]:
    """A scripted model with a worker, for tests that change the configuration alone, or one job."""
    folder = tmp_path_factory.mktemp("verified")
    with running_valkey(folder / "server") as valkey, Client(valkey.url) as client:
        deployment = Deployment(valkey, folder)
        try:
            deployment.configure(scripted())
            deployment.start("chat", "chat-0")
            yield deployment, client
        finally:
            deployment.close()


@pytest.fixture
def serving(shared: tuple[Deployment, Client]) -> Iterator[tuple[Deployment, Client]]:
    yield shared
    shared[0].configure(scripted())


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with running_seaweed(tmp_path_factory.mktemp("storage")) as process:
        yield process


def answered(client: Client, job_id: str, **wanted: Any) -> Result:
    return client.submit("chat", PROMPT, id=job_id, **wanted).result(timeout=30)


def swap_result(queue: JobQueue, job_id: str, document: bytes) -> None:
    queue.server.read("HSET", queue_keys("chat").named("result"), job_id, document)


def test_a_result_names_what_made_it(serving: tuple[Deployment, Client]) -> None:
    deployment, client = serving
    result = answered(client, "chat/named", temperature=0.7, top_p=0.9, seed=5)
    made_by = result.provenance
    assert made_by is not None
    prompt = f"<user>{PROMPT}\n<assistant>".encode()
    assert made_by.prompt_digest == digest_of_ids(list(prompt))
    assert made_by.sampling == {"temperature": 0.7, "top_p": 0.9}
    assert (made_by.engine, made_by.seed, made_by.adapters, made_by.upstream_model) == ("scripted", 5, (), None)
    assert result.version == f"local-{made_by.fingerprint[:12]}"
    data = deployment.queue("chat").data("chat/named")
    assert data is not None
    assert made_by.request_digest == unpack_entry(data)[0].digest
    assert made_by.model_digest is None


def test_what_nobody_touched_is_as_stored(serving: tuple[Deployment, Client]) -> None:
    deployment, client = serving
    answered(client, "chat/calm", temperature=0.7)
    code, found = verified(deployment, "chat/calm")
    assert (code, found[""]) == (0, "same")
    assert named(found, "same") == ALL - {"adapters"}
    code, out, err = said(deployment, "chat/calm")
    assert code == 0, err
    assert "As stored" in out
    assert "30 tokens, stop" in out
    assert "scripted is loaded" in err


def test_stop_strings_that_cut_a_token_do_not_make_another_text(serving: tuple[Deployment, Client]) -> None:
    deployment, client = serving
    whole = answered(client, "chat/whole", temperature=0).text
    cut = answered(client, "chat/cut", temperature=0, stop=[whole.split()[5][1:]])
    assert 0 < len(cut.text) < len(whole)
    code, found = verified(deployment, "chat/cut")
    assert (code, found[""]) == (0, "same"), found


@pytest.mark.parametrize(
    ("changes", "differs"),
    [({"context": 600}, {"fingerprint"}), ({"answer": 31}, {"weights", "fingerprint"})],
    ids=["settings", "weights"],
)
def test_another_engine_differs_and_is_not_run(
    serving: tuple[Deployment, Client], changes: dict[str, int], differs: set[str]
) -> None:
    deployment, client = serving
    job_id = f"chat/{sorted(changes)[0]}"
    answered(client, job_id)
    deployment.configure(scripted(**changes))
    code, found = verified(deployment, job_id)
    assert (code, found[""]) == (1, "differs")
    assert named(found, "differs") == differs
    assert "not the model that made them" in found["!tokens"]


@pytest.mark.parametrize("touched", ["token", "text", "reason", "provenance"])
def test_a_result_that_was_altered_differs(serving: tuple[Deployment, Client], touched: str) -> None:
    deployment, client = serving
    job_id = f"chat/altered-{touched}"
    result = answered(client, job_id)
    made_by = result.provenance
    assert made_by is not None
    ids = (*result.token_ids[:-1], result.token_ids[0])
    altered, differs = {
        "token": (replace(result, token_ids=ids), {"text", "tokens"}),
        "text": (replace(result, pieces=("No. ", *result.pieces[1:])), {"text"}),
        "reason": (replace(result, token_ids=ids[:5], pieces=result.pieces[:5]), {"tokens"}),
        "provenance": (
            replace(result, provenance=replace(made_by, seed=1, prompt_digest="0" * 64)),
            {"seed", "prompt"},
        ),
    }[touched]
    swap_result(deployment.queue("chat"), job_id, pack_result(altered))
    code, found = verified(deployment, job_id)
    assert (code, found[""]) == (1, "differs")
    assert named(found, "differs") == differs


def test_a_request_that_was_exchanged_differs(serving: tuple[Deployment, Client]) -> None:
    deployment, client = serving
    answered(client, "chat/exchanged")
    queue = deployment.queue("chat")
    data = queue.data("chat/exchanged")
    assert data is not None
    header, call = unpack_entry(data)
    asked = JobRequest(prompt="Why do rivers flow?").asked()
    other = Call(call.actor, (), {"request": asked}, {}, call.timestamp_ms)
    for digest, told in ((header.digest, "not what was submitted"), (JobRequest(**asked).digest(), "")):
        packed = pack_data(other, digest=digest)
        queue.server.read("HSET", queue_keys("chat").named("data"), "chat/exchanged", packed)
        code, found = verified(deployment, "chat/exchanged")
        assert code == 1
        assert named(found, "differs") >= {"request", "prompt", "tokens"}
        assert told in found["!request"]


@pytest.mark.parametrize("damage", [b"", b"\xc1", b"x" * 40], ids=["empty", "no-msgpack", "no-document"])
def test_a_damaged_result_document_cannot_be_told(serving: tuple[Deployment, Client], damage: bytes) -> None:
    deployment, client = serving
    job_id = f"chat/damaged-{len(damage)}"
    answered(client, job_id)
    swap_result(deployment.queue("chat"), job_id, damage)
    code, found = verified(deployment, job_id)
    assert (code, found[""], found["request"]) == (2, "unknown", "same")
    assert named(found, "unknown") <= {"result", "provenance"}
    assert "cannot be told" in said(deployment, job_id)[1]


def test_the_result_of_another_job_differs(serving: tuple[Deployment, Client]) -> None:
    deployment, client = serving
    answered(client, "chat/mine", seed=3)
    theirs = answered(client, "chat/theirs", seed=3)
    swap_result(deployment.queue("chat"), "chat/mine", pack_result(theirs))
    code, found = verified(deployment, "chat/mine")
    assert (code, named(found, "differs")) == (1, {"result"})
    swap_result(deployment.queue("chat"), "chat/mine", pack_result(replace(theirs, token_ids=(-7,))))
    assert "damaged" in verified(deployment, "chat/mine")[1]["!result"]


def test_a_cut_result_document_is_damaged(serving: tuple[Deployment, Client]) -> None:
    deployment, client = serving
    result = answered(client, "chat/cut-off")
    swap_result(deployment.queue("chat"), "chat/cut-off", pack_result(result)[:-40])
    code, found = verified(deployment, "chat/cut-off")
    assert (code, found["result"]) == (2, "unknown")
    assert "damaged" in found["!result"]


def test_what_no_worker_of_this_release_ended_cannot_be_told(serving: tuple[Deployment, Client]) -> None:
    deployment, client = serving
    old = answered(client, "chat/old")
    swap_result(deployment.queue("chat"), "chat/old", pack_result(replace(old, provenance=None)))
    code, found = verified(deployment, "chat/old")
    assert (code, found["provenance"], found["request"]) == (2, "unknown", "same")
    waiting = client.submit("chat", PROMPT, id="chat/waiting", delay=600)
    assert "has not ended" in verified(deployment, waiting.id)[1]["!provenance"]
    waiting.cancel()
    code, found = verified(deployment, waiting.id)
    assert (code, "no worker ended" in found["!provenance"]) == (2, True)
    code, _, err = said(deployment, "chat/never")
    assert (code, "chat/never" in err) == (4, True)
    code, _, err = said(deployment, "chat/old", "--model", "chatt")
    assert (code, "did you mean 'chat'" in err) == (2, True)


def test_a_failed_job_has_its_prompt_verified_and_no_answer(serving: tuple[Deployment, Client]) -> None:
    deployment, client = serving
    job = client.submit("chat", "x" * 600, id="chat/long")
    with pytest.raises(JobFailed):
        job.result(timeout=30)
    code, found = verified(deployment, job.id)
    assert (code, found["prompt"], found["tokens"]) == (0, "same", "left out")


def test_vectors_are_made_again_and_compared(serving: tuple[Deployment, Client]) -> None:
    deployment, client = serving
    result = client.embed("chat", ["one", "two"], id="chat/vectors").result(timeout=30)
    code, found = verified(deployment, "chat/vectors")
    assert (code, found["vectors"]) == (0, "same"), found
    assert result.embeddings is not None
    turned = tuple(tuple(reversed(vector)) for vector in result.embeddings)
    swap_result(deployment.queue("chat"), "chat/vectors", pack_result(replace(result, embeddings=turned)))
    code, found = verified(deployment, "chat/vectors")
    assert (code, named(found, "differs")) == (1, {"vectors"})


def test_a_model_that_dies_while_it_loads_cannot_be_told(serving: tuple[Deployment, Client]) -> None:
    deployment, client = serving
    answered(client, "chat/deadly")
    deployment.configure(scripted() + 'crash_at = "load"\n')
    code, found = verified(deployment, "chat/deadly")
    assert (code, named(found, "same")) == (2, {"request", "sampling", "seed"})
    assert "died of SIGKILL while the model was loading" in found["!weights"]


def test_a_job_that_redis_forgot_is_verified_from_storage(
    deployment: Deployment, client: Client, seaweed: SeaweedProcess
) -> None:
    deployment.configure(scripted(retention=1.0), extra=storage_table(seaweed, deployment.folder))
    start_persister(deployment)
    deployment.start("chat", "chat-0")
    result = answered(client, "chat/kept", temperature=0.5)
    assert result.provenance is not None

    def forgotten() -> bool:
        try:
            client.job("chat/kept").state()
        except JobGone:
            return True
        return False

    eventually(forgotten, what="Redis forgetting the job")
    assert said(deployment, "chat/kept")[0] == 4
    code, found = verified(deployment, "chat/kept", "--from-storage")
    assert (code, found[""]) == (0, "same")
    assert named(found, "same") == ALL - {"adapters"}
    code, _, err = said(deployment, "chat/never", "--from-storage")
    assert (code, "chat/never" in err) == (4, True)
    deployment.configure(scripted(answer=31), extra=storage_table(seaweed, deployment.folder))
    assert verified(deployment, "chat/kept", "--from-storage")[0] == 1


def test_a_turn_that_redis_forgot_is_verified_with_the_conversation_that_storage_has(
    deployment: Deployment, client: Client, seaweed: SeaweedProcess
) -> None:
    deployment.configure(scripted(), extra=storage_table(seaweed, deployment.folder, bucket="sessions"))
    start_persister(deployment)
    deployment.start("chat", "chat-0")
    for number in range(3):
        answered(client, f"chat/turn-{number}", session="s1", durability="storage", max_tokens=8)
    in_redis = [verified(deployment, f"chat/turn-{number}")[1] for number in (0, 2)]
    deployment.queue("chat").server.redis.flushall()
    for number, before in zip((0, 2), in_redis, strict=True):
        code, found = verified(deployment, f"chat/turn-{number}", "--from-storage")
        assert (code, found[""]) == (0, "same")
        assert named(found, "same") == named(before, "same") >= {"prompt", "tokens"}


def test_a_proxy_names_its_upstream_model_and_no_digest(deployment: Deployment, client: Client) -> None:
    with misbehaving_server() as server:
        deployment.configure(table(server.url))
        start(deployment, "remote-0")
        job = client.submit("remote", "hello", temperature=0.3)
        made_by = job.result(timeout=30).provenance
        assert made_by is not None
        assert (made_by.engine, made_by.upstream_model) == ("openai", "m")
        assert (made_by.weights_digest, made_by.model_digest, made_by.prompt_digest) == (None, None, None)
        assert made_by.sampling == {"temperature": 0.3, "top_p": 1.0}
        code, found = verified(deployment, job.id)
        assert (code, named(found, "same")) == (2, {"request", "sampling", "seed", "upstream model"})
        assert "names no digest" in found["!weights"]
        deployment.configure(table(server.url, upstream_model='"n"'))
        code, found = verified(deployment, job.id)
        assert (code, named(found, "differs")) == (1, {"upstream model"})


def test_a_version_is_taken_from_storage_and_its_digest_compared(
    deployment: Deployment, client: Client, seaweed: SeaweedProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADPOND_CACHE", str(tmp_path / "cache"))
    storage = storage_table(seaweed, deployment.folder, bucket="versions")
    (deployment.folder / "scripted.json").write_text('{"salt": "three"}')
    deployment.configure(scripted() + 'path = "scripted.json"\n')
    deployment.start("chat", "chat-0")
    result = answered(client, "chat/versioned")
    assert result.provenance is not None
    queue = deployment.queue("chat")
    deployment.configure(scripted() + 'source = "s3:chat@prod"\n', extra=storage)
    blobs = open_storage(load_settings(deployment.config))
    blobs.ensure_bucket()
    put_version(blobs, "chat", {"scripted.json": b'{"salt": "three"}'}, number=3)
    document = Registry(blobs, "chat", writer="the test").read(3).document

    def stored_as(model_digest: str) -> None:
        made_by = replace(result.provenance, model_digest=model_digest)
        swap_result(queue, "chat/versioned", pack_result(replace(result, version="3", provenance=made_by)))

    put_alias(blobs, "chat", "prod", 3)
    stored_as(document.model_digest)
    code, found = verified(deployment, "chat/versioned")
    assert (code, found[""]) == (0, "same"), found
    assert named(found, "same") == ALL - {"adapters"} | {"version"}
    stored_as("0" * 64)
    code, found = verified(deployment, "chat/versioned")
    assert (code, named(found, "differs")) == (1, {"version"})
    blobs.delete(version_key("chat", 3))
    code, found = verified(deployment, "chat/versioned")
    assert (code, found["version"], found["weights"]) == (2, "unknown", "unknown")
    assert "there is no such version" in found["!version"]
