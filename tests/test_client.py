"""The producer's API as it is documented, against a real worker process."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import headpond
from conftest import Deployment, eventually
from headpond import AsyncClient, Chunk, Client, FinishReason, HeadpondError, Job, JobState, Result
from headpond import operations as ops
from headpond.connections import RedisAddress
from headpond.errors import (
    ConfigError,
    IdConflict,
    InvalidRequest,
    JobCancelled,
    JobEnded,
    JobExpired,
    JobFailed,
    JobGone,
    JobQuarantined,
    RedisUnavailable,
    ResultTimeout,
    UnknownModel,
)
from headpond.models import ModelRow
from headpond.queue import JobQueue, Server
from headpond.requests import MAX_BODY_BYTES, Message
from headpond.sampling import BASIC, Sampling, SamplingOptions
from headpond.tables import ScriptedModel
from headpond.wire import TokenRun, unpack_data
from headpond.workers import WorkerRow, WorkerState
from headpond_workers.detokenizer import Detokenizer
from headpond_workers.engines.protocol import Sequence as EngineSequence
from headpond_workers.engines.protocol import Verdict
from headpond_workers.engines.scripted import ScriptedEngine
from headpond_workers.supervision.embedded_valkey import ValkeyProcess, running_valkey

PROMPT = "Tell me of the river."
MODELS = """
[models.chat]
engine = "scripted"
tokens_per_s = 4000
slots = 4
lease_s = 2.0
answer_tokens = 60
context_tokens = 256

[models.slow]
engine = "scripted"
tokens_per_s = 40
slots = 4
lease_s = 2.0
answer_tokens = 400

