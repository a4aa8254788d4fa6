"""Versions that do not load, and storage that is away: the other version is served, loudly, and no job fails."""

from __future__ import annotations

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


@pytest.mark.parametrize(("fail", "said"), [("load", "cannot load"), ("oom", "no memory"), ("template", "template")])
def test_a_version_that_does_not_load_is_rolled_back_by_itself_and_no_job_fails(
    shelf: Shelf, client: Client, fail: str, said: str
) -> None:
    good, bad = shelf.push(), shelf.push(fail=fail)
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
    assert said in move.note
    switch = eventually(lambda: shelf.switch() if shelf.switch().target == good else None, what="the queue knowing")
    assert switch is not None
    assert said in switch.refused[bad]
    logs = "".join(child.log.read_text() for child in children)
    # By one worker: no other one went for it.
    assert logs.count(" ERROR ") == logs.count("load_failed") + logs.count("version_rolled_back") == 2
    # A version that was refused may be promoted anew, once it was mended or the reason is gone.
    assert shelf.promote(bad).seq > switch.seq
    eventually(lambda: shelf.alias().to == int(good), deadline_s=READY_S, what="the alias moving back again")
    assert [child.process.poll() for child in children] == [None, None]


def test_a_version_that_kills_its_process_three_times_is_rolled_back(shelf: Shelf, client: Client) -> None:
    good, bad = shelf.push(), shelf.push(fail="crash")
    shelf.promote(good)
    shelf.start("chat-0", "chat-1")
    shelf.promote(bad)
    deaths = 0
    jobs = jobs_of(client, 6)
    # As a supervisor does.
    crashing = {child.pid: child for child in shelf.deployment.children if child.log.name.startswith("chat")}
    names = {child.pid: child.log.name.removesuffix(".log") for child in crashing.values()}
    while deaths < 3:

        def dead() -> int:
            return next((pid for pid, child in crashing.items() if child.process.poll() is not None), 0)

        pid = eventually(dead, deadline_s=READY_S, what="a death")
        deaths += 1
        del crashing[pid]
        (again,) = shelf.start(names[pid], ready=False)
        crashing[again.pid], names[again.pid] = again, names[pid]
    shelf.await_served(good, workers=2)
    eventually(lambda: shelf.alias().to == int(good), deadline_s=READY_S, what="the persister moving the alias back")
    assert "3 times" in shelf.switch().refused[bad]
    assert {job.result(timeout=READY_S).version for job in [*jobs, *jobs_of(client, 2)]} == {good}


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
    manifest = shelf.registry.manifest_of(shelf.registry.complete(int(bad)))
    moved = shelf.aliases.move("prod", to=int(bad), left=int(good), who="a test")
    for stored in manifest.objects:
        shelf.blobs.delete(stored.key)
    copy_alias(shelf.deployment.queue("chat"), moved)
    eventually(lambda: shelf.alias().to == int(good), deadline_s=READY_S, what="the alias moving back")
    assert {job.result(timeout=READY_S).version for job in jobs_of(client, 3)} == {good}
    log = child.log.read_text()
    assert "version_rolled_back" in log
    assert "draining" not in log


def test_storage_that_is_away_amid_a_rollover_stops_no_job(
    deployment: Deployment, client: Client, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with running_seaweed(tmp_path_factory.mktemp("away")) as own:
        shelf = Shelf(deployment, own)
        shelf.start_persister()
        first, second = shelf.push(), shelf.push()
        shelf.promote(first)
        zero, _ = shelf.start("chat-0", "chat-1")
        # With the version in the cache and a switch in the queue a worker starts without storage.
        own.kill()
        zero.kill()
        (zero,) = shelf.start("chat-0")
        assert "version_taken_from_cache" in zero.log.read_text()
        assert {job.result(timeout=READY_S).version for job in jobs_of(client, 6)} == {first}
        own.start()
        moved = shelf.aliases.move("prod", to=int(second), left=int(first), who="a test")
        own.kill()
        # The queue knows of the move, and the files of the new version are nowhere on this machine.
        copy_alias(deployment.queue("chat"), moved)
        eventually(lambda: "version_not_fetched" in zero.log.read_text() + log_of(shelf, "chat-1"), what="a try")
        assert {job.result(timeout=READY_S).version for job in jobs_of(client, 6)} == {first}
        own.start()
        shelf.await_served(second, workers=2)
        assert {job.result(timeout=READY_S).version for job in jobs_of(client, 3)} == {second}


def log_of(shelf: Shelf, instance: str) -> str:
    return (shelf.deployment.folder / f"{instance}.log").read_text()


def test_a_version_refused_while_storage_is_away_is_left_by_its_alias_later(
    deployment: Deployment, client: Client, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with running_seaweed(tmp_path_factory.mktemp("away")) as own:
        shelf = Shelf(deployment, own)
        shelf.start_persister()
        good, bad = shelf.push(), shelf.push(fail="load")
        shelf.promote(good)
        shelf.start("chat-0")
        queue = deployment.queue("chat")
        moved = shelf.aliases.move("prod", to=int(bad), left=int(good), who="a test")
        # Refused by somebody while storage cannot be told.
        copy_alias(queue, moved)
        own.kill()
        queue.refuse(who="another/host/chat-9", version=bad, reason="it was tried there")
        shelf.await_served(good, workers=1)
        assert {job.result(timeout=READY_S).version for job in jobs_of(client, 3)} == {good}
        own.start()
        eventually(lambda: shelf.alias().to == int(good), deadline_s=READY_S, what="the alias moving back")
        assert shelf.alias().history[-1].note == "it was tried there"
        eventually(lambda: shelf.switch().target == good, what="the queue knowing")


def test_a_queue_whose_server_lost_its_data_hears_of_the_alias_again(shelf: Shelf) -> None:
    version = shelf.push()
    shelf.promote(version)
    shelf.start("chat-0")
    queue = shelf.deployment.queue("chat")
    queue.server.read("DEL", "headpond:{chat}:switch")
    switch = eventually(queue.read_switch, what="the switch being there again")
    assert switch is not None
    assert (switch.target, switch.seq) == (version, shelf.alias().seq)
