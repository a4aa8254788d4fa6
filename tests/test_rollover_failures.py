"""Versions that do not load, and storage that is away: the other version is served, loudly, and no job fails."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from conftest import Deployment, eventually
from headpond import Client, Job
from headpond.workers import WorkerState
from headpond_workers.checkpoints.alias_document import Cause
from headpond_workers.rollover.alias_copy import copy_alias
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from version_flow import READY_S, SEED, Shelf, by_version, producing

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


def jobs_of(client: Client, count: int) -> list[Job]:
    return [client.submit("chat", f"Question {n}.", seed=SEED, max_tokens=20) for n in range(count)]


def test_a_version_that_does_not_load_is_rolled_back_by_itself_and_no_job_fails(shelf: Shelf, client: Client) -> None:
    good, bad = shelf.push(), shelf.push(fail="oom")
    shelf.promote(good)
    children = shelf.start("chat-0", "chat-1")
    with producing(client, 2) as producers:
        shelf.promote(bad)
        eventually(lambda: shelf.alias().to == int(good), deadline_s=READY_S, what="the alias moving back")
        shelf.await_served(good, workers=2)
        counts = by_version(shelf, producers)

    assert set(counts) == {good}
    move = shelf.alias().history[-1]
    assert (move.left, move.to, move.cause) == (int(bad), int(good), Cause.AUTOMATIC)
    assert "no memory left" in move.note
    switch = eventually(lambda: shelf.switch() if shelf.switch().target == good else None, what="the queue knowing")
    assert switch is not None
    assert "no memory left" in switch.refused[bad]
    logs = "".join(child.log.read_text() for child in children)
    # By one worker: no other one went for it.
    assert logs.count(" ERROR ") == logs.count("load_failed") + logs.count("version_rolled_back") == 2
    assert [child.process.poll() for child in children] == [None, None]
    # A version that was refused may be promoted anew, once the reason is gone.
    shelf.promote(bad)
    assert shelf.switch().refused == {}


def test_a_version_that_kills_its_process_three_times_is_rolled_back(shelf: Shelf, client: Client) -> None:
    good, bad = shelf.push(), shelf.push(fail="crash")
    shelf.promote(good)
    (child,) = shelf.start("chat-0")
    shelf.promote(bad)
    jobs = [client.submit("chat", f"Question {n}.", seed=SEED, max_tokens=20) for n in range(4)]
    for _ in range(3):
        assert child.wait() == -signal.SIGKILL
        # As a supervisor does.
        (child,) = shelf.start("chat-0", ready=False)
    shelf.await_served(good, workers=1)
    eventually(lambda: shelf.alias().to == int(good), deadline_s=READY_S, what="the persister moving the alias back")
    assert "3 times" in shelf.switch().refused[bad]
    assert "version_passed_over" in child.log.read_text()
    assert {job.result(timeout=READY_S).version for job in jobs} == {good}


def test_the_only_version_that_does_not_load_fails_its_worker_as_any_model_does(shelf: Shelf) -> None:
    bad = shelf.push(fail="load")
    shelf.promote(bad)
    (child,) = shelf.start("chat-0", ready=False)
    assert child.wait() == 78
    (row,) = shelf.rows()
    assert row.state is WorkerState.FAILED
    assert "cannot load" in row.last_error
    # Whoever mends the machine starts the worker again, and need not move an alias.
    assert shelf.switch().refused == {}


def test_a_damaged_version_is_refused_before_any_worker_leaves_the_other_one(shelf: Shelf, client: Client) -> None:
    good, bad = shelf.push(), shelf.push(answer_tokens=33)
    shelf.promote(good)
    (child,) = shelf.start("chat-0")
    queue = shelf.deployment.queue("chat")
    # A server that lost its data hears of the alias again; and so does one that knows another alias, of before.
    for another in (None, "77"):
        queue.server.read("DEL", "headpond:{chat}:switch")
        if another is not None:
            queue.switch(seq=shelf.alias().seq + 5, target=another)

        def known() -> bool:
            switch = queue.read_switch()
            return switch is not None and (switch.target, switch.seq) == (good, shelf.alias().seq)

        eventually(known, what="the alias being known again")

    manifest = shelf.registry.manifest_of(shelf.registry.complete(int(bad)))
    moved = shelf.aliases.move("prod", to=int(bad), left=int(good), who="a test")
    for stored in manifest.objects:
        shelf.blobs.delete(stored.key)
    copy_alias(queue, moved)
    eventually(lambda: shelf.alias().to == int(good), deadline_s=READY_S, what="the alias moving back")
    assert {job.result(timeout=READY_S).version for job in jobs_of(client, 3)} == {good}
    log = child.log.read_text()
    assert "version_rolled_back" in log
    assert "draining" not in log


def test_storage_that_is_away_stops_neither_a_start_nor_a_refusal_and_delays_a_rollover(
    deployment: Deployment, client: Client, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with running_seaweed(tmp_path_factory.mktemp("away")) as own:
        shelf = Shelf(deployment, own)
        shelf.start_persister()
        good, better, bad = shelf.push(), shelf.push(), shelf.push(fail="load")
        shelf.promote(good)
        (child,) = shelf.start("chat-0")
        assert {job.result(timeout=READY_S).version for job in jobs_of(client, 1)} == {good}
        queue = deployment.queue("chat")
        moved = shelf.aliases.move("prod", to=int(bad), left=int(good), who="a test")
        own.kill()
        # The queue hears of the move, and somebody refuses the version while storage cannot be told.
        copy_alias(queue, moved)
        queue.refuse(who="another/host/chat-9", version=bad, reason="it was tried there")
        child.kill()
        # With the version in the cache and a switch in the queue a worker starts without storage.
        (child,) = shelf.start("chat-0")
        assert "version_taken_from_cache" in child.log.read_text()
        assert {job.result(timeout=READY_S).version for job in jobs_of(client, 3)} == {good}

        own.start()
        eventually(lambda: shelf.alias().to == int(good), deadline_s=READY_S, what="the alias moving back")
        assert shelf.alias().history[-1].note == "it was tried there"
        moved = shelf.aliases.move("prod", to=int(better), left=int(good), who="a test")
        own.kill()
        # Now the files of the version to change to are nowhere on this machine.
        copy_alias(queue, moved)
        eventually(lambda: "version_not_fetched" in child.log.read_text(), what="a try")
        assert {job.result(timeout=READY_S).version for job in jobs_of(client, 3)} == {good}
        own.start()
        shelf.await_served(better, workers=1)
        assert {job.result(timeout=READY_S).version for job in jobs_of(client, 3)} == {better}
