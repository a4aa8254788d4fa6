"""The producer's API as it is documented, against a real worker process."""

from __future__ import annotations

import hashlib
import inspect
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import headpond
from client_town import PROMPT, Town, assert_one_after_another, ids_of, text_of
from conftest import eventually
from headpond import AsyncClient, Chunk, Client, FinishReason, HeadpondError, Job, JobState
from headpond import operations as ops
from headpond.errors import (
    IdConflict,
    InvalidRequest,
    JobCancelled,
    JobEnded,
    JobExpired,
    JobFailed,
    JobGone,
    JobQuarantined,
    ResultTimeout,
)
from headpond.requests import Message
from headpond.sampling import Sampling
from headpond.tables import ScriptedModel
from headpond.wire import TokenRun
from headpond.workers import WorkerRow, WorkerState
from headpond_workers.detokenizer import Detokenizer
from headpond_workers.engines.protocol import Sequence as EngineSequence
from headpond_workers.engines.protocol import Verdict
from headpond_workers.engines.scripted import ScriptedEngine


@pytest.fixture
def town(served_town: Town) -> Town:
    return served_town


@pytest.fixture
def client(served_town: Town) -> Client:
    return served_town.client


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


def test_workers_rows_say_what_serves(town: Town) -> None:
    rows: list[WorkerRow] = town.queue("chat").workers()
    assert [(row.instance, row.state, row.slots, row.model) for row in rows] == [
        ("chat-0", WorkerState.READY, 4, "chat"),
    ]  # fmt: skip
    assert rows[0].version.startswith("local-")
    eventually(lambda: town.queue("chat").workers()[0].busy == 0, what="an idle worker")
