"""A real model behind the real queue: worker processes on llama.cpp, killed and drained amid their answers."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import Deployment, eventually
from headpond import Client, FinishReason, JobState
from headpond_workers.models.prepare import prepare

pytestmark = pytest.mark.slow

SOURCE = "smollm2-135m:Q8_0"
MODEL = f"""
[models.chat]
engine = "llamacpp"
source = "{SOURCE}"
threads = 1
slots = 4
context_tokens = 512
lease_s = 2.0
drain_timeout_s = 0.5
"""
PROMPT = "Explain in a few sentences why rivers bend."


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> None:
    prepare(SOURCE, progress=lambda *_: None)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_killed_worker_is_continued_to_the_same_tokens_under_the_exact_profile(
    deployment: Deployment, client: Client, temperature: float
) -> None:
    deployment.configure(MODEL + "exact = true\n")
    first = deployment.start("chat", "chat-0")
    wanted = {"max_tokens": 60, "temperature": temperature, "seed": 11}
    calm = client.submit("chat", PROMPT, **wanted).result(timeout=60)
    assert len(calm.token_ids) > 25
    job = client.submit("chat", PROMPT, id="chat/killed", **wanted)
    for chunk in job.stream():
        if chunk.offset >= 12:
            break
    assert job.state() is JobState.RUNNING
    first.kill()
    deployment.start("chat", "chat-1")

    result = job.result(timeout=60)

    assert result.attempts == 2
    assert (result.token_ids, result.text) == (calm.token_ids, calm.text)
    assert tuple(i for chunk in job.stream() for i in chunk.token_ids) == calm.token_ids


def test_slots_answer_together_and_each_its_own_question(deployment: Deployment, client: Client) -> None:
    deployment.configure(MODEL)
    deployment.start("chat", "chat-0")
    queue = deployment.queue("chat")
    questions = ["Name a colour.", "What is two plus two?", "Say hello in French.", "Where is Paris?"]
    jobs = [client.submit("chat", q, max_tokens=40, temperature=0) for q in questions]
    eventually(lambda: queue.depths().running == 4, what="four jobs running together")
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda job: job.result(timeout=60), jobs))
    assert "Paris" in results[3].text
    assert len({r.text for r in results}) == 4
    for result in results:
        assert result.version.startswith("local-")
        assert result.usage.completion_tokens == len(result.token_ids)
        assert result.usage.prompt_tokens > 10
        assert result.timings.first_token_s is not None
        assert "<|im_" not in result.text


def test_a_stop_string_ends_a_real_answer_before_it(deployment: Deployment, client: Client) -> None:
    deployment.configure(MODEL)
    deployment.start("chat", "chat-0")
    whole = client.submit("chat", PROMPT, max_tokens=60, temperature=0).result(timeout=60)
    stop = whole.text.split()[5]
    cut = client.submit("chat", PROMPT, max_tokens=60, temperature=0, stop=[stop]).result(timeout=60)
    assert cut.finish_reason is FinishReason.STOP
    assert stop not in cut.text
    assert whole.text.startswith(cut.text)


def test_a_drained_worker_parks_and_the_next_one_ends_the_job(deployment: Deployment, client: Client) -> None:
    deployment.configure(MODEL)
    first = deployment.start("chat", "chat-0")
    job = client.submit("chat", "Write a long story about a river.", max_tokens=200, temperature=0)
    given = []
    for chunk in job.stream():
        given += chunk.token_ids
        if len(given) >= 10:
            break
    first.signal(signal.SIGTERM)
    assert first.wait() == 0
    assert job.state() is JobState.QUEUED
    deployment.start("chat", "chat-1")
    result = job.result(timeout=90)
    assert result.attempts == 2
    assert list(result.token_ids[: len(given)]) == given
    assert tuple(i for chunk in job.stream() for i in chunk.token_ids) == result.token_ids


def test_a_model_that_cannot_be_loaded_says_why_and_leaves_for_good(deployment: Deployment) -> None:
    broken = deployment.folder / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * 100)
    deployment.configure(f'[models.chat]\nengine = "llamacpp"\npath = "{broken}"\n')
    child = deployment.start("chat", "chat-0", ready=False)
    assert child.wait() == 78
    (row,) = deployment.queue("chat").workers()
    assert row.state.value == "failed"
    assert "broken.gguf" in row.last_error
