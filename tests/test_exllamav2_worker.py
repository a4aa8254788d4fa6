"""exllamav2 behind the real queue: worker processes on the CPU harness, killed, drained and filled amid their answers.

That a resumed answer is the very same text comes from two things: its draws are replayed, and on the harness a token
does not depend on how many others were computed with it. On a GPU the second is not given.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from conftest import Deployment, WorkerChild, eventually
from exllamav2_cpu import checkpoints, processes, tiny_corpus
from exllamav2_cpu.availability import require_exllamav2
from headpond import Client, FinishReason, Job, JobState
from headpond.errors import JobCancelled, JobFailed
from headpond.queue import JobQueue
from headpond.wire import RunRow
from headpond.workers import WorkerState
from headpond_workers.supervision.embedded_valkey import running_valkey
from worker_flow import ENDED_S, Reading, assert_read_once, await_tokens, row_of, start_worker

require_exllamav2()

pytestmark = pytest.mark.slow

WORKER = "exllamav2_cpu.worker"
SLOW_S = "EXLLAMAV2_CPU_SLOW_S"
TABLE = """
[models.chat]
engine = "exllamav2"
path = "{path}"
slots = {slots}
context_tokens = {context}
chunk_tokens = 256
lease_s = 2.0
drain_timeout_s = 0.3
"""
STORY = tiny_corpus.RUNS_ON
"""The tiny model's answer to it never ends by itself."""
LOOP: dict[str, Any] = {"max_tokens": 60, "temperature": 0}
ADAPTERS = ("formal", "terse")


def table(path: Path, *, slots: int = 4, context: int = 1024) -> str:
    return TABLE.format(path=path, slots=slots, context=context)


def with_adapters() -> str:
    """Two adapters of the tiny model, as lines of its table."""
    folders = {name: checkpoints.tiny_adapter(seed) for seed, name in enumerate(ADAPTERS, start=1)}
    return "".join(f'adapters.{name} = {{path = "{folder}"}}\n' for name, folder in folders.items())


def stand_ins(slow_s: float) -> dict[str, str]:
    """The environment of a worker on the harness. slow_s: how much longer each entry of rms_norm takes; a token of the
    tiny model has 5 of them."""
    environment: dict[str, str] = processes.environment(**{SLOW_S: str(slow_s)})
    return environment


def start(deployment: Deployment, instance: str, *, slow_s: float = 0.0, program: str = WORKER) -> WorkerChild:
    return start_worker(deployment, instance, program=program, environment=stand_ins(slow_s))


def kill_amid(worker: WorkerChild, queue: JobQueue, job: Job, *, tokens: int) -> int:
    """SIGKILL the worker while the job runs and has at least so many tokens. Returns how many it has."""
    await_tokens(queue, job, tokens)
    worker.kill()
    row = row_of(queue, job)
    assert row.state is JobState.RUNNING, "the job had ended before the kill, which then shows nothing"
    assert row.offset >= tokens
    return row.offset


def answer(job: Job) -> tuple[tuple[int, ...], str]:
    result = job.result(ENDED_S)
    return result.token_ids, result.text


# Killed


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_smollm2_goes_on_to_the_same_text_after_a_kill(
    deployment: Deployment, client: Client, temperature: float
) -> None:
    # gpu_split: on a CPU the trial run by which devices are filled takes longer than all else.
    deployment.configure(table(checkpoints.smollm2(), context=512) + "gpu_split = [8]\n")
    first = start(deployment, "chat-0")
    queue = deployment.queue("chat")
    prompt = "Explain in a few sentences why rivers bend."
    wanted: dict[str, Any] = {"max_tokens": 24, "temperature": temperature, "seed": 11}
    calm = client.submit("chat", prompt, **wanted).result(ENDED_S)
    assert calm.attempts == 1
    assert len(calm.token_ids) == 24

    job = client.submit("chat", prompt, id="chat/killed", **wanted)
    reading = Reading(job)
    before = kill_amid(first, queue, job, tokens=4)
    assert before < 24
    start(deployment, "chat-1")
    result = job.result(ENDED_S)

    assert result.attempts == 2
    assert (result.token_ids, result.text) == (calm.token_ids, calm.text)
    assert_read_once(reading, result)


