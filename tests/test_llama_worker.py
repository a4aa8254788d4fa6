"""A real model behind the real queue: worker processes on llama.cpp, killed and drained amid their answers."""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from conftest import Deployment, eventually
from headpond import Client, FinishReason, Job, JobState
from headpond.errors import JobFailed
from headpond.jobs import JobId, Priority
from headpond.operators import Operator
from headpond.requests import parse_request
from headpond.submission import submission_of
from headpond_workers.models.prepare import prepare
from headpond_workers.replay.events import Event, Step
from headpond_workers.replay.run import How, Replay, While, run_replay
from schema_checker import admits

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


def test_a_bundle_of_a_real_answer_replays_to_its_tokens_and_an_abort_is_named(
    deployment: Deployment, client: Client
) -> None:
    deployment.configure(MODEL + "exact = true\n")
    worker = deployment.start("chat", "chat-0")
    job = client.submit("chat", PROMPT, max_tokens=40, temperature=0.9)
    for chunk in job.stream():
        if chunk.offset >= 12:
            break
    job.cancel()
    worker.kill()
    with Operator(deployment.url) as operator:
        bundle = operator.dead("chat").show(job.id)
    had = len(bundle.token_ids)
    assert 12 <= had < 40

    def replay(*, from_start: bool, on_event: Callable[[Event], None]) -> Replay:
        with tempfile.TemporaryFile() as log:
            return run_replay(
                bundle, config=deployment.config, model="chat", from_start=from_start, any_fingerprint=False,
                stall_timeout_s=60, log=log, on_event=on_event,
            )  # fmt: skip

    anew = replay(from_start=True, on_event=lambda _: None)
    assert (anew.how, anew.fingerprint) == (How.FINISHED, bundle.fingerprint)
    assert (anew.compared(bundle), anew.difference(bundle)) == (had, None)
    assert anew.text.startswith(bundle.text)

    aborted = False

    def abort(event: Event) -> None:
        nonlocal aborted
        if isinstance(event, Step) and event.made and not aborted:
            aborted = True
            (child,) = [p for p in psutil.Process().children() if "headpond_workers.replay.child" in p.cmdline()]
            child.send_signal(signal.SIGABRT)

    died = replay(from_start=False, on_event=abort)
    assert (died.how, died.signal, died.during) == (How.DIED, "SIGABRT", While.GENERATING)
    assert died.from_offset == had
    assert had < died.offset == had + died.made < 40
    # It went on where the bundle ends.
    assert died.token_ids == anew.token_ids[had : had + len(died.token_ids)]


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "colours": {"type": "array", "items": {"enum": ["red", "gr\u00fcn", "\u9752"]}, "minItems": 2, "maxItems": 4},
    },
    "required": ["name", "age", "colours"],
}


def submit_bound(deployment: Deployment, client: Client, slug: str, *, temperature: float) -> Job:
    """A job whose answer is to be JSON of PERSON."""
    request = parse_request(
        {
            "prompt": "Describe a person as JSON.",
            "max_tokens": 120,
            "sampling": {"temperature": temperature, "seed": 5},
            "response_format": {"type": "json_schema", "json_schema": {"schema": PERSON}},
        }
    )
    submission = submission_of(
        JobId.parse(f"chat/{slug}"), request, tenant="", band=Priority.NORMAL, pinned="", max_queued=0
    )
    deployment.queue("chat").submit([submission.entry], max_queued=0)
    return client.job(f"chat/{slug}")


@pytest.mark.parametrize(("exact", "temperature"), [(False, 0.0), (True, 0.9)], ids=["default", "exact"])
def test_a_bound_answer_of_a_killed_worker_ends_as_json_that_its_schema_admits(
    deployment: Deployment, client: Client, exact: bool, temperature: float
) -> None:
    deployment.configure(MODEL + f"exact = {str(exact).lower()}\n")
    first = deployment.start("chat", "chat-0")
    calm = submit_bound(deployment, client, "calm", temperature=temperature).result(timeout=90)
    job = submit_bound(deployment, client, "killed", temperature=temperature)
    for chunk in job.stream():
        if chunk.offset >= 9:
            break
    assert job.state() is JobState.RUNNING
    first.kill()
    deployment.start("chat", "chat-1")

    result = job.result(timeout=90)

    assert result.attempts == 2
    for one in (calm, result):
        assert one.finish_reason is FinishReason.STOP
        assert admits(PERSON, json.loads(one.text))
    assert tuple(i for chunk in job.stream() for i in chunk.token_ids) == result.token_ids
    if exact:
        assert (result.token_ids, result.text) == (calm.token_ids, calm.text)


def test_a_bad_grammar_costs_its_job_and_not_the_worker(deployment: Deployment, client: Client) -> None:
    deployment.configure(MODEL)
    worker = deployment.start("chat", "chat-0")
    doubling = 'root ::= "a" root "b" | "a" root "c" | "d"'
    for slug, grammar in (("broken", "root ::= ("), ("doubling", doubling), ("control", 'root ::= "\\x04"')):
        request = parse_request({"prompt": "Hi", "grammar": grammar})
        submission = submission_of(
            JobId.parse(f"chat/{slug}"), request, tenant="", band=Priority.NORMAL, pinned="", max_queued=0
        )
        deployment.queue("chat").submit([submission.entry], max_queued=0)
        with pytest.raises(JobFailed, match="grammar of this request cannot be used"):
            client.job(f"chat/{slug}").result(timeout=60)
    assert client.submit("chat", "Name a colour.", max_tokens=5).result(timeout=60).token_ids
    assert worker.process.poll() is None
