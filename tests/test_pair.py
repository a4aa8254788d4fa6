"""Side by side: a small parent has the next version loaded while one is served. Kills at every point lose nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from conftest import Deployment, WorkerChild, eventually
from headpond import Client
from headpond.workers import WorkerState
from headpond_workers.rollover.pair_line import Words
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from version_flow import READY_S, SEED, Shelf, by_version, producing
from worker_flow import await_tokens

CHILD = """
import os, signal, sys, time
from headpond_workers.rollover.pair_line import PairLine
line = PairLine.of(os.environ)
folder = sys.argv[1]
me = "first" if line.alone else "second"
open(f"{folder}/{me}.pid", "w").write(str(os.getpid()))
left = []
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda signum, frame: left.append(signum))
if os.path.exists(f"{folder}/{me}-fails"):
    sys.exit(1)
while not os.path.exists(f"{folder}/{me}-serves"):
    time.sleep(0.01)
    if signal.SIGTERM in left:
        sys.exit(0)
line.say_ready()
open(f"{folder}/{me}.ready", "w").close()
while signal.SIGTERM not in left:
    time.sleep(0.01)
    if signal.SIGHUP in left:
        open(f"{folder}/{me}.hung-up", "w").close()
    if os.path.exists(f"{folder}/{me}-asks") and line.alone:
        line.ask_for_another()
    if line.alone:
        open(f"{folder}/{me}.alone", "w").close()
