"""A real model on llama.cpp changes to another version amid an answer: begun anew in its process, and beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from conftest import Deployment, eventually
from headpond import Client, Job, JobState
from headpond.settings import load_settings
from headpond.workers import WorkerState
from headpond_workers.checkpoints.pulls.cache import VersionCache
from headpond_workers.engines.llamacpp.engine import LlamaCppEngine
from headpond_workers.models.prepare import prepare
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from llama_engines import prompt_of, run, table
from version_flow import READY_S, Shelf
from worker_flow import Reading, assert_read_once, await_tokens

pytestmark = pytest.mark.slow

TABLE = """
[models.chat]
engine = "llamacpp"
source = "s3:chat@prod"
threads = 1
context_tokens = 512
exact = true
lease_s = 2
{more}
"""
LONG, SHORT = ("Write a long story about a river.", 240), ("Why do rivers bend?", 24)
"""Prompts, each with the most tokens."""


@pytest.fixture(scope="module")
def files() -> dict[str, Path]:
    """Two versions of one model: the same weights in two quantisations."""
    return {kind: prepare(f"smollm2-135m:{kind}", progress=lambda *_: None) for kind in ("Q8_0", "Q4_1")}


@pytest.fixture(scope="module")
def answers(files: dict[str, Path]) -> dict[tuple[str, str], tuple[int, ...]]:
    """What each file says to each prompt by itself."""
    found = {}
    for kind, path in files.items():
        engine = LlamaCppEngine(table(path, slots=2, context_tokens=512, exact=True), path)
        try:
            for prompt, most in (LONG, SHORT):
                ids, _ = run(engine, prompt_of(engine, prompt), max_tokens=most)
                found[kind, prompt] = tuple(ids)
        finally:
            engine.close()
    for prompt, _ in (LONG, SHORT):
        assert found["Q8_0", prompt] != found["Q4_1", prompt]
    assert len(found["Q8_0", LONG[0]]) > 100, "an answer has to be long for a change to come amid it"
    return found


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as process:
        yield process


@pytest.fixture
def shelf(deployment: Deployment, seaweed: SeaweedProcess) -> Shelf:
    shelf = Shelf(deployment, seaweed, TABLE)
    shelf.start_persister()
    return shelf


@pytest.fixture
def versions(shelf: Shelf, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Both in storage, the first promoted, and both in the workers' cache: what is to be loaded is fetched before a
    worker stops anything, and an answer would be over by then."""
    found = shelf.push_path(files["Q8_0"]), shelf.push_path(files["Q4_1"])
    for name, value in shelf.environment.items():
        monkeypatch.setenv(name, value)
    cache = VersionCache.of(load_settings(shelf.deployment.config))
    for version in found:
        cache.hold(shelf.registry, int(version), lambda *_: None).release()
    shelf.promote(found[0])
    return found


def ask(client: Client, asked: tuple[str, int]) -> Job:
    prompt, most = asked
    return client.submit("chat", prompt, max_tokens=most, temperature=0, seed=7)


def test_a_worker_in_place_ends_its_answer_on_the_version_that_began_it_and_gives_the_next_on_the_other(
    shelf: Shelf, client: Client, versions: tuple[str, str], answers: dict[tuple[str, str], tuple[int, ...]]
) -> None:
    first, second = versions
    (worker,) = shelf.start("chat-0")
    job = ask(client, LONG)
    reading = Reading(job)
    await_tokens(shelf.deployment.queue("chat"), job, 8)
    shelf.promote(second)
    assert job.state() is JobState.RUNNING

    result = job.result(timeout=READY_S)
    assert (result.state, result.version, result.attempts) == (JobState.FINISHED, first, 1)
    assert result.token_ids == answers["Q8_0", LONG[0]]
    assert_read_once(reading, result)
    shelf.await_served(second, workers=1)
    assert [row.pid for row in shelf.rows()] == [worker.pid]
    after = ask(client, SHORT).result(timeout=READY_S)
    assert (after.version, after.token_ids) == (second, answers["Q4_1", SHORT[0]])
    assert after.provenance is not None
    assert after.provenance.model_digest == shelf.digests[second]


def test_two_workers_in_place_begin_anew_amid_their_answers_and_the_parked_one_goes_on_to_the_same_tokens(
    shelf: Shelf, client: Client, versions: tuple[str, str], answers: dict[tuple[str, str], tuple[int, ...]]
) -> None:
    shelf.configure("slots = 1\ndrain_timeout_s = 0.1")
    first, second = versions
    workers = shelf.start("chat-0", "chat-1")
    jobs = [ask(client, LONG) for _ in workers]
    readings = [Reading(job) for job in jobs]
    for job in jobs:
        await_tokens(shelf.deployment.queue("chat"), job, 8)
    shelf.promote(second)

    for job, reading in zip(jobs, readings, strict=True):
        result = job.result(timeout=READY_S)
        assert (result.state, result.version) == (JobState.FINISHED, first)
        assert result.token_ids == answers["Q8_0", LONG[0]]
        assert_read_once(reading, result)
    # The worker that changed first parked its answer, and the last one of the old version went on with it.
    assert sorted(job.result(timeout=READY_S).attempts for job in jobs) == [1, 2]
    shelf.await_served(second, workers=2)
    assert {row.pid for row in shelf.rows()} == {worker.pid for worker in workers}
    after = ask(client, SHORT).result(timeout=READY_S)
    assert (after.version, after.token_ids) == (second, answers["Q4_1", SHORT[0]])


def test_a_worker_side_by_side_ends_its_answer_beside_the_other_version_which_gives_the_next(
    shelf: Shelf, client: Client, versions: tuple[str, str], answers: dict[tuple[str, str], tuple[int, ...]]
) -> None:
    shelf.configure('rollover = "side-by-side"')
    first, second = versions
    (parent,) = shelf.start("chat-0")
    (before,) = psutil.Process(parent.pid).children()
    job = ask(client, LONG)
    reading = Reading(job)
    await_tokens(shelf.deployment.queue("chat"), job, 8)
    shelf.promote(second)
    assert job.state() is JobState.RUNNING

    seen: set[frozenset[tuple[str, WorkerState]]] = set()

    def changed() -> bool:
        rows = shelf.rows()
        seen.add(frozenset((row.version, row.state) for row in rows))
        return [(row.version, row.state) for row in rows] == [(second, WorkerState.READY)]

    eventually(changed, deadline_s=READY_S, what="the second version alone")
    # The first one served until the other one did.
    assert any({(first, WorkerState.READY), (second, WorkerState.LOADING)} <= look for look in seen)
    assert all(WorkerState.READY in {state for _, state in look} for look in seen)
    result = job.result(timeout=READY_S)
    assert (result.state, result.version, result.attempts) == (JobState.FINISHED, first, 1)
    assert result.token_ids == answers["Q8_0", LONG[0]]
    assert_read_once(reading, result)
    after = ask(client, SHORT).result(timeout=READY_S)
    assert (after.version, after.token_ids) == (second, answers["Q4_1", SHORT[0]])
    (now,) = psutil.Process(parent.pid).children()
    assert now.pid != before.pid
    assert parent.process.poll() is None