@pytest.mark.parametrize(("adapter", "temperature"), [(None, 1.6), ("formal", 1.0)])
def test_four_sampled_jobs_go_on_to_their_own_texts_after_two_kills(
    deployment: Deployment, client: Client, adapter: str | None, temperature: float
) -> None:
    deployment.configure(table(checkpoints.tiny()) + with_adapters())
    wanted: dict[str, Any] = {"max_tokens": 100, "temperature": temperature, "adapter": adapter}
    worker = start(deployment, "chat-0", slow_s=0.008)
    queue = deployment.queue("chat")
    calm = {seed: client.submit("chat", STORY, seed=seed, **wanted) for seed in range(16)}
    # Only those that leave time for two kills, and of those that drew alike one.
    drawn = {given: seed for seed, job in calm.items() if len((given := answer(job))[0]) == 100}
    undisturbed = {seed: given for given, seed in list(drawn.items())[:4]}
    seeds = list(undisturbed)
    assert len(seeds) == 4

    jobs = [client.submit("chat", STORY, id=f"chat/killed-{seed}", seed=seed, **wanted) for seed in seeds]
    readings = [Reading(job) for job in jobs]

    def rows() -> list[RunRow]:
        return [row_of(queue, job) for job in jobs]

    def all_at_work(life: int) -> bool:
        """Each job has five tokens of this life at least."""
        return all(row.attempt == life and row.offset - row.claimed_offset >= 5 for row in rows())

    for life in (1, 2):
        eventually(partial(all_at_work, life), deadline_s=ENDED_S, what=f"tokens of each job in life {life}")
        worker.kill()
        assert {row.state for row in rows()} == {JobState.RUNNING}, "a job had ended before the kill"
        worker = start(deployment, f"chat-{life}", slow_s=0.008)
    results = [job.result(ENDED_S) for job in jobs]

    assert [result.attempts for result in results] == [3] * 4
    assert [(result.token_ids, result.text) for result in results] == [undisturbed[seed] for seed in seeds]
    for reading, result in zip(readings, results, strict=True):
        assert_read_once(reading, result)