[models.idle]
engine = "scripted"
"""


@dataclass
class Town:
    """One server, with a worker for `chat`, one for `slow`, and none for `idle`."""

    deployment: Deployment
    client: Client

    def queue(self, model: str) -> JobQueue:
        return self.deployment.queue(model)


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    folder = tmp_path_factory.mktemp("town")
    with running_valkey(folder / "server") as valkey:
        deployment = Deployment(valkey, folder)
        try:
            deployment.configure(MODELS)
            for model in ("chat", "slow"):
                deployment.start(model, f"{model}-0", ready=False)
            with Client(valkey.url) as client:
                server = deployment.server()
                server.configure_model("idle", client_row())
                for model in ("chat", "slow"):
                    queue = server.queue(model)
                    eventually(partial(is_served, queue), what=f"a worker of {model}")
                yield Town(deployment, client)
        finally:
            deployment.close()


def is_served(queue: JobQueue) -> bool:
    return any(row.state is WorkerState.READY for row in queue.workers())


def client_row() -> ModelRow:
    """What a worker of `idle` would say that it serves."""
    return ModelRow("scripted", 0, storage=False, context_tokens=8192)


@pytest.fixture
def client(town: Town) -> Client:
    return town.client


def text_of(chunks: Sequence[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def ids_of(chunks: Sequence[Chunk]) -> tuple[int, ...]:
    return tuple(i for chunk in chunks for i in chunk.token_ids)


def assert_one_after_another(chunks: Sequence[Chunk], *, after: int = 0) -> None:
    for chunk in chunks:
        assert chunk.offset == after
        assert chunk.token_ids
        assert not chunk.restarted
        after += len(chunk.token_ids)


# What is exported.


def test_the_exported_names_are_these() -> None:
    assert sorted(headpond.__all__) == [
        "AsyncClient", "AsyncJob", "AsyncSession", "Chunk", "Client", "Commit", "FinishReason", "HeadpondError", "Job",
        "JobState", "Policy", "Priority", "Result", "Session", "Timings", "Turn", "Usage",
    ]  # fmt: skip
    assert all(hasattr(headpond, name) for name in headpond.__all__)


def test_every_error_is_a_headpond_error() -> None:
    from headpond import errors

    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]
    assert len(kinds) > 20
    assert [kind for kind in kinds if not issubclass(kind, HeadpondError)] == []
    assert all(isinstance(kind.retry, bool) for kind in kinds if issubclass(kind, HeadpondError))


def test_importing_headpond_has_no_effects(tmp_path: Path) -> None:
    code = (
        "import sys, headpond; print(sorted({'boto3', 'supervisor', 'psutil', 'headpond_workers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
    assert list(tmp_path.iterdir()) == []


def test_the_asynchronous_client_has_the_same_names_and_arguments() -> None:
    for sync, twin in ((Client, AsyncClient), (Job, headpond.AsyncJob)):
        names = {name for name, _ in inspect.getmembers(sync) if not name.startswith("_")}
        assert names == {name for name, _ in inspect.getmembers(twin) if not name.startswith("_")}
        for name in names - {"id"}:
            mine, its = inspect.signature(getattr(sync, name)), inspect.signature(getattr(twin, name))
            assert list(mine.parameters.values()) == list(its.parameters.values()), name


# A job from its submit to its result.


def test_a_prompt_becomes_a_stream_and_a_result(client: Client) -> None:
    began = time.monotonic()
    job = client.submit("chat", PROMPT, max_tokens=1000)
    assert job.id.startswith("chat/")
    assert repr(job) == f"Job({job.id!r})"
    chunks = list(job.stream())
    result = job.result(timeout=10)
    took_s = time.monotonic() - began

    assert_one_after_another(chunks)
    assert len(result.token_ids) == 60
    assert (ids_of(chunks), text_of(chunks)) == (result.token_ids, result.text)
    assert result.text.strip()
    assert (result.id, result.model, result.state, result.finish_reason) == (
        job.id, "chat", JobState.FINISHED, FinishReason.STOP,
    )  # fmt: skip
    assert (result.attempts, result.error, result.durable) == (1, None, False)
    assert result.version.startswith("local-")
    assert result.usage.completion_tokens == 60
    assert result.usage.prompt_tokens == len(f"<user>{PROMPT}\n<assistant>")
    assert result.usage.total_tokens == result.usage.prompt_tokens + 60
    timings = result.timings
    assert timings.first_token_s is not None
    assert 0 <= timings.queued_s < took_s
    assert 0 < timings.first_token_s <= timings.generate_s < took_s
    assert timings.tokens_per_s is not None
    assert 60 / took_s < timings.tokens_per_s < 8000
    assert job.state() is JobState.FINISHED


def test_tokens_are_read_while_they_are_made(client: Client) -> None:
    job = client.submit("slow", PROMPT, max_tokens=30)
    states, seen_at = [], []
    for _ in job.stream():
        states.append(job.state())
        seen_at.append(time.monotonic())
    assert states[0] is JobState.RUNNING
    assert len(seen_at) > 10
    result = job.result(timeout=5)
    assert result.finish_reason is FinishReason.LENGTH
    assert result.timings.tokens_per_s == pytest.approx(40, rel=0.25)
    assert seen_at[-1] - seen_at[0] == pytest.approx(29 / 40, rel=0.5)


def test_messages_are_a_conversation(client: Client) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    one = client.submit("chat", messages=turns, seed=1, max_tokens=9).result(timeout=10)
    same = client.submit("chat", messages=tuple(turns), seed=1, max_tokens=9).result(timeout=10)
    other = client.submit("chat", messages=turns[1:], seed=1, max_tokens=9).result(timeout=10)
    prompt = client.submit("chat", "Hi", seed=1, max_tokens=9).result(timeout=10)
    assert one.token_ids == same.token_ids != other.token_ids
    # A prompt is one user message.
    assert prompt.token_ids == other.token_ids


def test_a_stream_may_begin_anywhere(client: Client) -> None:
    job = client.submit("chat", PROMPT, max_tokens=40)
    whole = job.result(timeout=10)
    for after in (0, 1, 13, 39):
        chunks = list(job.stream(after=after))
        assert_one_after_another(chunks, after=after)
        assert ids_of(chunks) == whole.token_ids[after:]
        assert whole.text.endswith(text_of(chunks))
    assert list(job.stream(after=40)) == []
    assert list(job.stream(after=10**9)) == []
    with pytest.raises(InvalidRequest, match="after=-1"):
        list(job.stream(after=-1))


def test_a_reader_who_comes_in_the_middle_gets_the_exact_rest(client: Client) -> None:
    job = client.submit("slow", PROMPT, max_tokens=30)
    first = next(iter(job.stream()))
    rest = list(client.job(job.id).stream(after=len(first.token_ids)))
    result = job.result(timeout=5)
    assert first.token_ids + ids_of(rest) == result.token_ids
    assert first.text + text_of(rest) == result.text


def test_several_readers_see_the_same(client: Client) -> None:
    job = client.submit("slow", PROMPT, max_tokens=25)
    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.append(text_of(list(job.stream())))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert texts == [job.result(timeout=5).text] * 4


def test_any_process_can_ask_for_a_job_by_its_id(client: Client, town: Town) -> None:
    job = client.submit("chat", PROMPT, id="chat/asked-elsewhere", max_tokens=5)
    result = job.result(timeout=10)
    code = (
        "import sys; from headpond import Client\n"
        "with Client() as hp: print(hp.job('chat/asked-elsewhere').result(timeout=5).text, end='')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=town.deployment.folder, check=False,
        timeout=30,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (result.text, "")


def test_the_same_request_under_the_same_id_is_the_same_job(client: Client) -> None:
    first = client.submit("chat", PROMPT, id="chat/order-17", max_tokens=5, stop="never")
    result = first.result(timeout=10)
    again = client.submit("chat", PROMPT, id="chat/order-17", max_tokens=5, stop=["never"])
    assert again.id == first.id == "chat/order-17"
    assert again.result(timeout=5) == result
    with pytest.raises(IdConflict) as conflict:
        client.submit("chat", PROMPT, id="chat/order-17", max_tokens=6)
    assert conflict.value.job_id == "chat/order-17"
    assert isinstance(conflict.value, InvalidRequest)


def test_a_seed_decides_the_draws_and_an_id_decides_the_seed(client: Client) -> None:
    def answer(**options: Any) -> tuple[int, ...]:
        return client.submit("chat", PROMPT, max_tokens=20, **options).result(timeout=10).token_ids

    assert answer(seed=1) == answer(seed=1) != answer(seed=2)
    assert answer() != answer()
    assert answer(temperature=0) == answer(temperature=0.0, seed=5)


def test_the_seed_that_follows_from_an_id_is_the_same_everywhere(client: Client) -> None:
    job_id = "chat/seeded-by-its-name"
    asked = Message(role="user", content=PROMPT)
    expected = scripted_ids(asked, seed=int.from_bytes(digest_of(job_id), "big"), max_tokens=20)
    result = client.submit("chat", PROMPT, id=job_id, max_tokens=20).result(timeout=10)
    assert result.token_ids == expected


def digest_of(job_id: str) -> bytes:
    return hashlib.sha256(job_id.encode()).digest()[:4]


def scripted_ids(asked: Message, *, seed: int, max_tokens: int) -> tuple[int, ...]:
    """What `chat` answers, made by an engine of this process."""
    engine = ScriptedEngine(
        ScriptedModel(engine="scripted", tokens_per_s=100_000, answer_tokens=60, context_tokens=256)
    )
    ids: list[int] = []

    def emit(new: Any) -> Verdict:
        ids.extend(new)
        return Verdict.GO

    try:
        prompt = tuple(engine.render([asked]))
        engine.generate(EngineSequence(prompt, (), max_tokens, Sampling(), seed), emit)
    finally:
        engine.close()
    return tuple(ids)


def test_a_character_over_two_tokens_reaches_readers_whole(client: Client) -> None:
    for n in range(20):
        job = client.submit("chat", PROMPT, seed=n, max_tokens=60)
        result = job.result(timeout=10)
        chunks = list(job.stream())
        assert text_of(chunks) == result.text
        assert "\N{REPLACEMENT CHARACTER}" not in result.text
        if "\N{WATER WAVE}" in result.text:
            break
    else:
        pytest.fail("no answer with a character over two tokens")


def test_max_tokens_and_the_context_bound_an_answer(client: Client) -> None:
    assert len(client.submit("chat", PROMPT, max_tokens=1).result(timeout=10).token_ids) == 1
    prompt = "x" * 220
    result = client.submit("chat", prompt, max_tokens=1000).result(timeout=10)
    assert result.finish_reason is FinishReason.LENGTH
    assert result.usage.total_tokens == 256


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8])
def test_a_stop_string_ends_the_text_before_it_and_never_leaks(client: Client, length: int) -> None:
    whole = client.submit("chat", PROMPT, seed=3, max_tokens=60).result(timeout=10)
    for start in (0, 17, 60):
        stop = whole.text[start : start + length]
        job = client.submit("chat", PROMPT, seed=3, max_tokens=60, stop=[stop, "never that"])
        shown = [chunk.text for chunk in job.stream()]
        result = job.result(timeout=5)
        assert result.text == whole.text.partition(stop)[0]
        assert "".join(shown) == result.text
        assert result.finish_reason is FinishReason.STOP
        assert result.usage.completion_tokens == len(result.token_ids) <= 60


def test_a_stop_token_ends_the_answer_before_it(client: Client) -> None:
    whole = client.submit("chat", PROMPT, seed=3, max_tokens=60).result(timeout=10)
    stop = whole.token_ids[20]
    job = client.submit("chat", PROMPT, seed=3, max_tokens=60, stop_token_ids=[stop, 10**6])
    shown = [token_id for chunk in job.stream() for token_id in chunk.token_ids]
    result = job.result(timeout=5)
    assert result.token_ids == whole.token_ids[: whole.token_ids.index(stop)] == tuple(shown)
    assert whole.text.startswith(result.text)
    assert result.finish_reason is FinishReason.STOP


def test_an_adapter_is_refused_by_an_engine_that_has_none(client: Client) -> None:
    with pytest.raises(JobFailed, match="'scripted' cannot serve adapters") as failed:
        client.submit("chat", PROMPT, adapter="formal").result(timeout=10)
    assert failed.value.result.token_ids == ()


def test_a_stop_string_that_does_not_come_costs_nothing(client: Client) -> None:
    whole = client.submit("chat", PROMPT, seed=3).result(timeout=10)
    # The text ends in what may become the stop string.
    held = client.submit("chat", PROMPT, seed=3, stop=whole.text[-6:] + "never").result(timeout=10)
    assert (held.text, held.token_ids) == (whole.text, whole.token_ids)


def test_an_answer_that_met_its_stop_string_does_not_go_on_in_another_attempt(client: Client, town: Town) -> None:
    # The worker wrote its last token, cut at the stop string, and was killed before it wrote the end.
    whole = client.submit("chat", PROMPT, seed=3, id="chat/whole").result(timeout=10)
    stop = whole.text[9:13]
    expected = client.submit("chat", PROMPT, seed=3, stop=stop).result(timeout=10)
    engine = ScriptedEngine(ScriptedModel(engine="scripted"))
    engine.close()
    text = Detokenizer(engine.token_bytes, stop=[stop])
    released = [text.feed([i]) for i in whole.token_ids]
    ids, pieces = (tuple(x for r in released for x in getattr(r, name)) for name in ("ids", "pieces"))
    assert "".join(pieces) == expected.text

    queue = town.queue("idle")
    job = client.submit("idle", PROMPT, seed=3, stop=stop, id="idle/cut")
    fingerprint = idle_fingerprint()
    (lease,) = queue.claim("killed", seq=1, nonce="n", slots=1, fingerprint=fingerprint).leases
    assert lease.id == job.id
    queue.append([ops.Append(lease.id, lease.fence, TokenRun(0, ids, pieces))])
    queue.park([(lease.id, lease.fence)], strike=False)
    worker = town.deployment.start("idle", "idle-0")
    try:
        result = job.result(timeout=10)
    finally:
        worker.kill()
        for row in queue.workers():
            queue.unregister(row.boot)
    assert result.attempts == 2
    assert result.text == expected.text
    assert result.finish_reason is FinishReason.STOP


def idle_fingerprint() -> str:
    engine = ScriptedEngine(ScriptedModel(engine="scripted"))
    engine.close()
    return engine.info.fingerprint


def test_jobs_of_one_model_run_together(client: Client) -> None:
    began = time.monotonic()
    jobs = [client.submit("slow", f"{PROMPT} {n}", max_tokens=20) for n in range(4)]
    assert all(len(job.result(timeout=10).token_ids) == 20 for job in jobs)
    # One after the other would take 2 s.
    assert time.monotonic() - began < 1.5


# Ends without an answer.


def test_a_cancelled_job_keeps_what_its_readers_saw(client: Client) -> None:
    job = client.submit("slow", PROMPT)
    chunks: list[Chunk] = []
    for chunk in job.stream():
        chunks.append(chunk)
        if len(ids_of(chunks)) >= 10 and job.state() is JobState.RUNNING:
            assert job.cancel() is JobState.CANCELLED
    with pytest.raises(JobCancelled) as ended:
        job.result(timeout=5)
    result = ended.value.result
    assert isinstance(ended.value, JobEnded)
    assert (result.text, result.token_ids) == (text_of(chunks), ids_of(chunks))
    assert 10 <= len(result.token_ids) < 300
    assert (result.state, result.finish_reason) == (JobState.CANCELLED, FinishReason.CANCELLED)
    assert f"{len(result.token_ids)} tokens" in str(ended.value)
    assert job.cancel() is JobState.CANCELLED
    # Its slot is free again, and nothing is written any more.
    assert client.submit("slow", PROMPT, max_tokens=2).result(timeout=10).token_ids
    assert ids_of(list(job.stream())) == result.token_ids


def test_a_job_that_waits_can_be_cancelled(client: Client) -> None:
    job = client.submit("idle", PROMPT)
    assert job.state() is JobState.QUEUED
    assert job.cancel() is JobState.CANCELLED
    with pytest.raises(JobCancelled) as ended:
        job.result(timeout=5)
    assert (ended.value.result.text, ended.value.result.attempts) == ("", 0)
    assert list(job.stream()) == []


def test_cancelling_what_has_ended_changes_nothing(client: Client) -> None:
    job = client.submit("chat", PROMPT, max_tokens=3)
    result = job.result(timeout=10)
    assert job.cancel() is JobState.FINISHED
    assert job.result(timeout=1) == result


def test_a_deadline_ends_a_running_job_with_what_there_is(client: Client) -> None:
    job = client.submit("slow", PROMPT, deadline=0.7)
    chunks = list(job.stream())
    with pytest.raises(JobExpired) as ended:
        job.result(timeout=5)
    result = ended.value.result
    assert 5 < len(result.token_ids) < 150
    assert (result.text, result.token_ids) == (text_of(chunks), ids_of(chunks))
    assert (result.state, result.finish_reason) == (JobState.EXPIRED, FinishReason.EXPIRED)
    assert result.error


def test_a_deadline_ends_a_job_that_nobody_serves(client: Client) -> None:
    job = client.submit("idle", PROMPT, deadline=0.2)
    began = time.monotonic()
    with pytest.raises(JobExpired):
        job.result(timeout=10)
    assert time.monotonic() - began < 4


def test_a_delayed_job_begins_when_it_is_due(client: Client) -> None:
    began = time.monotonic()
    job = client.submit("chat", PROMPT, delay=0.6, max_tokens=3)
    assert job.state() is JobState.DELAYED
    result = job.result(timeout=10)
    assert 0.6 <= time.monotonic() - began < 2.0
    assert 0.55 < result.timings.queued_s < 2.0


def test_a_prompt_beyond_the_context_fails_with_both_numbers_and_the_worker_goes_on(client: Client, town: Town) -> None:
    pids = [row.pid for row in town.queue("chat").workers()]
    job = client.submit("chat", "x" * 300)
    with pytest.raises(JobFailed) as ended:
        job.result(timeout=10)
    result = ended.value.result
    tokens = 300 + len("<user>\n<assistant>")
    assert str(tokens) in str(ended.value)
    assert "256" in str(ended.value)
    assert (result.state, result.finish_reason, result.token_ids) == (JobState.FAILED, FinishReason.ERROR, ())
    assert result.usage.prompt_tokens == tokens
    assert list(job.stream()) == []
    assert client.submit("chat", PROMPT, max_tokens=2).result(timeout=10).token_ids
    assert [row.pid for row in town.queue("chat").workers()] == pids


def test_a_job_that_kills_its_workers_is_quarantined(client: Client, town: Town) -> None:
    job = client.submit("idle", PROMPT)
    queue = town.queue("idle")
    for n in range(1, 4):
        (lease,) = queue.claim("poisoned", seq=n, nonce=f"n{n}", slots=1).leases
        assert lease.id == job.id
        if n == 3:
            queue.append([ops.Append(lease.id, lease.fence, TokenRun(0, (65,), ("A",)))])
        queue.park([(lease.id, lease.fence)], strike=True)
    queue.unregister("poisoned")
    with pytest.raises(JobQuarantined) as ended:
        job.result(timeout=5)
    result = ended.value.result
    assert (result.state, result.finish_reason, result.attempts) == (JobState.DEAD, FinishReason.QUARANTINED, 3)
    assert result.text == "A"
    assert result.error
    assert text_of(list(job.stream())) == "A"


def test_waiting_may_end_before_the_job_which_goes_on(client: Client) -> None:
    job = client.submit("slow", PROMPT, max_tokens=40)
    for timeout in (0, 0.2):
        began = time.monotonic()
        with pytest.raises(ResultTimeout) as ended:
            job.result(timeout=timeout)
        assert time.monotonic() - began < timeout + 0.5
        assert (ended.value.job_id, ended.value.timeout_s, ended.value.retry) == (job.id, timeout, True)
    assert len(job.result(timeout=10).token_ids) == 40
    assert job.result(timeout=0).finish_reason is FinishReason.LENGTH


def test_a_job_that_never_was_is_gone(client: Client) -> None:
    job = client.job("chat/never-was")
    for call in (job.state, job.cancel, job.result, lambda: list(job.stream())):
        with pytest.raises(JobGone, match="chat/never-was"):
            call()


# Refused at submit.

REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"prompt": None}, "request"),
    "an empty prompt": ({"prompt": ""}, "request"),
    "a blank prompt": ({"prompt": " \n\t"}, "request"),
    "prompt and messages": ({"messages": [{"role": "user", "content": "Hi"}]}, "request"),
    "no messages": ({"prompt": None, "messages": []}, "request"),
    "empty messages": ({"prompt": None, "messages": [{"role": "user", "content": " "}]}, "request"),
    "a message without content": ({"prompt": None, "messages": [{"role": "user"}]}, "messages.0.content"),
    "a message of nobody": ({"prompt": None, "messages": [{"role": "god", "content": "Hi"}]}, "messages.0.role"),
    "a message with more": (
        {"prompt": None, "messages": [{"role": "user", "content": "Hi", "name": "x"}]}, "messages.0.name",
    ),
    "a message that is text": ({"prompt": None, "messages": ["Hi"]}, "messages.0"),
    "a message that is a number": ({"prompt": None, "messages": [7]}, "messages.0"),
    "messages that are text": ({"prompt": None, "messages": "Hi"}, "messages"),
    "messages that are a number": ({"prompt": None, "messages": 7}, "messages"),
    "a prompt that is bytes": ({"prompt": b"Hi"}, "prompt"),
    "a prompt that is a number": ({"prompt": 7}, "prompt"),
    "no tokens": ({"max_tokens": 0}, "max_tokens"),
    "negative tokens": ({"max_tokens": -1}, "max_tokens"),
    "too many tokens": ({"max_tokens": (1 << 20) + 1}, "max_tokens"),
    "half a token": ({"max_tokens": 1.5}, "max_tokens"),
    "true tokens": ({"max_tokens": True}, "max_tokens"),
    "a temperature that is no number": ({"temperature": math.nan}, "sampling.temperature"),
    "an infinite temperature": ({"temperature": math.inf}, "sampling.temperature"),
    "a negative temperature": ({"temperature": -0.1}, "sampling.temperature"),
    "a temperature of text": ({"temperature": "hot"}, "sampling.temperature"),
    "a true temperature": ({"temperature": True}, "sampling.temperature"),
    "no temperature": ({"temperature": None}, "sampling.temperature"),
    "top_p of none": ({"top_p": 0}, "sampling.top_p"),
    "top_p of more than all": ({"top_p": 1.1}, "sampling.top_p"),
    "top_p that is no number": ({"top_p": math.nan}, "sampling.top_p"),
    "a negative seed": ({"seed": -1}, "sampling.seed"),
    "a seed beyond 32 bits": ({"seed": 1 << 32}, "sampling.seed"),
    "half a seed": ({"seed": 0.5}, "sampling.seed"),
    "a setting that there is not": ({"topk": 4}, "topk"),
    "a negative top_k": ({"top_k": -1}, "sampling.top_k"),
    "a top_k that is no whole number": ({"top_k": 1.5}, "sampling.top_k"),
    "a number that no float holds": ({"min_p": 10**400}, "sampling.min_p"),
    "a bias beyond its bound": ({"logit_bias": {7: 101}}, "sampling.logit_bias.7"),
    "a bias of no token": ({"logit_bias": {"x": 1}}, "sampling.logit_bias"),
    "no response format": ({"response_format": {"type": "banana"}}, "response_format.type"),
    "a schema that is none": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": 7}}}, "response_format.json_schema.schema"
    ),
    "a format and a grammar": (
        {"response_format": {"type": "json_object"}, "grammar": 'root ::= "a"'}, "request",
    ),
    "a grammar that is empty": ({"grammar": ""}, "grammar"),
    "a lone surrogate": ({"prompt": "a\ud800b"}, "request"),
    "a lone surrogate in a message": (
        {"prompt": None, "messages": [{"role": "user", "content": "\udfff"}]}, "request",
    ),
    "a lone surrogate in a stop": ({"stop": ["\ud800"]}, "stop.0"),
    "an empty stop": ({"stop": [""]}, "stop.0"),
    "an empty stop string": ({"stop": ""}, "stop.0"),
    "too many stops": ({"stop": [f"s{n}" for n in range(17)]}, "stop"),
    "a stop token below zero": ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
    "too many stop tokens": ({"stop_token_ids": range(65)}, "stop_token_ids"),
    "an adapter with a path for a name": ({"adapter": "../lora"}, "adapter"),
    "a stop too long": ({"stop": "x" * 257}, "stop.0"),
    "a stop that is a number": ({"stop": 7}, "stop"),
    "stops that are numbers": ({"stop": [7]}, "stop.0"),
    "a body beyond its limit": ({"prompt": "x" * MAX_BODY_BYTES}, "request"),
    "a body beyond its limit in bytes": ({"prompt": "\N{EURO SIGN}" * (MAX_BODY_BYTES // 3)}, "request"),
    "an id of another model": ({"id": "slow/a"}, "id"),
    "an id without model": ({"id": "order-17"}, "id"),
    "an id without slug": ({"id": "idle/"}, "id"),
    "an id with a second slash": ({"id": "idle/a/b"}, "id"),
    "an id with a space": ({"id": "idle/a b"}, "id"),
    "an id with a newline": ({"id": "idle/a\n"}, "id"),
    "an id with a brace": ({"id": "idle/{a}"}, "id"),
    "an id that begins with a dot": ({"id": "idle/.a"}, "id"),
    "an id too long": ({"id": "idle/" + "a" * 128}, "id"),
    "an empty id": ({"id": ""}, "id"),
    "a negative delay": ({"delay": -1}, "delay"),
    "a delay that is no number": ({"delay": math.nan}, "delay"),
    "an endless delay": ({"delay": math.inf}, "delay"),
    "a deadline of now": ({"deadline": 0}, "deadline"),
    "a deadline that is past": ({"deadline": -5}, "deadline"),
    "a deadline that is no number": ({"deadline": math.nan}, "deadline"),
    "an endless deadline": ({"deadline": math.inf}, "deadline"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSALS)
def test_bad_input_is_refused_by_its_field_and_nothing_is_enqueued(client: Client, town: Town, what: str) -> None:
    options, field = REFUSALS[what]
    before = sorted(town.queue("idle").ids())
    with pytest.raises(InvalidRequest) as refused:
        client.submit("idle", **({"prompt": PROMPT} | options))
    assert refused.value.field == field
    assert not refused.value.retry
    assert len(str(refused.value)) < 500
    assert sorted(town.queue("idle").ids()) == before


def test_settings_and_formats_reach_the_request(client: Client, town: Town) -> None:
    schema = {"type": "object", "properties": {"b": {"type": "null"}, "a": True}}
    job = client.submit(
        "idle", PROMPT, temperature=1, top_k=40, min_p=0, mirostat_tau=3, dry_sequence_breakers=["x"], top_n_sigma=2,
        logit_bias={7: 1, 8: -0.5}, response_format={"type": "json_schema", "json_schema": {"schema": schema}},
    )  # fmt: skip
    bound = client.submit("idle", PROMPT, grammar='root ::= "a"')
    asked = unpack_data(town.queue("idle").data(job.id) or b"").kwargs["request"]

    assert asked["sampling"] == {
        "top_k": 40,
        "mirostat_tau": 3.0,
        "dry_sequence_breakers": ["x"],
        "top_n_sigma": 2.0,
        "logit_bias": {"7": 1.0, "8": -0.5},
    }
    # Properties are generated in the order in which they are given.
    assert list(asked["response_format"]["json_schema"]["schema"]["properties"]) == ["b", "a"]
    assert unpack_data(town.queue("idle").data(bound.id) or b"").kwargs["request"]["grammar"] == 'root ::= "a"'
    for submitted in (job, bound):
        assert submitted.cancel() is JobState.CANCELLED


def test_the_keyword_arguments_of_sampling_are_its_fields() -> None:
    assert set(SamplingOptions.__annotations__) == Sampling.model_fields.keys() - BASIC
    parameters = inspect.signature(Client.submit).parameters
    assert parameters.keys() >= BASIC


def test_a_body_at_its_limit_is_taken(client: Client) -> None:
    job = client.submit("idle", "x" * (MAX_BODY_BYTES - 500))
    assert job.cancel() is JobState.CANCELLED


@pytest.mark.parametrize("model", ["chatt", "", "Chat", "persistence", "x" * 5000, "{chat}", "chat/a"])
def test_an_unknown_model_is_refused_with_those_that_are_known(client: Client, town: Town, model: str) -> None:
    keys = sorted(town.deployment.server().read("KEYS", "*"))
    with pytest.raises(UnknownModel, match="chat, idle, slow") as refused:
        client.submit(model, PROMPT)
    assert refused.value.known == ["chat", "idle", "slow"]
    assert len(str(refused.value)) < 300
    assert sorted(town.deployment.server().read("KEYS", "*")) == keys


def test_the_configured_models_are_listed_with_or_without_a_worker(client: Client) -> None:
    models = client.models()
    assert sorted(models) == ["chat", "idle", "slow"]
    assert (models["chat"].engine, models["chat"].context_tokens, models["chat"].storage) == ("scripted", 256, False)


def test_a_model_that_was_configured_later_is_found(town: Town) -> None:
    with Client(town.deployment.url) as client:
        client.models()
        server = town.deployment.server()
        server.configure_model("newcomer", client_row())
        try:
            assert client.submit("newcomer", PROMPT).state() is JobState.QUEUED
        finally:
            server.read("HDEL", "headpond:models", "newcomer")


@pytest.mark.parametrize("job_id", ["", "chat", "chat/", "/a", "Chat/a", "chat/a/b", "chat/a\n", "{c}/a"])
def test_what_is_no_id_is_refused(client: Client, job_id: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        client.job(job_id)
    assert refused.value.field == "id"


# A server that is not there.


def test_a_server_that_is_away_is_named_without_its_password(valkey: ValkeyProcess) -> None:
    url, password = valkey.url, valkey.url.partition("@")[0].rpartition(":")[2]
    server = Server(RedisAddress(url, "the test"))
    server.configure_model("chat", client_row())
    server.close()
    with Client(url) as client:
        job = client.job("chat/a")
        valkey.stop()
        calls: list[Callable[[], Any]] = [
            lambda: client.submit("chat", PROMPT), client.models, lambda: client.job("slow/a"), job.state, job.cancel,
            lambda: job.result(timeout=1), lambda: list(job.stream()),
        ]  # fmt: skip
        for call in calls:
            began = time.monotonic()
            with pytest.raises(RedisUnavailable) as refused:
                call()
            assert time.monotonic() - began < 5
            error = refused.value
            assert error.url == url.replace(f":{password}@", "")
            assert (error.configured_in, error.retry) == ("the url argument", True)
            assert error.url in str(error)
            assert password not in str(error) + repr(error)


@pytest.mark.slow
def test_a_server_that_never_answers_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with Client(url) as client:
            began = time.monotonic()
            with pytest.raises(RedisUnavailable):
                client.submit("chat", PROMPT)
            assert time.monotonic() - began < 5


def test_a_wrong_password_is_said_and_not_shown(town: Town) -> None:
    url = f"redis://:not-the-password@127.0.0.1:{town.deployment.valkey.port}/0"
    with Client(url) as client, pytest.raises(HeadpondError) as refused:
        client.submit("chat", PROMPT)
    assert "password" in str(refused.value)
    assert "not-the-password" not in str(refused.value)


def test_waiting_ends_in_time_while_the_server_is_away(valkey: ValkeyProcess) -> None:
    server = Server(RedisAddress(valkey.url, "the test"))
    server.configure_model("chat", client_row())
    with Client(valkey.url) as client:
        job = client.submit("chat", PROMPT)
        outcome: list[tuple[type[BaseException], float]] = []

        def wait() -> None:
            began = time.monotonic()
            try:
                job.result(timeout=1.0)
            except HeadpondError as error:
                outcome.append((type(error), time.monotonic() - began))

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        eventually(lambda: any(c["cmd"] == "xread" for c in server.redis.client_list()), what="a waiting reader")
        valkey.kill()
        thread.join(10)
    server.close()
    assert [kind for kind, _ in outcome] == [ResultTimeout]
    assert outcome[0][1] < 4


def test_readers_bear_a_restart_of_the_server(valkey: ValkeyProcess) -> None:
    server = Server(RedisAddress(valkey.url, "the test"))
    server.configure_model("chat", client_row())
    queue = server.queue("chat")
    with Client(valkey.url) as client:
        job = client.submit("chat", PROMPT)
        texts: list[str] = []
        results: list[type[BaseException]] = []

        def wait() -> None:
            try:
                job.result()
            except JobCancelled as error:
                results.append(type(error))

        read = threading.Thread(target=lambda: texts.append(text_of(list(job.stream()))))
        threads = [read, threading.Thread(target=wait)]
        for thread in threads:
            thread.start()
        eventually(
            lambda: sum(c["cmd"] == "xread" for c in server.redis.client_list()) == 2, what="two waiting readers"
        )
        (lease,) = queue.claim("A", seq=1, nonce="n", slots=1).leases
        queue.append([ops.Append(lease.id, lease.fence, TokenRun(0, (65,), ("A",)))])
        valkey.kill()
        valkey.start()
        queue.append([ops.Append(lease.id, lease.fence, TokenRun(1, (66,), ("B",)))])
        job.cancel()
        for thread in threads:
            thread.join(20)
    server.close()
    assert texts == ["AB"]
    assert results == [JobCancelled]


# Where the server is looked for.


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("HEADPOND_REDIS_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def known_models(client: Client) -> list[str]:
    with client:
        return sorted(client.models())


def test_a_client_finds_its_server_in_the_documented_order(
    nowhere: Path, town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, away = town.deployment.url, "redis://127.0.0.1:1/0"
    models = ["chat", "idle", "slow"]
    with pytest.raises(ConfigError, match=r"headpond\.toml"):
        Client()
    (nowhere / "headpond.toml").write_text("")
    (nowhere / ".headpond").mkdir(mode=0o700)
    (nowhere / ".headpond" / "run.json").write_text(f'{{"redis_url": "{url}"}}')
    assert known_models(Client()) == models

    password = nowhere / "password"
    password.write_text(url.partition("@")[0].rpartition(":")[2])
    (nowhere / ".headpond" / "run.json").write_text(f'{{"redis_url": "{away}"}}')
    (nowhere / "headpond.toml").write_text(
        f'[redis]\nurl = "redis://127.0.0.1:{town.deployment.valkey.port}"\npassword = {{file = "password"}}\n'
    )
    deep = nowhere / "deep" / "er"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert known_models(Client()) == models

    monkeypatch.setenv("HEADPOND_REDIS_URL", away)
    with Client() as client, pytest.raises(RedisUnavailable) as refused:
        client.models()
    assert refused.value.configured_in == "HEADPOND_REDIS_URL"
    assert known_models(Client(url)) == models


# AsyncClient.


def test_an_asynchronous_client_does_all_of_it(town: Town) -> None:
    async def main() -> None:
        async with AsyncClient(town.deployment.url) as client:
            assert sorted(await client.models()) == ["chat", "idle", "slow"]
            job = await client.submit("chat", PROMPT, id="chat/asynchronous", max_tokens=40, seed=3)
            assert repr(job) == "AsyncJob('chat/asynchronous')"
            chunks = [chunk async for chunk in job.stream()]
            result = await job.result(timeout=10)
            assert isinstance(result, Result)
            assert_one_after_another(chunks)
            assert (ids_of(chunks), text_of(chunks)) == (result.token_ids, result.text)
            assert len(result.token_ids) == 40
            assert await job.state() is JobState.FINISHED
            assert await job.cancel() is JobState.FINISHED
            again = await client.submit("chat", PROMPT, id="chat/asynchronous", max_tokens=40, seed=3)
            assert await again.result(timeout=0) == result
            assert await client.job("chat/asynchronous").result() == result
            rest = [chunk async for chunk in job.stream(after=30)]
            assert ids_of(rest) == result.token_ids[30:]
            talk = await client.submit("chat", messages=[{"role": "user", "content": PROMPT}], max_tokens=40, seed=3)
            assert (await talk.result(timeout=10)).token_ids == result.token_ids

    asyncio.run(main())
    assert town.client.job("chat/asynchronous").result(timeout=0).text


def test_an_asynchronous_client_runs_many_jobs_at_once(town: Town) -> None:
    async def main() -> list[Result]:
        async with AsyncClient(town.deployment.url) as client:

            async def one(n: int) -> Result:
                job = await client.submit("slow", f"{PROMPT} {n}", max_tokens=10)
                chunks = [chunk async for chunk in job.stream()]
                result = await job.result(timeout=20)
                assert ids_of(chunks) == result.token_ids
                return result

            return list(await asyncio.gather(*(one(n) for n in range(12))))

    results = asyncio.run(main())
    assert len({result.id for result in results}) == 12
    assert all(len(result.token_ids) == 10 for result in results)


def test_an_asynchronous_client_hears_of_ends_without_an_answer(town: Town) -> None:
    async def main() -> None:
        async with AsyncClient(town.deployment.url) as client:
            job = await client.submit("slow", PROMPT)
            seen: list[Chunk] = []
            async for chunk in job.stream():
                seen.append(chunk)
                if len(ids_of(seen)) >= 5:
                    await job.cancel()
            with pytest.raises(JobCancelled) as cancelled:
                await job.result(timeout=5)
            assert (cancelled.value.result.token_ids, cancelled.value.result.text) == (ids_of(seen), text_of(seen))

            expiring = await client.submit("slow", PROMPT, deadline=0.4)
            with pytest.raises(JobExpired):
                await expiring.result(timeout=10)
            with pytest.raises(JobFailed, match="256"):
                await (await client.submit("chat", "x" * 300)).result(timeout=10)
            slow = await client.submit("slow", PROMPT, max_tokens=20)
            began = time.monotonic()
            with pytest.raises(ResultTimeout):
                await slow.result(timeout=0.1)
            assert time.monotonic() - began < 1
            assert (await slow.result(timeout=10)).usage.completion_tokens == 20
            delayed = await client.submit("chat", PROMPT, delay=0.3, max_tokens=2)
            assert await delayed.state() is JobState.DELAYED
            assert len((await delayed.result(timeout=10)).token_ids) == 2
            gone = client.job("chat/never-was")
            for call in (gone.state, gone.cancel, gone.result):
                with pytest.raises(JobGone):
                    await call()
            with pytest.raises(JobGone):
                _ = [chunk async for chunk in gone.stream()]

    asyncio.run(main())


def test_an_asynchronous_client_refuses_bad_input_alike(town: Town) -> None:
    async def main() -> None:
        async with AsyncClient(town.deployment.url) as client:
            with pytest.raises(UnknownModel, match="chat, idle, slow"):
                await client.submit("chatt", PROMPT)
            for options, field in REFUSALS.values():
                with pytest.raises(InvalidRequest) as refused:
                    await client.submit("idle", **({"prompt": PROMPT} | options))
                assert refused.value.field == field
            await client.submit("idle", PROMPT, id="idle/of-an-asynchronous-one")
            with pytest.raises(IdConflict):
                await client.submit("idle", "another", id="idle/of-an-asynchronous-one")
            assert await client.job("idle/of-an-asynchronous-one").cancel() is JobState.CANCELLED
            with pytest.raises(InvalidRequest):
                client.job("no id")
            with pytest.raises(InvalidRequest):
                _ = [chunk async for chunk in client.job("idle/a").stream(after=-1)]

    asyncio.run(main())


def test_an_asynchronous_client_names_a_server_that_is_away(valkey: ValkeyProcess) -> None:
    url, password = valkey.url, valkey.url.partition("@")[0].rpartition(":")[2]
    valkey.stop()

    async def main() -> None:
        async with AsyncClient(url) as client:
            job = client.job("chat/a")
            for call in (lambda: client.submit("chat", PROMPT), client.models, job.state, job.result, job.cancel):
                began = time.monotonic()
                with pytest.raises(RedisUnavailable) as refused:
                    await call()
                assert time.monotonic() - began < 5
                assert refused.value.configured_in == "the url argument"
                assert password not in str(refused.value)

    asyncio.run(main())


def test_an_asynchronous_wait_ends_in_time_while_the_server_is_away(valkey: ValkeyProcess) -> None:
    server = Server(RedisAddress(valkey.url, "the test"))
    server.configure_model("chat", client_row())

    async def main() -> float:
        async with AsyncClient(valkey.url) as client:
            job = await client.submit("chat", PROMPT)
            began = time.monotonic()
            waiting = asyncio.create_task(job.result(timeout=1.0))
            while not any(c["cmd"] == "xread" for c in server.redis.client_list()):
                await asyncio.sleep(0.01)
                assert time.monotonic() - began < 5
            valkey.kill()
            with pytest.raises(ResultTimeout):
                await waiting
            return time.monotonic() - began

    assert asyncio.run(main()) < 4
    server.close()


def test_workers_rows_say_what_serves(town: Town) -> None:
    rows: list[WorkerRow] = town.queue("chat").workers()
    assert [(row.instance, row.state, row.slots, row.model) for row in rows] == [
        ("chat-0", WorkerState.READY, 4, "chat"),
    ]  # fmt: skip
    assert rows[0].version.startswith("local-")
    eventually(lambda: town.queue("chat").workers()[0].busy == 0, what="an idle worker")
