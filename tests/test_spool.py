"""The spool on a host's disk: a persister killed at every step loses nothing, and puts nothing into storage twice."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from child_environment import with_test_modules
from conftest import eventually
from headpond import JobState, upkeep
from headpond.errors import SpoolBusy
from headpond.operations import Append
from headpond.queue import JobQueue
from headpond.spooled import Spooled
from headpond.upkeep import SpoolAnswer
from headpond_workers.persistence.gate import open_queue
from headpond_workers.persistence.items import JobItem
from headpond_workers.persistence.records import EndRecord, SubmitRecord
from headpond_workers.persistence.segments import StateStore
from headpond_workers.persistence.spool import FRAMES_FILE, Spool
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.settings import StorageAddress
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from queue_bench import Bench, Clock, bench_on, closing, tokens
from stepped_persister import REPLAYING, SPOOLING, Order, drained
from stored_state import differences

DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with running_seaweed(tmp_path_factory.mktemp("storage")) as process:
        yield process


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Place:
    """One queue, one storage, the spools of one host, and persisters that run in processes of their own."""

    bench: Bench
    seaweed: SeaweedProcess
    root: Path
    url: str
    writers: Iterator[str] = field(default_factory=lambda: (f"writer {n}" for n in itertools.count()))
    children: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def queue(self) -> JobQueue:
        return self.bench.queue

    @property
    def model(self) -> str:
        return self.queue.name

    @property
    def frames(self) -> Path:
        return self.root / self.model / FRAMES_FILE

    def store(self) -> StateStore:
        s = self.seaweed
        address = StorageAddress(s.url, s.bucket, s.region, s.access_key, s.secret_key, configured_in="the test")
        return StateStore(S3Blobs(address), self.model)

    def order(self, *, away: bool = False) -> Order:
        s = self.seaweed
        url = f"http://127.0.0.1:{closed_port()}" if away else s.url
        return Order(
            self.url, (url, s.bucket, s.region, s.access_key, s.secret_key), str(self.root), self.model,
            next(self.writers),
        )  # fmt: skip

    def begin(self, order: Order) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-m", "stepped_persister", order.argument()], env=with_test_modules(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.children.append(child)
        return child

    def run(self, order: Order) -> str:
        """What came of it. With a step: in a process of its own, which is killed there."""
        if not order.step:
            return "".join(f"{line}\n" for line in drained(order))
        child = self.begin(order)
        said, log = child.communicate(timeout=DEADLINE_S)
        assert child.returncode == -signal.SIGKILL, log
        return said

    def spool_all(self) -> None:
        """A persister that reaches no storage moves what the journal has beyond the mark."""
        said = self.run(self.order(away=True))
        assert said.startswith("failed: StorageUnavailable"), said

    def drain(self) -> None:
        assert self.run(self.order()) == "drained\n"

    def work(self, part: str) -> None:
        """Jobs that wait, that end, and one that runs on."""
        names = [f"{self.model}/{part}-{n}" for n in range(8)]
        self.bench.submit(*names)
        for _ in range(4):
            lease = self.bench.lease()
            self.bench.append(lease, tokens(0, 12))
            self.bench.finish(lease, offset=12)
        running = self.bench.lease()
        self.bench.append(running, tokens(0, 30))

    def check_whole(self) -> None:
        """Storage has all that this queue has, each change once, and nothing waits any more."""
        assert self.queue.journal_length() == 0
        assert self.queue.storage_trouble() is None
        assert not self.frames.exists()
        at = self.store().read_head()
        assert at is not None
        records = list(self.store().records(at.head))
        ids = sorted(self.queue.ids())
        ended = sorted(name for name in ids if self.bench.row(name).state.ended)
        assert sorted(record.id for record in records if isinstance(record, SubmitRecord)) == ids
        assert sorted(record.id for record in records if isinstance(record, EndRecord)) == ended
        order = [record.journal_id for record in records]
        assert order == sorted(order, reverse=True)
        assert differences(self.queue, self.store()) == []
        assert all(self.bench.row(name).durable == (name in ended) for name in ids)
        assert any(self.bench.row(name).state is JobState.RUNNING for name in ids)


@pytest.fixture
def place(shared_url: str, seaweed: SeaweedProcess, tmp_path: Path) -> Iterator[Place]:
    bench = bench_on(shared_url, Clock(), storage=True)
    place = Place(bench, seaweed, tmp_path / "spool", shared_url)
    bench.register("A")
    assert open_queue(bench.queue, place.store(), writer="the test")
    try:
        yield from (place for _ in closing(bench))
    finally:
        for child in place.children:
            if child.poll() is None:
                child.send_signal(signal.SIGCONT)
                child.kill()
            child.communicate()


@pytest.mark.slow
def test_what_was_spooled_is_committed_in_order_once_storage_is_back(place: Place) -> None:
    place.work("before")
    place.drain()
    place.work("during")
    length = place.queue.journal_length()
    place.spool_all()
    # The journal is down to the mark at most, and what left it is on the disk, named in the queue's meta.
    assert place.queue.journal_length() <= 3 < length
    trouble = place.queue.storage_trouble()
    assert trouble is not None
    assert trouble.spooled is not None
    assert trouble.away_since_ms is not None
    assert trouble.spooled.bytes == place.frames.stat().st_size > 0
    # Ended jobs are not durable, and their retention has not begun.
    rows = [place.bench.row(name) for name in place.queue.ids()]
    assert [sum(row.state.ended and row.durable is durable for row in rows) for durable in (True, False)] == [4, 4]
    place.work("later")
    place.spool_all()
    place.drain()
    place.check_whole()


@pytest.mark.slow
@pytest.mark.parametrize("step", SPOOLING)
@pytest.mark.parametrize("nth", [1, 2])
def test_a_persister_killed_while_it_spools_loses_nothing(place: Place, step: str, nth: int) -> None:
    place.work("before")
    place.drain()
    if nth == 2:
        # A file that is there already, and is appended to.
        place.work("first")
        place.spool_all()
    place.work("during")
    place.run(replace(place.order(away=True), step=step))
    place.work("later")
    place.spool_all()
    place.drain()
    place.check_whole()


@pytest.mark.slow
@pytest.mark.parametrize("step", SPOOLING)
def test_storage_may_be_back_right_after_such_a_kill(place: Place, step: str) -> None:
    place.work("before")
    place.run(replace(place.order(away=True), step=step))
    place.drain()
    place.check_whole()


@pytest.mark.slow
@pytest.mark.parametrize("step", REPLAYING)
@pytest.mark.parametrize("nth", [1, 2])
def test_a_persister_killed_while_it_replays_loses_nothing(place: Place, step: str, nth: int) -> None:
    for part in ("a", "b", "c"):
        place.work(part)
        place.spool_all()
    once = "said" in step or "removed" in step
    place.run(replace(place.order(), step=step, nth=1 if once else nth))
    if nth == 2 and not once:
        # Killed again, at the same step of the next try.
        place.run(replace(place.order(), step=step))
    place.work("later")
    place.drain()
    place.check_whole()


@pytest.mark.slow
def test_replaying_twice_changes_nothing(place: Place) -> None:
    place.work("a")
    place.spool_all()
    frames = place.frames.read_bytes()
    place.drain()
    place.check_whole()
    # As after a kill between the script and the removal, whose file came back with the disk.
    place.frames.write_bytes(frames)
    place.work("b")
    place.drain()
    place.check_whole()


@pytest.mark.slow
def test_while_a_host_has_entries_no_other_host_commits(place: Place) -> None:
    place.work("a")
    place.spool_all()
    other = replace(place, root=place.root.with_name("other"))
    other.work("b")
    for away in (False, True):
        assert "failed: SpoolElsewhere" in (told := other.run(other.order(away=away)))
        assert "the test's host" in told
        assert str(place.root) in told
    at = place.store().read_head()
    assert at is not None
    assert at.head.seq == 0
    place.drain()
    other.work("c")
    other.drain()
    place.check_whole()


@pytest.mark.slow
def test_a_spool_that_is_given_up_costs_nothing_while_redis_lives(place: Place) -> None:
    place.work("before")
    place.drain()
    place.work("a")
    place.spool_all()
    trouble = place.queue.storage_trouble()
    assert trouble is not None
    assert trouble.spooled is not None
    inc = place.queue.journal_mark().inc
    assert place.queue.run(upkeep.give_up_spool("another")) is SpoolAnswer.OTHER
    assert place.queue.run(upkeep.give_up_spool(trouble.spooled.id)) is SpoolAnswer.OK
    assert place.queue.run(upkeep.give_up_spool(trouble.spooled.id)) is SpoolAnswer.OK
    assert place.queue.journal_mark().inc > inc
    other = replace(place, root=place.root.with_name("other"))
    other.work("b")
    other.drain()
    at = place.store().read_head()
    assert at is not None
    items = {item.id: item.state for item in place.store().items(at.head) if isinstance(item, JobItem)}
    rows = {name: place.bench.row(name).state for name in place.queue.ids()}
    assert items == {name: state if state.ended else None for name, state in rows.items()}
    assert all(place.bench.row(name).durable for name, state in rows.items() if state.ended)
    # The host comes back with what was given up: history has gone on without it.
    place.drain()
    assert not place.frames.exists()
    again = place.store().read_head()
    assert again is not None
    assert again.head.watermark == at.head.watermark


@pytest.mark.slow
def test_frames_of_a_history_that_went_on_without_them_are_kept_aside(place: Place) -> None:
    """As after a restore without this host: storage knows a higher incarnation, and Redis names no spool."""
    place.work("a")
    place.spool_all()
    frames = place.frames.read_bytes()
    store = place.store()
    at = store.read_head()
    assert at is not None
    inc = at.head.inc + 5000
    store.swap(at, replace(at.head, inc=inc), writer="a restore")
    place.bench.raw.hdel(place.bench.keys.named("meta"), "spool")
    place.bench.raw.hset(place.bench.keys.named("meta"), "inc", inc)
    place.drain()
    assert not place.frames.exists()
    (aside,) = place.frames.parent.glob("superseded-*")
    assert aside.read_bytes() == frames


@pytest.mark.slow
def test_a_spool_that_lacks_what_left_redis_is_refused(place: Place) -> None:
    place.work("a")
    place.spool_all()
    whole = place.frames.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 3], bytes([*whole[:40], whole[40] ^ 1, *whole[41:]]), b""):
        place.frames.write_bytes(damaged)
        assert "failed: SpoolDamaged" in place.run(place.order())
    place.frames.unlink()
    assert "failed: Spool" in place.run(place.order())
    at = place.store().read_head()
    assert at is not None
    assert at.head.seq == 0
    place.frames.write_bytes(whole)
    place.drain()
    place.check_whole()


@pytest.mark.slow
def test_a_full_spool_leaves_the_rest_in_redis(place: Place) -> None:
    place.work("a")
    place.spool_all()
    bound = place.frames.stat().st_size
    place.work("b")
    length = place.queue.journal_length()
    assert "failed: StorageUnavailable" in place.run(replace(place.order(away=True), max_bytes=bound + 10))
    assert place.queue.journal_length() == length
    assert place.frames.stat().st_size == bound
    place.drain()
    place.check_whole()


@pytest.mark.slow
def test_where_tokens_do_not_fit_the_journal_goes_without_them(place: Place) -> None:
    place.work("a")
    lease = place.bench.lease()
    for start in range(0, 2000, 100):
        place.queue.append([Append(lease.id, lease.fence, tokens(start, start + 100))])
    length = place.queue.journal_length()
    assert "failed: StorageUnavailable" in place.run(replace(place.order(away=True), max_bytes=12_000))
    assert place.queue.journal_length() <= 3 < length
    assert place.frames.stat().st_size <= 12_000
    place.drain()
    place.check_whole()


@pytest.mark.slow
def test_without_a_spool_entries_stay_in_redis(place: Place) -> None:
    place.work("a")
    length = place.queue.journal_length()
    assert "failed: StorageUnavailable" in place.run(replace(place.order(away=True), max_bytes=0))
    assert place.queue.journal_length() == length
    assert not place.root.exists()
    trouble = place.queue.storage_trouble()
    assert trouble is not None
    assert trouble.away_since_ms is not None
    assert trouble.spooled is None
    place.drain()
    place.check_whole()


@pytest.mark.slow
@pytest.mark.parametrize(
    "step", ["once a batch is read", "before a commit", "between segment and head", "between head and trim"]
)
def test_a_zombie_that_wakes_amid_a_commit_is_fenced_and_nothing_is_there_twice(place: Place, step: str) -> None:
    place.work("a")
    zombie = place.begin(replace(place.order(), step=step, signum=signal.SIGSTOP, times=2))
    eventually(lambda: os.waitpid(zombie.pid, os.WUNTRACED | os.WNOHANG)[0] == zombie.pid, what="the stop")
    # Its lease as a process of the queue `persistence` is over long before it wakes: another has taken over.
    place.drain()
    place.work("b")
    place.drain()
    zombie.send_signal(signal.SIGCONT)
    said, log = zombie.communicate(timeout=DEADLINE_S)
    assert zombie.returncode == 0, log
    first, second = said.splitlines()
    assert first == "drained" if step == "between head and trim" else first.startswith("failed: CommitLost"), said
    assert second == "drained"
    place.work("c")
    place.drain()
    place.check_whole()


@pytest.mark.slow
@pytest.mark.parametrize("step", SPOOLING)
def test_a_zombie_that_wakes_amid_its_spooling_does_no_harm(place: Place, step: str) -> None:
    place.work("a")
    zombie = place.begin(replace(place.order(away=True), step=step, signum=signal.SIGSTOP))
    eventually(lambda: os.waitpid(zombie.pid, os.WUNTRACED | os.WNOHANG)[0] == zombie.pid, what="the stop")
    other = replace(place, root=place.root.with_name("other"))
    said = other.run(other.order())
    taken = step == "once entries have left the journal"
    assert said.startswith("failed: SpoolElsewhere") if taken else said == "drained\n"
    other.work("b")
    zombie.send_signal(signal.SIGCONT)
    zombie.communicate(timeout=DEADLINE_S)
    place.drain()
    other.drain()
    place.check_whole()


def test_a_spool_is_one_process_s_at_a_time(tmp_path: Path) -> None:
    with (
        Spool(tmp_path, "chat").locked(),
        pytest.raises(SpoolBusy, match="a persister is at work"),
        Spool(tmp_path, "chat").locked(),
    ):
        pytest.fail("two at once")
    with Spool(tmp_path, "chat").locked():
        assert Spool(tmp_path, "chat").identity()


def test_entries_of_a_server_that_went_back_in_time_do_not_leave_for_a_spool(stored: Bench) -> None:
    stored.submit(f"{stored.queue.name}/a")
    (entry,) = stored.queue.journal(limit=10)
    inc = stored.queue.journal_mark().inc
    spooled = Spooled("id", "host", "/folder", entry.journal_id, entry.journal_id, 1, 1)
    assert stored.queue.run(upkeep.take_to_spool(spooled, inc=inc - 1, through=entry.journal_id)) is SpoolAnswer.STALE
    assert stored.queue.journal_length() == 1
    for _ in range(2):
        answer = stored.queue.run(upkeep.take_to_spool(spooled, inc=inc, through=entry.journal_id))
        assert answer is SpoolAnswer.OK
    assert stored.queue.journal_length() == 0
    # A producer that waits for storage waits for what is in the spool, and is told of no commit.
    assert stored.queue.wait_for_commits(after="0-0", block_s=0.01) == []
    assert stored.queue.journal_mark().last == entry.journal_id
    other = replace(spooled, id="other")
    assert stored.queue.run(upkeep.take_to_spool(other, inc=inc, through=entry.journal_id)) is SpoolAnswer.OTHER
    assert stored.queue.run(upkeep.spool_replayed("other", last=entry.journal_id)) is SpoolAnswer.OTHER
    assert stored.queue.run(upkeep.spool_replayed("id", last="1-1")) is SpoolAnswer.OTHER
    for _ in range(2):
        assert stored.queue.run(upkeep.spool_replayed("id", last=entry.journal_id)) is SpoolAnswer.OK
    assert stored.queue.storage_trouble() is None
    assert json.loads(spooled.pack())["first"] == entry.journal_id
