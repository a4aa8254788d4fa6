"""Workers that follow an alias change to another version under load, in place, and no job fails. Real processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conftest import Deployment, eventually
from headpond import Client
from headpond.errors import JobFailed
from headpond.workers import WorkerState
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from version_flow import READY_S, SEED, Shelf, by_version, producing
from worker_flow import Reading, assert_read_once, await_tokens

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as process:
        yield process


@pytest.fixture
def shelf(deployment: Deployment, seaweed: SeaweedProcess) -> Shelf:
    shelf = Shelf(deployment, seaweed)
    shelf.start_persister()
    return shelf


def test_three_workers_change_under_load_and_back_amid_kills_and_no_job_fails(shelf: Shelf, client: Client) -> None:
    shelf.configure("suspect_wait_s = 1")
    first, second = shelf.push(), shelf.push()
    shelf.promote(first)
    names = ("chat-0", "chat-1", "chat-2")
    children = dict(zip(names, shelf.start(*names), strict=True))
    assert shelf.serving() == [first] * 3
    with producing(client, 3) as producers:
        eventually(lambda: all(len(producer.results) >= 6 for producer in producers), what="answers")
        shelf.promote(second)
        shelf.await_served(second, workers=3)
        # What is submitted once all have changed is answered by the new version.
        late = client.submit("chat", "What now?", seed=SEED, max_tokens=40).result(timeout=READY_S)
        assert shelf.check(late, "What now?") == second
        # One after the other, and none was started by anybody: the pids are those of the first start.
        assert {row.pid for row in shelf.rows()} == {child.pid for child in children.values()}

        shelf.rollback()
        for state in (WorkerState.DRAINING, WorkerState.LOADING):
            row = eventually(lambda: next((row for row in shelf.rows() if row.state is state), None), what=state)  # noqa: B023
            assert row is not None
            children[row.instance].kill()
            (children[row.instance],) = shelf.start(row.instance, ready=False)
        shelf.await_served(first, workers=3)
        counts = by_version(shelf, producers)

    assert set(counts) == {first, second}
    assert "version_rolled_back" not in "".join(child.log.read_text() for child in children.values())


def test_a_job_that_runs_longer_than_the_drain_goes_on_with_the_version_that_began_it(
    shelf: Shelf, client: Client
) -> None:
    shelf.configure("drain_timeout_s = 0.2\nslots = 1")
    first, second = shelf.push(answer_tokens=120, tokens_per_s=60), shelf.push()
    shelf.promote(first)
    shelf.start("chat-0", "chat-1")
    queue = shelf.deployment.queue("chat")
    prompts = ("A long one.", "Another long one.")
    jobs = [client.submit("chat", prompt, seed=SEED, max_tokens=120) for prompt in prompts]
    readings = [Reading(job) for job in jobs]
    for job in jobs:
        await_tokens(queue, job, 20)
    shelf.promote(second)
    short = client.submit("chat", "A short one.", seed=SEED, max_tokens=10)

    results = [job.result(timeout=READY_S) for job in jobs]
    for result, prompt, reading in zip(results, prompts, readings, strict=True):
        assert shelf.check(result, prompt, max_tokens=120) == first
        assert_read_once(reading, result)
    # The worker that changed first parked its job; the last one of the old version took it before it changed too.
    assert sorted(result.attempts for result in results) == [1, 2]
    # It is for any version: the old one may have taken it before the new one was loaded.
    assert shelf.check(short.result(timeout=READY_S), "A short one.", max_tokens=10) in (first, second)
    shelf.await_served(second, workers=2)


def test_a_pinned_job_is_answered_by_its_version_or_fails_once_nobody_can(shelf: Shelf, client: Client) -> None:
    shelf.configure("version_wait_s = 1")
    first, second = shelf.push(), shelf.push()
    shelf.promote(first)
    shelf.promote(second)
    shelf.start("chat-0")
    assert shelf.serving() == [second]

    # A worker visits the old version, serves what waits for it, and comes back.
    old = client.submit(f"chat@{first}", "Of old.", seed=SEED, max_tokens=20)
    never = client.submit("chat@99", "Of never.", seed=SEED, max_tokens=20)
    assert shelf.check(old.result(timeout=READY_S), "Of old.", max_tokens=20) == first
    with pytest.raises(JobFailed, match="no worker serves version 99"):
        never.result(timeout=READY_S)
    shelf.await_served(second, workers=1)


def test_a_worker_waits_for_the_first_version_and_says_what_to_do(shelf: Shelf, client: Client) -> None:
    (child,) = shelf.start("chat-0", ready=False)
    waiting = eventually(
        lambda: next((row for row in shelf.rows() if row.state is WorkerState.FAILED), None), what="a word on it"
    )
    assert waiting is not None
    assert "headpond models push chat" in waiting.last_error
    version = shelf.push()
    shelf.promote(version)
    shelf.await_served(version, workers=1)
    result = client.submit("chat", "At last.", seed=SEED, max_tokens=20).result(timeout=READY_S)
    assert shelf.check(result, "At last.", max_tokens=20) == version
    assert child.process.poll() is None
