"""Storage back into Redis, on the real servers: restores that are cut off, forks, meanwhile submits, fences."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from headpond import JobState, restoring
from headpond.errors import CommitLost, RestoreRefused, ServerWentBack, StaleIncarnation
from headpond.jobs import Priority
from headpond.operations import LeaseStatus, Operation
from headpond.queue import JobQueue
from headpond.wire import Rewound, TokenRun
from headpond_workers.persistence.batch import Batch
from headpond_workers.persistence.fair import BandTimes
from headpond_workers.persistence.gate import open_queue
from headpond_workers.persistence.items import CommitItem, JobItem
from headpond_workers.persistence.journal import Journal, drain
from headpond_workers.persistence.journal_id import JournalId
from headpond_workers.persistence.progress import Progress
from headpond_workers.persistence.records import CommitRecord, SessionRecord
from headpond_workers.persistence.restoring.restore import Restoration, Restored
from headpond_workers.persistence.segments import StateStore
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.settings import StorageAddress
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from queue_bench import Bench, Clock, bench_on, closing, tokens
from session_turns import end_turn, take_turn, turn_of

pytestmark = pytest.mark.slow
DAMAGED = b"\xc1 no msgpack"


@dataclass
class Town:
    """A queue, its storage, and what a persister does, a step at a time."""

    bench: Bench
    store: StateStore
    writer: str = "persister"
    journal: Journal = field(init=False)

    def __post_init__(self) -> None:
        self.journal = Journal(self.bench.queue)

    @property
    def inc(self) -> int:
        return int(self.bench.queue.meta()["inc"])

    def open(self) -> bool:
        return open_queue(self.bench.queue, self.store, writer=self.writer)

    def commit(self) -> None:
        """As often as there is something to commit."""
        while drain(self.journal, self.store, writer=self.writer):
            pass

    def commit_progress(self, job_id: str, run: TokenRun, *, as_of_ms: int = 0) -> None:
        """Tokens of a running job, as the next commit has them."""
        bench, at = self.bench, self.store.read_head()
        assert at is not None
        raw = bench.server.read("HGET", bench.keys.named("run"), job_id)
        progress = (Progress(job_id, raw, run.offset, run.ids, run.pieces),)
        fair = {"normal": BandTimes(7.0, {"t": 9.0})}
        batch = Batch(
            first=None, last=None, inc=self.inc, as_of_ms=as_of_ms or bench.clock.now_ms, progress=progress, fair=fair
        )
        self.store.commit(at, batch, writer=self.writer)

    def lose_all(self) -> None:
        bench = self.bench
        bench.raw.delete(*bench.raw.keys(f"{bench.keys.prefix}*"))
        bench.clock.move(5)
        bench.server.hello(bench.queue.name)

    def restore(self, *, until_ms: int | None = None, **more: Any) -> Restored:
        return Restoration(self.bench.queue, self.store, until_ms, writer="a restore", **more).run()

    def state(self, job_id: str) -> JobState | None:
        row = self.bench.queue.run_row(f"{self.bench.queue.name}/{job_id}")
        return None if row is None else row.state


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as process:
        yield process


@pytest.fixture
def town(shared_url: str, seaweed: SeaweedProcess) -> Iterator[Town]:
    blobs = S3Blobs(
        StorageAddress(seaweed.url, seaweed.bucket, seaweed.region, seaweed.access_key, seaweed.secret_key, "the test")
    )
    blobs.ensure_bucket()
    name = f"m{secrets.token_hex(6)}"
    clock = Clock()
    bench = bench_on(shared_url, clock, storage=True, name=name)
    bench.register("A")
    town = Town(bench, StateStore(blobs, name, now_ms=clock))
    assert town.open()
    yield from (town for _ in closing(bench))


def ids(town: Town, *slugs: str) -> list[str]:
    return [f"{town.bench.queue.name}/{slug}" for slug in slugs]


def test_a_lost_queue_is_closed_says_how_to_bring_it_back_and_is_restored(town: Town) -> None:
    bench = town.bench
    runs, ends, waits = ids(town, "runs", "ends", "waits")
    bench.submit(ends)
    lease = bench.lease()
    bench.queue.finish(lease.id, lease.fence, offset=0, state=JobState.FINISHED, result=b"its result")
    bench.submit(runs, waits, tenant="t")
    bench.append(bench.lease(), tokens(0, 6))
    town.commit()
    town.commit_progress(runs, tokens(0, 4))
    as_of = bench.clock.now_ms
    town.lose_all()
    assert not town.open()
    assert f"headpond restore --model {bench.queue.name}" in bench.queue.meta()["closed_reason"]

    preview = Restoration(bench.queue, town.store, None, writer="w").preview()
    assert bench.queue.meta()["state"] == "closed"
    done = town.restore()

    assert (done.tally.queued, done.tally.resumed, done.tally.tokens) == (2, 1, 4)
    assert done.tally.ended == {"finished": 1}
    assert preview.tally == done.tally
    assert (done.as_of_ms, done.lost_ms, done.fork) == (as_of, 5000, False)
    assert bench.queue.result(ends) == b"its result"
    assert [event for _, event in bench.events(runs)] == [tokens(0, 4), Rewound(4, "restored from storage")]
    meta = bench.queue.meta()
    assert (meta["state"], "restoring" in meta, float(meta["v:normal"])) == ("open", False, 7.0)
    assert bench.server.read("EXISTS", bench.keys.named("restored")) == 0
    bench.register("A")
    assert [(lease.id, lease.offset) for lease in bench.claim(slots=3).leases] == [(runs, 4), (waits, 0)]
    at = town.store.read_head()
    assert at is not None
    assert (at.head.snapshot_seq, at.head.inc) == (at.head.seq, town.inc)
    assert {item.id for item in town.store.items(at.head)} == {runs, ends, waits}
    assert town.open()
    bench.submit(*ids(town, "new"))
    town.commit()


@dataclass
class CutOff(Exception):
    """Stands for a kill at that point: nothing that follows is done."""


@pytest.mark.parametrize("script", ["open", "restore", "rejournal"])
@pytest.mark.parametrize("after", [False, True])
def test_a_restore_that_is_cut_off_anywhere_goes_on_by_the_same_command(
    town: Town, monkeypatch: pytest.MonkeyPatch, script: str, after: bool
) -> None:
    """The kill comes before or after each call of one script, the first of them first."""
    bench = town.bench
    jobs = ids(town, *(f"j{n:03}" for n in range(250)))
    for at in range(0, 250, 50):
        bench.submit(*jobs[at : at + 50])
    bench.queue.cancel(jobs[7])
    town.commit()
    town.lose_all()
    bench.submit(*ids(town, "meanwhile"))
    left, real_run = 0, JobQueue.run
    real_run_all = JobQueue.run_all

    def cut(operation: Operation[Any]) -> bool:
        nonlocal left
        left -= operation.script == script
        return left < 0 and operation.script == script

    def run(self: JobQueue, operation: Operation[Any]) -> Any:
        cuts = cut(operation)
        if cuts and not after:
            raise CutOff
        reply = real_run(self, operation)
        if cuts:
            raise CutOff
        return reply

    def run_all(self: JobQueue, operations: Sequence[Operation[Any]]) -> list[Any]:
        done = []
        for operation in operations:
            done.append(run(self, operation))
        return done

    monkeypatch.setattr(JobQueue, "run", run)
    monkeypatch.setattr(JobQueue, "run_all", run_all)
    kills = 0
    for point in range(40):
        left = point
        try:
            done = town.restore()
        except CutOff:
            kills += 1
            if bench.queue.meta()["state"] == "open":
                break
            assert bench.claim().leases == ()
        else:
            assert done.tally.jobs == 250
            break
    assert kills >= (2 if script == "restore" else 1)
    monkeypatch.setattr(JobQueue, "run", real_run)
    monkeypatch.setattr(JobQueue, "run_all", real_run_all)
    assert bench.queue.meta()["state"] == "open"
    bench.register("A")
    order = [lease.id for lease in bench.claim(slots=300).leases]
    assert order == [job for job in [*jobs, *ids(town, "meanwhile")] if job != jobs[7]]
    assert [(e.kind, e.job_id) for e in bench.queue.journal(limit=9)] == [("submit", ids(town, "meanwhile")[0])]


def test_a_persister_of_the_lost_redis_commits_nothing_more(town: Town) -> None:
    bench = town.bench
    bench.submit(*ids(town, "a"))
    town.commit()
    stale = town.store.read_head()
    assert stale is not None
    batch = Batch(first=None, last=None, inc=stale.head.inc, as_of_ms=stale.head.as_of_ms)
    town.lose_all()
    town.restore()
    fresh = town.store.read_head()
    assert fresh is not None
    with pytest.raises(CommitLost):
        town.store.swap(stale, stale.head, writer="persister")
    with pytest.raises(StaleIncarnation):
        town.store.commit(fresh, batch, writer="persister")
    assert fresh.head.epoch > stale.head.epoch


def test_an_open_queue_another_history_and_an_unknown_model_are_refused(town: Town) -> None:
    bench = town.bench
    town.lose_all()
    with pytest.raises(RestoreRefused, match="nothing of it was committed yet"):
        town.restore()
    assert not town.open()
    bench.raw.delete(*bench.raw.keys(f"{bench.keys.prefix}*"))
    bench.server.hello(bench.queue.name)
    bench.raw.hset(bench.keys.named("meta"), "lineage", "another")
    with pytest.raises(RestoreRefused, match="history of its own"):
        town.restore()
    bench.raw.hset(bench.keys.named("meta"), mapping={"state": "open"})
    before = bench.dump(), town.store.read_head()
    with pytest.raises(RestoreRefused):
        town.restore()
    assert (bench.dump(), town.store.read_head()) == before
    nobody = StateStore(town.store.blobs, "nobody")
    with pytest.raises(RestoreRefused, match="no state of it"):
        Restoration(bench.queue, nobody, None, writer="w").run()


def test_an_earlier_state_is_restored_and_history_goes_on_from_there(town: Town) -> None:
    bench = town.bench
    bench.submit(*ids(town, "early"))
    town.commit()
    town.commit_progress(ids(town, "early")[0], tokens(0, 2))
    early_ms = bench.clock.now_ms
    bench.clock.move(60)
    bench.submit(*ids(town, "late"))
    town.commit()
    town.commit_progress(ids(town, "early")[0], tokens(2, 9))
    late_ms = bench.clock.now_ms
    town.lose_all()

    done = town.restore(until_ms=early_ms + 30_000)

    assert (done.fork, done.as_of_ms, done.tally.tokens, done.tally.queued) == (True, early_ms, 2, 1)
    assert bench.row(ids(town, "early")[0]).offset == 2
    assert town.state("late") is None
    at = town.store.read_head()
    assert at is not None
    (item,) = town.store.items(at.head)
    assert isinstance(item, JobItem)
    assert item.ids == (0, 1)
    then = {item.id for item in town.store.items(at.head, until_ms=late_ms)}
    assert then == set(ids(town, "early", "late"))
    bench.submit(*ids(town, "after"))
    assert town.open()
    town.commit()
    town.lose_all()
    assert town.restore().tally.queued == 2
    assert town.state("late") is None
    assert town.state("after") is JobState.QUEUED


def test_a_restore_of_another_time_than_the_one_that_began_is_refused(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = town.bench
    bench.submit(*ids(town, "a"))
    town.commit()
    town.commit_progress(ids(town, "a")[0], tokens(0, 2))
    bench.clock.move(60)
    town.commit_progress(ids(town, "a")[0], tokens(2, 3))
    town.lose_all()
    with monkeypatch.context() as patch:
        patch.setattr("headpond_workers.persistence.restoring.filling.put_in", _raise)
        with pytest.raises(CutOff):
            town.restore()
    with pytest.raises(RestoreRefused, match="another restore of it has begun, without --at"):
        town.restore(until_ms=bench.clock.now_ms - 30_000)
    assert town.restore().tally.tokens == 3


def _raise(*_: object, **__: object) -> Any:
    raise CutOff


def test_a_server_that_goes_back_amid_a_restore_is_filled_anew(town: Town) -> None:
    bench = town.bench
    bench.submit(*ids(town, *(f"j{n}" for n in range(30))))
    town.commit()
    town.lose_all()
    told: list[int] = []

    def restart(done: int) -> None:
        told.append(done)
        if len(told) == 1:
            keys = bench.raw.keys(f"{bench.keys.prefix}*")
            bench.raw.delete(*(key for key in keys if not key.endswith(b":meta")))
            bench.raw.hset(bench.keys.named("meta"), "run_id", "another life")
            bench.server.hello(bench.queue.name)

    done = town.restore(on_items=restart)
    assert len(told) == 2
    assert done.tally.queued == 30
    bench.register("A")
    assert len(bench.claim(slots=40).leases) == 30


def test_a_job_without_its_request_is_left_out_and_named(town: Town) -> None:
    bench = town.bench
    bench.submit(*ids(town, "whole"))
    lost = ids(town, "lost")[0]
    bench.submit(lost)
    bench.queue.cancel(lost)
    bench.raw.hdel(bench.keys.named("data"), lost)
    town.commit()
    town.lose_all()
    done = town.restore()
    assert done.tally.unusable_ids == [lost]
    assert (done.tally.queued, done.tally.unusable) == (1, 1)


def test_what_was_damaged_in_redis_costs_no_other_job_its_restore(town: Town) -> None:
    bench = town.bench
    whole, waits = ids(town, "whole", "waits")
    commits = [take_turn(bench, job, session="good").id for job in ids(town, "talk-0", "talk-1")]
    bench.submit(whole, waits)
    bench.raw.hset(bench.keys.named("run"), waits, DAMAGED)
    town.commit()
    at = town.store.read_head()
    assert at is not None
    next_ids = (JournalId(town.inc, at.head.watermark.seq + n) for n in (1, 2))
    records = (CommitRecord(next(next_ids), "c" * 64, DAMAGED), SessionRecord(next(next_ids), "bad", DAMAGED))
    batch = Batch(first=records[0].journal_id, last=records[1].journal_id, inc=town.inc, records=records)
    town.store.commit(at, batch, writer=town.writer)
    town.lose_all()
    done = town.restore()
    assert sorted(done.tally.unusable_ids) == ["bad", "c" * 64]
    assert (town.state("whole"), town.state("waits")) == (JobState.QUEUED, JobState.QUEUED)
    assert [commit.id for commit in bench.queue.chain("good", commits[-1])] == commits
    bench.register("A")
    assert {lease.id for lease in bench.claim(slots=5).leases} == {whole, waits}


def test_many_jobs_of_every_kind_come_back_as_they_were(town: Town) -> None:
    bench = town.bench
    jobs = ids(town, *(f"j{n:04}" for n in range(600)))
    for n, band in enumerate(Priority):
        for at in range(0, 200, 100):
            bench.submit(*jobs[n * 200 + at : n * 200 + at + 100], band=band, tenant="tu"[at // 100], cost=n + 1)
    town.commit()
    before = {job: bench.row(job) for job in jobs}
    town.lose_all()
    town.restore()
    assert all(bench.row(job) == before[job] for job in jobs)
    assert bench.queue.depths().ready == 600


def test_what_waits_on_this_hosts_disk_goes_to_storage_before_the_head_is_read(town: Town) -> None:
    bench = town.bench
    bench.submit(*ids(town, "stored"))
    town.commit()
    bench.submit(*ids(town, "spooled"))
    batch, at = town.journal.read_batch(), town.store.read_head()
    assert batch is not None
    assert at is not None
    town.lose_all()
    done = town.restore(replay_spool=lambda: town.store.commit(at, batch, writer=town.writer) and None)
    assert done.tally.queued == 2
    assert town.state("spooled") is JobState.QUEUED


def go_back(town: Town, make: Callable[[], None]) -> None:
    """Do what is then forgotten."""
    bench = town.bench
    keys = bench.raw.keys(f"{bench.keys.prefix}*")
    kept = {key: bench.raw.dump(key) for key in keys}
    make()
    bench.raw.delete(*bench.raw.keys(f"{bench.keys.prefix}*"))
    for key, value in kept.items():
        assert value is not None
        bench.raw.restore(key, 0, value)
    bench.clock.move(3)
    bench.raw.hset(bench.keys.named("meta"), "run_id", "an earlier life")
    bench.server.hello(bench.queue.name)


def test_what_a_server_forgot_is_put_back_before_anything_ends(town: Town) -> None:
    bench = town.bench
    ends, waits, forgotten, runs = ids(town, "ends", "waits", "forgotten", "runs")
    bench.submit(runs)
    running = bench.lease()
    bench.submit(ends, waits)
    town.commit()

    def lost_life() -> None:
        bench.clock.move(1)
        lease = bench.lease("B")
        bench.append(lease, tokens(0, 3))
        bench.queue.cancel(ends)
        bench.submit(forgotten, tenant="t")
        bench.append(running, tokens(0, 5))
        town.commit()
        town.commit_progress(runs, tokens(0, 5))

    go_back(town, lost_life)
    assert bench.queue.meta()["state"] == "reconciling"
    assert town.state("forgotten") is None
    assert town.open()
    assert [town.state(slug) for slug in ("ends", "waits", "forgotten", "runs")] == [
        JobState.CANCELLED, JobState.QUEUED, JobState.QUEUED, JobState.RUNNING,
    ]  # fmt: skip
    assert bench.row(ends).durable
    assert bench.append(running, tokens(0, 6)).offset == 6
    assert bench.queue.journal_length() == 0
    town.commit()
    assert {lease.id for lease in bench.claim("C", slots=5).leases} == {waits, forgotten}


def test_where_storage_has_nothing_more_the_queue_opens_at_once(town: Town) -> None:
    bench = town.bench
    bench.submit(*ids(town, "committed"))
    town.commit()
    bench.submit(*ids(town, "only-here"))
    go_back(town, lambda: None)
    assert town.open()
    assert [town.state(slug) for slug in ("committed", "only-here")] == [JobState.QUEUED] * 2
    town.commit()
    at = town.store.read_head()
    assert at is not None
    assert {item.id for item in town.store.items(at.head)} == set(ids(town, "committed", "only-here"))


def test_a_batch_from_before_a_rollback_is_not_committed_after_it(town: Town) -> None:
    bench = town.bench
    bench.submit(*ids(town, "a"))
    town.commit()
    read = town.store.read_head()
    assert read is not None
    go_back(town, lambda: None)
    assert town.open()
    with pytest.raises(CommitLost):
        town.store.swap(read, read.head, writer="a late one")


def test_meanwhile_submits_are_weighed_against_storage(town: Town) -> None:
    bench = town.bench
    same, other, free = ids(town, "same", "other", "free")
    bench.submit(*ids(town, "before"))
    town.commit()

    def lost_life() -> None:
        bench.submit(same, other)
        town.commit()

    go_back(town, lost_life)
    bench.submit(same, free)
    bench.submit(other, digest="another")
    assert town.open()
    town.commit()
    assert bench.submit(other, digest="another")[0].value == "conflict"
    assert [answer.value for answer in bench.submit(same, other, free)] == ["known"] * 3
    at = town.store.read_head()
    assert at is not None
    assert {item.id for item in town.store.items(at.head)} == {same, other, free, *ids(town, "before")}


def test_a_reconciliation_that_another_restart_cuts_off_begins_anew(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = town.bench
    bench.submit(*ids(town, "before"))
    town.commit()

    def lost_life() -> None:
        bench.submit(*ids(town, "a", "b"))
        town.commit()

    go_back(town, lost_life)
    real = restoring.rejournal

    def restart(**arguments: Any) -> Operation[str | None]:
        monkeypatch.undo()
        bench.raw.hset(bench.keys.named("meta"), "run_id", "one more life")
        bench.server.hello(bench.queue.name)
        return real(**arguments)

    monkeypatch.setattr("headpond_workers.persistence.restoring.filling.rejournal", restart)
    with pytest.raises(ServerWentBack):
        town.open()
    assert bench.queue.meta()["state"] == "reconciling"
    assert town.open()
    assert bench.queue.depths().ready == 3


def test_conversations_come_back_and_go_on_in_their_order(town: Town) -> None:
    bench = town.bench
    a, b, c, d, e = ids(town, *"abcde")
    take_turn(bench, a)
    second = take_turn(bench, b)
    bench.submit(c, d, session="s")
    bench.append(bench.lease(fingerprint="fingerprint-v1"), tokens(0, 3))
    town.commit()
    row = bench.queue.session_row("s")
    town.lose_all()
    bench.submit(e, session="s")
    assert not town.open()
    done = town.restore()
    assert (done.tally.sessions, done.tally.turns) == (1, 2)
    assert bench.queue.session_row("s") == row
    assert [commit.job for commit in bench.queue.chain("s", second.id)] == [a, b]
    assert bench.queue.session_jobs("s") == [c, d, e]
    bench.register("A")
    for job in (c, d, e):
        (lease,) = bench.claim(slots=5, fingerprint="fingerprint-v1").leases
        assert (lease.id, lease.offset) == (job, 3 if job == c else 0)
        assert end_turn(bench, lease, turn_of(bench, lease), offset=lease.offset).status is LeaseStatus.DONE
    town.commit()
    at = town.store.read_head()
    assert at is not None
    assert len([item for item in town.store.items(at.head) if isinstance(item, CommitItem)]) == 5


def test_a_turn_that_a_server_forgot_is_put_back_and_the_next_one_builds_on_it(town: Town) -> None:
    bench = town.bench
    a, b, c = ids(town, *"abc")
    take_turn(bench, a)
    bench.submit(b, c, session="s")
    town.commit()
    made: list[str] = []

    def lost_life() -> None:
        lease = bench.lease(fingerprint="fingerprint-v1")
        turn = turn_of(bench, lease)
        end_turn(bench, lease, turn)
        made.append(turn.commit.id)
        town.commit()

    go_back(town, lost_life)
    assert bench.queue.session_jobs("s") == [b, c]
    assert town.open()
    session = bench.queue.session("s")
    assert session is not None
    assert [session.head] == made
    assert town.state("b") is JobState.FINISHED
    assert bench.queue.session_jobs("s") == [c]
    (lease,) = bench.claim("C", slots=5, fingerprint="fingerprint-v1").leases
    assert end_turn(bench, lease, turn_of(bench, lease)).status is LeaseStatus.DONE
    assert [commit.job for commit in bench.queue.chain("s", bench.queue.session("s").head)] == [a, b, c]