time.sleep(0.1)
sys.exit(0 if me == "first" else 7)
"""
PARENT = """
import sys
from headpond_workers.pair import Pair
assert not [name for name in ("redis", "pydantic", "dramatiq", "boto3") if name in sys.modules]
sys.exit(Pair([sys.executable, "-c", sys.argv[1], sys.argv[2]], stop_wait_s=float(sys.argv[3])).run())
"""


class Puppets:
    """A pair of programs that do as files in a folder say."""

    def __init__(self, folder: Path, *, stop_wait_s: float = 30.0) -> None:
        self.folder = folder
        self.parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD, str(folder), str(stop_wait_s)])

    def say(self, word: str) -> None:
        (self.folder / word).touch()

    def await_(self, name: str) -> None:
        eventually(lambda: (self.folder / name).exists(), what=name)

    def pid(self, which: str) -> int:
        file = self.folder / f"{which}.pid"
        return int(eventually(lambda: file.exists() and file.read_text(), what=f"the {which}") or 0)

    def serving(self) -> None:
        self.say("first-serves")
        self.await_("first.ready")

    def second(self) -> int:
        self.say("first-asks")
        return self.pid("second")

    def close(self) -> None:
        for pid in [self.parent.pid, *(int(f.read_text() or 0) for f in self.folder.glob("*.pid"))]:
            if pid and psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
        self.parent.wait()


@pytest.fixture
def puppets(tmp_path: Path) -> Iterator[Puppets]:
    puppets = Puppets(tmp_path)
    try:
        yield puppets
    finally:
        puppets.close()


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_the_first_is_ended_once_the_second_serves_and_the_parent_ends_with_the_second(puppets: Puppets) -> None:
    puppets.serving()
    first, second = puppets.pid("first"), puppets.second()
    assert not gone(first)
    puppets.say("second-serves")
    puppets.await_("second.alone")
    assert gone(first)
    assert puppets.parent.poll() is None
    os.kill(second, signal.SIGTERM)
    assert puppets.parent.wait(10) == 7


def test_a_second_that_cannot_serve_leaves_the_first_where_it_is_and_another_may_be_asked_for(
    puppets: Puppets,
) -> None:
    puppets.say("second-fails")
    puppets.serving()
    second = puppets.second()
    eventually(lambda: gone(second), what="the second having left")
    (puppets.folder / "second-fails").unlink()
    # It is told that it is alone again, and asks anew.
    eventually(lambda: puppets.pid("second") != second, what="another second")
    puppets.say("second-serves")
    puppets.await_("second.alone")
    assert gone(puppets.pid("first"))


@pytest.mark.parametrize("which", ["first", "second"])
def test_the_death_of_one_leaves_the_other(puppets: Puppets, which: str) -> None:
    puppets.serving()
    first, second = puppets.pid("first"), puppets.second()
    if which == "first":
        os.kill(first, signal.SIGKILL)
        puppets.say("second-serves")
        puppets.await_("second.alone")
        os.kill(second, signal.SIGTERM)
        assert puppets.parent.wait(10) == 7
    else:
        (puppets.folder / "first-asks").unlink()
        os.kill(second, signal.SIGKILL)
        eventually(lambda: gone(second), what="its death")
        assert puppets.parent.poll() is None
        os.kill(first, signal.SIGTERM)
        assert puppets.parent.wait(10) == 0


def test_the_death_of_the_only_child_is_that_of_the_parent(puppets: Puppets) -> None:
    os.kill(puppets.pid("first"), signal.SIGKILL)
    assert puppets.parent.wait(10) == 128 + signal.SIGKILL


def test_children_end_with_their_parent(puppets: Puppets) -> None:
    puppets.serving()
    first, second = puppets.pid("first"), puppets.second()
    puppets.parent.kill()
    # The first drains, as by SIGTERM; the second, which serves nobody, is killed.
    eventually(lambda: gone(first) and gone(second), what="both having ended")
    assert puppets.parent.wait(10) == -signal.SIGKILL


def test_signals_reach_both_and_the_parent_waits_for_them(puppets: Puppets) -> None:
    puppets.serving()
    first, second = puppets.pid("first"), puppets.second()
    os.kill(puppets.parent.pid, signal.SIGHUP)
    puppets.await_("first.hung-up")
    os.kill(puppets.parent.pid, signal.SIGTERM)
    assert puppets.parent.wait(10) == 0
    assert gone(first)
    assert gone(second)


def test_words_are_read_as_they_come() -> None:
    words = Words()
    assert [words.feed(part) for part in (b"rea", b"dy\nsw", b"itch\n", b"")] == [[], ["ready"], ["switch"], []]


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as process:
        yield process


@pytest.fixture
def shelf(deployment: Deployment, seaweed: SeaweedProcess) -> Shelf:
    shelf = Shelf(deployment, seaweed)
    shelf.configure('rollover = "side-by-side"')
    shelf.start_persister()
    return shelf


def children_of(worker: WorkerChild) -> list[int]:
    return [child.pid for child in psutil.Process(worker.pid).children()]


@pytest.mark.slow
def test_one_worker_side_by_side_serves_without_a_gap(shelf: Shelf, client: Client) -> None:
    first, second = shelf.push(), shelf.push()
    shelf.promote(first)
    (worker,) = shelf.start("chat-0")
    (before,) = children_of(worker)
    gaps: list[int] = []
    with producing(client, 2) as producers:
        eventually(lambda: all(producer.results for producer in producers), what="answers")
        shelf.promote(second)

        def changed() -> bool:
            # At every moment some worker claims.
            states = {row.state for row in shelf.rows()}
            gaps.append(0 if WorkerState.READY in states else 1)
            return {row.version for row in shelf.rows()} == {second} and WorkerState.READY in states

        eventually(changed, deadline_s=READY_S, what="the second version alone")
        counts = by_version(shelf, producers)
    assert set(counts) == {first, second}
    assert sum(gaps) == 0
    eventually(lambda: [row.instance for row in shelf.rows()] == ["chat-0"], what="the name being taken over")
    (row,) = shelf.rows()
    assert (row.pid, row.state) == (worker.pid, WorkerState.READY)
    assert children_of(worker) != [before]
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert shelf.rows() == []


@pytest.mark.slow
def test_a_version_that_does_not_load_beside_another_leaves_that_alone(shelf: Shelf, client: Client) -> None:
    good, bad = shelf.push(), shelf.push(fail="template")
    shelf.promote(good)
    (worker,) = shelf.start("chat-0")
    before = children_of(worker)
    shelf.promote(bad)
    eventually(lambda: shelf.alias().to == int(good), deadline_s=READY_S, what="the alias moving back")
    eventually(lambda: children_of(worker) == before, what="the second having left")
    job = client.submit("chat", "Still there?", seed=SEED, max_tokens=20)
    assert shelf.check(job.result(timeout=READY_S), "Still there?", max_tokens=20) == good
    assert "draining" not in worker.log.read_text()


@pytest.mark.slow
def test_kills_amid_changes_side_by_side_lose_nothing(shelf: Shelf, client: Client) -> None:
    versions = [shelf.push(answer_tokens=150), shelf.push(answer_tokens=150)]
    shelf.promote(versions[0])
    (worker,) = shelf.start("chat-0")
    queue = shelf.deployment.queue("chat")
    for turn, victim in enumerate(("second", "first", "parent")):
        (serving,) = children_of(worker)
        prompts = [f"Long {turn}-{number}." for number in range(2)]
        jobs = [client.submit("chat", prompt, seed=SEED, max_tokens=150) for prompt in prompts]
        await_tokens(queue, jobs[0], 10)
        new = versions[(turn + 1) % 2]
        shelf.promote(new)

        def beside() -> int:
            return next((pid for pid in children_of(worker) if pid != serving), 0)  # noqa: B023

        loading = eventually(beside, deadline_s=READY_S, what="a second")
        os.kill({"parent": worker.pid, "first": serving, "second": loading}[victim], signal.SIGKILL)
        if victim == "parent":
            worker.process.wait(10)
            eventually(lambda: gone(loading), what="the second ending with its parent")  # noqa: B023
            # As a supervisor does.
            (worker,) = shelf.start("chat-0", ready=False)
        for job, prompt in zip(jobs, prompts, strict=True):
            assert shelf.check(job.result(timeout=READY_S), prompt, max_tokens=150) in versions
        shelf.await_served(new, workers=1)
        eventually(lambda: len(children_of(worker)) == 1, what="one worker alone")  # noqa: B023