# Together, on one worker


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One worker with eight slots and two adapters, not too fast to be caught at work."""
    folder = tmp_path_factory.mktemp("shared")
    with running_valkey(folder / "server") as valkey:
        deployment = Deployment(valkey, folder)
        try:
            deployment.configure(table(checkpoints.tiny(), slots=8) + with_adapters())
            start(deployment, "chat-0", slow_s=0.005)
            yield deployment
        finally:
            deployment.close()


@pytest.fixture
def serving(shared: Deployment) -> Iterator[Client]:
    with Client(shared.url) as client:
        yield client


def busy(queue: JobQueue) -> int:
    (row,) = queue.workers()
    return row.busy


def test_eight_jobs_run_together_and_each_answers_its_own_question(shared: Deployment, serving: Client) -> None:
    queue = shared.queue("chat")
    jobs = [
        *(serving.submit("chat", question, max_tokens=60, temperature=0) for question in tiny_corpus.ANSWERS),
        *(serving.submit("chat", STORY, **LOOP) for _ in range(3)),
    ]
    assert len(jobs) == 8
    readings = [Reading(job) for job in jobs]
    eventually(lambda: queue.depths().running == 8, what="eight jobs running together")
    results = [job.result(ENDED_S) for job in jobs]

    assert [result.text for result in results[:5]] == list(tiny_corpus.ANSWERS.values())
    assert {result.finish_reason for result in results[:5]} == {FinishReason.STOP}
    alone = answer(serving.submit("chat", STORY, **LOOP))
    for result in results[5:]:
        assert result.finish_reason is FinishReason.LENGTH
        assert (result.token_ids, result.text) == alone
    for reading, result in zip(readings, results, strict=True):
        assert_read_once(reading, result)
        assert result.usage.completion_tokens == len(result.token_ids)


def test_a_job_cancelled_amid_its_answer_leaves_its_slot_and_its_neighbour(shared: Deployment, serving: Client) -> None:
    queue = shared.queue("chat")
    undisturbed = answer(serving.submit("chat", STORY, max_tokens=120, temperature=0))
    doomed = serving.submit("chat", STORY, max_tokens=900, temperature=0)
    neighbour = serving.submit("chat", STORY, max_tokens=120, temperature=0)
    reading = Reading(neighbour)
    await_tokens(queue, doomed, 10)

    assert doomed.cancel() is JobState.CANCELLED
    with pytest.raises(JobCancelled) as cancelled:
        doomed.result(ENDED_S)

    assert row_of(queue, neighbour).state is JobState.RUNNING
    given = cancelled.value.result.token_ids
    assert 10 <= len(given) < 120
    assert given == undisturbed[0][: len(given)]
    result = neighbour.result(ENDED_S)
    assert (result.token_ids, result.text) == undisturbed
    assert_read_once(reading, result)
    eventually(lambda: busy(queue) == 0, what="the slots being free")


def test_a_job_cancelled_amid_its_prefill_leaves_its_slot_and_its_neighbour(
    deployment: Deployment, client: Client
) -> None:
    # Its 13 chunks take 3 entries of the slow stand-in each, and as many steps of the neighbour 5 each: 5 s.
    deployment.configure(table(checkpoints.tiny(), slots=2, context=4096))
    start(deployment, "chat-0", slow_s=0.05)
    queue = deployment.queue("chat")
    neighbour = client.submit("chat", STORY, max_tokens=12, temperature=0)
    reading = Reading(neighbour)
    await_tokens(queue, neighbour, 1)
    doomed = client.submit("chat", tiny_corpus.STORY * 24, max_tokens=10, temperature=0)
    eventually(lambda: row_of(queue, doomed).state is JobState.RUNNING, what="the long prompt being read")
    # The neighbour's tokens come between its chunks.
    await_tokens(queue, neighbour, row_of(queue, neighbour).offset + 3)

    assert doomed.cancel() is JobState.CANCELLED
    with pytest.raises(JobCancelled) as cancelled:
        doomed.result(ENDED_S)

    assert cancelled.value.result.token_ids == ()
    eventually(lambda: busy(queue) == 1, what="the slot being free")
    assert row_of(queue, neighbour).state is JobState.RUNNING
    result = neighbour.result(ENDED_S)
    assert_read_once(reading, result)
    assert (result.token_ids, result.text) == answer(client.submit("chat", STORY, max_tokens=12, temperature=0))


def test_jobs_of_two_adapters_and_of_none_each_get_their_own_answer(shared: Deployment, serving: Client) -> None:
    names = (None, *ADAPTERS)
    undisturbed = {name: answer(serving.submit("chat", STORY, adapter=name, **LOOP)) for name in names}
    assert len(set(undisturbed.values())) == 3

    # Twice each, mixed, so that the adapter is switched while others wait.
    jobs = [(name, serving.submit("chat", STORY, adapter=name, **LOOP)) for name in (*names, *names)]
    readings = [Reading(job) for _, job in jobs]
    results = [(name, job.result(ENDED_S)) for name, job in jobs]

    assert [(r.token_ids, r.text) for _, r in results] == [undisturbed[name] for name, _ in results]
    for reading, (_, result) in zip(readings, results, strict=True):
        assert_read_once(reading, result)


def test_an_unknown_adapter_fails_its_job_with_the_names_that_are_known(shared: Deployment, serving: Client) -> None:
    with pytest.raises(JobFailed, match=re.escape("No adapter is named 'florid' (there are: formal, terse)")):
        serving.submit("chat", STORY, adapter="florid").result(ENDED_S)
    assert serving.submit("chat", "Say yes.", temperature=0).result(ENDED_S).text == "yes"


# Drained, refused, full


def test_a_drained_worker_parks_its_jobs_and_the_next_one_ends_them_the_same(
    deployment: Deployment, client: Client
) -> None:
    deployment.configure(table(checkpoints.tiny()))
    first = start(deployment, "chat-0", slow_s=0.015)
    queue = deployment.queue("chat")
    wanted: dict[str, Any] = {"max_tokens": 40, "temperature": 1.6}
    # Where an answer ends depends on the last bits of this processor: two that run on are taken.
    calm = {seed: client.submit("chat", STORY, seed=seed, **wanted) for seed in range(1, 7)}
    answers = {seed: answer(job) for seed, job in calm.items()}
    seeds = [seed for seed, (ids, _) in answers.items() if len(ids) == 40][:2]
    assert len(seeds) == 2
    undisturbed = [answers[seed] for seed in seeds]
    jobs = [client.submit("chat", STORY, id=f"chat/parked-{seed}", seed=seed, **wanted) for seed in seeds]
    readings = [Reading(job) for job in jobs]
    for job in jobs:
        await_tokens(queue, job, 3)

    first.signal(signal.SIGTERM)
    assert first.process.wait(ENDED_S) == 0

    rows = [row_of(queue, job) for job in jobs]
    assert [(row.state, row.strikes) for row in rows] == [(JobState.QUEUED, 0)] * 2
    assert all(3 <= row.offset < 40 for row in rows)
    assert queue.workers() == []
    start(deployment, "chat-1")
    results = [job.result(ENDED_S) for job in jobs]
    assert [(result.token_ids, result.text) for result in results] == undisturbed
    for reading, result, row in zip(readings, results, rows, strict=True):
        assert_read_once(reading, result)
        assert result.attempts == 2
        assert len(result.token_ids) > row.offset


def without_config(folder: Path) -> str:
    (folder / "config.json").unlink()
    return f"No file at {folder / 'config.json'}"


def with_a_pickle(folder: Path) -> str:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    return "'pytorch_model.bin', which may be a pickle"


def cut_short(folder: Path) -> str:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return f"{weights} is truncated"


def with_a_layer_too_few(folder: Path) -> str:
    config = folder / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"num_hidden_layers": values["num_hidden_layers"] + 1}))
    return f"exllamav2 cannot load {folder}"


BAD_FOLDERS = {
    function.__name__: function for function in (without_config, with_a_pickle, cut_short, with_a_layer_too_few)
}


@pytest.mark.parametrize("damage", BAD_FOLDERS)
def test_a_bad_model_folder_is_one_clear_error_and_the_worker_leaves_for_good(
    deployment: Deployment, damage: str
) -> None:
    folder = deployment.folder / "model"
    shutil.copytree(checkpoints.tiny(), folder)
    reason = BAD_FOLDERS[damage](folder)
    deployment.configure(table(folder))

    worker = deployment.start("chat", "chat-0", ready=False, program=[WORKER], environment=stand_ins(0.0))

    assert worker.process.wait(ENDED_S) == 78
    (row,) = deployment.queue("chat").workers()
    assert row.state is WorkerState.FAILED
    assert reason in row.last_error
    log = worker.log.read_text()
    assert log.count("load_failed") == 1
    assert "Traceback" not in log


def test_a_device_that_runs_full_costs_the_last_job_one_attempt_and_says_what_would_fit(
    deployment: Deployment, client: Client
) -> None:
    deployment.configure(table(checkpoints.tiny(), slots=2))
    worker = start(deployment, "chat-0", program="exllamav2_cpu_worker_oom", slow_s=0.05)
    queue = deployment.queue("chat")
    wanted: dict[str, Any] = {"max_tokens": 24, "temperature": 1.6}
    calm = [client.submit("chat", STORY, seed=seed, **wanted) for seed in (1, 2)]
    undisturbed = [answer(job) for job in calm]
    assert [len(ids) for ids, _ in undisturbed] == [24, 24]
    older = client.submit("chat", STORY, id="chat/older", seed=1, **wanted)
    await_tokens(queue, older, 1)
    newer = client.submit("chat", STORY, id="chat/newer", seed=2, **wanted)
    readings = [Reading(older), Reading(newer)]
    await_tokens(queue, newer, 1)

    worker.signal(signal.SIGUSR1)
    results = [older.result(ENDED_S), newer.result(ENDED_S)]

    assert [(result.token_ids, result.text) for result in results] == undisturbed
    assert [result.attempts for result in results] == [1, 2]
    assert [row_of(queue, job).strikes for job in (older, newer)] == [0, 1]
    for reading, result in zip(readings, results, strict=True):
        assert_read_once(reading, result)

    (row,) = eventually(
        lambda: [row for row in queue.workers() if row.last_error], what="the worker's row telling of it"
    )
    assert (row.pid, row.state) == (worker.pid, WorkerState.READY)
    assert row.last_error.startswith("The device is out of memory.")
    assert "Free: 1.0 MiB on device 0." in row.last_error
    assert 'write cache = "' in row.last_error
