"""A proxy's worker on the real queue, over a server that misbehaves: what becomes of jobs, worker and queue."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from conftest import Deployment, eventually
from headpond import Client, FinishReason, JobState
from headpond.errors import HeadpondError, JobEnded
from headpond.jobs import UNNAMED_TOKEN, Usage
from headpond.workers import WorkerState
from misbehaving_server import MisbehavingServer, misbehaving_server
from proxy_flow import KEY, Reading, rewinds, row_of, start, table

pytestmark = pytest.mark.slow

WHOLE = "".join(f"word{n} " for n in range(12))


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    with misbehaving_server() as server:
        yield server


OUTCOMES = {
    "bad_request": JobState.FAILED,
    "unprocessable": JobState.FAILED,
    "not_found": JobState.FAILED,
    "filtered": JobState.FAILED,
    "endless_line": JobState.FAILED,
    "endless_answer": JobState.FAILED,
    "announced_huge": JobState.FAILED,
    "cut": JobState.FAILED,
    "silent": JobState.FAILED,
    "error_amid": JobState.FAILED,
    "no_end": JobState.FAILED,
    "error_500": JobState.DEAD,
    "html": JobState.DEAD,
    "not_sse": JobState.DEAD,
    "not_json": JobState.DEAD,
    "not_utf8": JobState.DEAD,
    "choices_map": JobState.DEAD,
    "content_number": JobState.DEAD,
    "no_choices": JobState.DEAD,
    "no_done": JobState.FINISHED,
    "error_500*1": JobState.FINISHED,
    "rate_limited*1": JobState.FINISHED,
    "cut*1": JobState.FINISHED,
    "not_json*1": JobState.FINISHED,
    "mute*1": JobState.FINISHED,
}
"""What becomes of the job whose requests, and only those, meet this fault."""


def test_each_fault_has_its_outcome_for_its_own_job_and_the_next_one_is_served(
    deployment: Deployment, client: Client, server: MisbehavingServer
) -> None:
    server.retry_after = "0.2"
    deployment.configure(table(server.url))
    worker = start(deployment, "remote-0")
    jobs = {fault: client.submit("remote", f"!{fault}") for fault in OUTCOMES}
    ends: dict[str, JobState] = {}
    said: dict[str, str] = {}
    for fault, job in jobs.items():
        try:
            ends[fault] = job.result(timeout=60).state
        except JobEnded as error:
            ends[fault], said[fault] = error.result.state, str(error)
        after = client.submit("remote", f"after {fault}").result(timeout=30)
        assert (after.state, after.text) == (JobState.FINISHED, WHOLE)
    assert ends == OUTCOMES
    assert "temperature is out of range" in said["unprocessable"]
    assert KEY not in "".join(said.values())
    assert "\x1b" not in "".join(said.values())
    assert worker.process.poll() is None
    log = worker.log.read_text()
    assert KEY not in log
    # What a server says may repeat a prompt, and no prompt is logged.
    assert "It broke." not in log
    assert "temperature is out of range" not in log


def test_a_result_has_the_servers_counts_and_a_place_for_each_piece(
    deployment: Deployment, client: Client, server: MisbehavingServer
) -> None:
    deployment.configure(table(server.url))
    start(deployment, "remote-0")
    job = client.submit("remote", "hello")
    result = job.result(timeout=30)
    assert (result.text, result.finish_reason) == (WHOLE, FinishReason.STOP)
    assert result.usage == Usage(7, 12)
    assert result.token_ids == (UNNAMED_TOKEN,) * 12
    assert "".join(chunk.text for chunk in job.stream(after=9)) == "word9 word10 word11 "
    cut = client.submit("remote", "hello", stop=["none", "nil", "null", "nought", "4 wo"]).result(timeout=30)
    assert (cut.text, cut.finish_reason) == ("word0 word1 word2 word3 word", FinishReason.STOP)
    short = client.submit("remote", "hello", max_tokens=3).result(timeout=30)
    assert (short.text, short.finish_reason) == ("word0 word1 word2 ", FinishReason.LENGTH)


def test_a_killed_workers_answer_begins_anew_and_its_readers_are_told(
    deployment: Deployment, client: Client, server: MisbehavingServer
) -> None:
    server.token_s = 0.15
    deployment.configure(table(server.url))
    first = start(deployment, "remote-0")
    job = client.submit("remote", "hello")
    reading = Reading(job)
    reading.await_tokens(4)
    first.kill()
    start(deployment, "remote-1")
    result = job.result(timeout=30)
    reading.ended()
    assert (result.text, result.attempts) == (WHOLE, 2)
    assert (reading.restarts, reading.text) == (1, WHOLE)
    (rewound,) = rewinds(deployment.queue("remote"), job)
    assert rewound.offset == 0
    assert "cannot continue an answer" in rewound.reason


def test_a_cut_answer_begins_anew_without_a_strike(
    deployment: Deployment, client: Client, server: MisbehavingServer
) -> None:
    deployment.configure(table(server.url))
    start(deployment, "remote-0")
    job = client.submit("remote", "!cut*1")
    reading = Reading(job)
    result = job.result(timeout=30)
    reading.ended()
    assert (result.text, result.attempts) == (WHOLE, 2)
    assert (reading.restarts, reading.text) == (1, WHOLE)
    queue = deployment.queue("remote")
    row = queue.run_row(job.id)
    assert row is not None
    assert (row.strikes, row.faults) == (0, 0)
    (attempt,) = queue.attempts(job.id)
    assert (attempt.how, attempt.to_offset) == ("parked", 3)
    assert "broke off amid its answer" in attempt.reason


def test_an_outage_costs_no_job_an_attempt_and_ends_by_itself(
    deployment: Deployment, client: Client, server: MisbehavingServer
) -> None:
    deployment.configure(table(server.url))
    worker = start(deployment, "remote-0")
    queue = deployment.queue("remote")
    server.fault = "error_503"
    jobs = [client.submit("remote", f"hello {n}") for n in range(10)]
    eventually(lambda: "does not serve: HTTP 503" in row_of(queue, worker).last_error, what="the worker to say so")
    eventually(lambda: queue.depths().running == 0, what="nothing to be claimed")
    probes = sum(request.text == "Hi" for request in server.received)
    eventually(lambda: sum(request.text == "Hi" for request in server.received) > probes, what="another probe")
    assert queue.depths().ready == 10
    assert row_of(queue, worker).state is WorkerState.READY
    server.fault = None
    for job in jobs:
        assert job.result(timeout=60).text == WHOLE
        row = queue.run_row(job.id)
        assert row is not None
        assert (row.strikes, row.faults) == (0, 0)
        assert row.attempt <= 2
    eventually(lambda: row_of(queue, worker).last_error == "", what="the error to be gone")


def test_a_wrong_key_fails_no_job_and_a_right_one_in_the_same_file_serves_them(
    deployment: Deployment, client: Client, server: MisbehavingServer
) -> None:
    server.accepts = "sk-right"
    key = deployment.folder / "key"
    key.write_text("sk-wrong\n")
    deployment.configure(table(server.url, api_key=f'{{file = "{key}"}}'))
    worker = deployment.start("remote", "remote-0", ready=False)
    queue = deployment.queue("remote")
    client_of_model = eventually(lambda: "remote" in client.models(), what="the model to be configured")
    assert client_of_model
    jobs = [client.submit("remote", f"hello {n}") for n in range(3)]
    eventually(
        lambda: any(row.state is WorkerState.FAILED for row in queue.workers()), what="the worker to look failed"
    )
    row = row_of(queue, worker)
    assert "HTTP 401; check api_key" in row.last_error
    assert "sk-wrong" not in row.last_error
    assert worker.process.poll() is None
    assert queue.depths().ready == 3
    key.write_text("sk-right\n")
    for job in jobs:
        assert job.result(timeout=60).text == WHOLE
    eventually(lambda: row_of(queue, worker).state is WorkerState.READY, what="the worker to be ready")
    assert "sk-wrong" not in worker.log.read_text()


@pytest.mark.parametrize("prompt", ["!silent", "!rate_limited"])
def test_cancels_deadlines_and_drains_are_heard_while_it_waits(
    deployment: Deployment, client: Client, server: MisbehavingServer, prompt: str
) -> None:
    server.retry_after = "60"
    deployment.configure(table(server.url, first_token_timeout_s=60, token_timeout_s=60))
    worker = start(deployment, "remote-0")
    queue = deployment.queue("remote")

    def running() -> bool:
        return queue.depths().running == 1 and server.times(prompt) > asked

    asked = 0
    job = client.submit("remote", prompt)
    eventually(running, what="the job to run")
    job.cancel()
    eventually(lambda: row_of(queue, worker).busy == 0, deadline_s=2, what="the slot to be free")

    asked = server.times(prompt) if prompt != "!rate_limited" else -1
    late = client.submit("remote", prompt, deadline=1.0)
    with pytest.raises(HeadpondError, match="deadline"):
        late.result(timeout=10)

    asked = server.times(prompt) if prompt != "!rate_limited" else -1
    client.submit("remote", prompt)
    eventually(running, what="the job to run")
    began = time.monotonic()
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert time.monotonic() - began < 3
    assert queue.depths().ready == 1


def test_slots_bound_what_is_asked_at_a_time(deployment: Deployment, client: Client, server: MisbehavingServer) -> None:
    server.token_s = 0.02
    deployment.configure(table(server.url, slots=2))
    start(deployment, "remote-0")
    # What the worker asked to see whether the server serves may not be at its end yet.
    eventually(lambda: not server.running, what="the end of the worker's own request")
    server.most_running = 0
    jobs = [client.submit("remote", f"hello {n}") for n in range(6)]
    assert [job.result(timeout=30).text for job in jobs] == [WHOLE] * 6
    assert server.most_running == 2


def test_a_batch_job_that_would_begin_anew_is_not_parked_for_an_interactive_one(
    deployment: Deployment, client: Client, server: MisbehavingServer
) -> None:
    server.token_s, server.words = 0.01, 150
    deployment.configure(table(server.url, slots=1))
    start(deployment, "remote-0")
    batch = client.submit("remote", "hello", priority="batch")
    Reading(batch).await_tokens(70)  # more than the 60 after which a batch job may be parked
    urgent = client.submit("remote", "hello", priority="interactive", max_tokens=3)
    assert urgent.result(timeout=30).text == "word0 word1 word2 "
    assert batch.result(timeout=30).attempts == 1
    assert rewinds(deployment.queue("remote"), batch) == []


def test_a_server_that_cannot_continue_is_named_when_the_worker_starts(
    deployment: Deployment, server: MisbehavingServer
) -> None:
    server.fault = "not_found"
    deployment.configure(table(server.url, resume='"continue"'))
    environment = {"TEST_UPSTREAM_KEY": KEY}
    worker = deployment.start("remote", "remote-0", ready=False, environment=environment)
    assert worker.wait() == 78
    (row,) = deployment.queue("remote").workers()
    assert row.state is WorkerState.FAILED
    assert 'Write resume = "rewind"' in row.last_error


def test_a_model_of_another_server_is_not_replayed(
    deployment: Deployment, client: Client, server: MisbehavingServer
) -> None:
    from headpond.errors import EngineUnavailable
    from headpond.settings import load_settings
    from headpond_workers.loading import load_engine

    settings = load_settings(deployment.configure(table(server.url)))
    with pytest.raises(EngineUnavailable, match="dead retry"):
        load_engine(settings.model("remote"), workers_on_host=1)
