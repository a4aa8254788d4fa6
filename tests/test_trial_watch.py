"""Trials that decide by themselves: what a tick of the watch makes of alias, queue and outcomes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from child_environment import with_test_modules
from fleet import Fleet
from headpond import JobState
from headpond.models import Holder, ModelRow
from headpond.queue import JobQueue
from headpond.switching import Switch
from headpond.tables import VersionSource
from headpond_workers.checkpoints.alias_document import AliasDocument, Cause, Trial, TrialBounds
from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.rollover.alias_copy import copy_alias
from headpond_workers.rollover.followed_models import followed
from headpond_workers.rollover.trial_watch import TrialWatch
from headpond_workers.storage.blobs import MAX_BLOB_BYTES, Blob, Blobs
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.settings import StorageAddress
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from memory_blobs import Fault, FaultyBlobs, MemoryBlobs
from queue_bench import tokens
from stored_versions import put_version

BOUNDS = TrialBounds(least_jobs=20, jobs_to_promote=30)
BATCH = 30


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as process:
        yield process


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.slow)])
def blobs(request: pytest.FixtureRequest) -> Blobs:
    if request.param == "memory":
        return MemoryBlobs()
    server: SeaweedProcess = request.getfixturevalue("seaweed")
    return S3Blobs(
        StorageAddress(
            server.url, server.bucket, server.region, server.access_key, server.secret_key, configured_in="the test"
        )
    )


class Noting(FaultyBlobs):
    """Notes the keys that are read."""

    def __init__(self, inner: Blobs) -> None:
        super().__init__(inner)
        self.read: list[str] = []

    def get(self, key: str, *, max_bytes: int = MAX_BLOB_BYTES) -> Blob:
        self.read.append(key)
        return super().get(key, max_bytes=max_bytes)


@dataclass
class Trying:
    """A model whose version 4 is on trial beside version 3."""

    fleet: Fleet
    blobs: Blobs
    aliases: Aliases
    watch: TrialWatch

    @property
    def queue(self) -> JobQueue:
        return self.fleet.bench.queue

    @property
    def alias(self) -> AliasDocument:
        at = self.aliases.get("prod")
        assert at is not None
        return at.document

    @property
    def switch(self) -> Switch:
        switch = self.queue.read_switch()
        assert switch is not None
        return switch

    def begin(self, bounds: TrialBounds | None = BOUNDS) -> None:
        document = self.aliases.begin_trial("prod", Trial(4, 100, 1, bounds), who="the test")
        copy_alias(self.queue, document)
        # Its share begins, and outcomes are noted, once a worker serves it.
        self.fleet.workers["b"].ask()

    def end_jobs(self, version: str, count: int, *, failed: int = 0, first_token_s: float = 0.1) -> None:
        """Jobs of this version end, 4 tokens each, the first ones with an error."""
        bench = self.fleet.bench
        boot = f"boot-{version}"
        for at in range(0, count, BATCH):
            ids = [f"{self.queue.name}/{version}-{bench.clock.now_ms}-{n}" for n in range(at, min(at + BATCH, count))]
            bench.submit(*ids, pinned=version)
            leases = bench.claim(boot, slots=len(ids), version=version, fingerprint=f"f{version}").leases
            assert len(leases) == len(ids)
            for lease in leases:
                bench.append(lease, tokens(0, 4))
            bench.clock.move(1.0)
            for n, lease in enumerate(leases, start=at):
                state = JobState.FAILED if n < failed else JobState.FINISHED
                self.queue.finish(lease.id, lease.fence, offset=4, state=state, result=b"", first_token_s=first_token_s)


def follow_prod(fleet: Fleet) -> None:
    """Its deployment says that the model follows the alias of its own name."""
    name = fleet.bench.queue.name
    source = f'{{"source":"s3:{name}@prod"}}'
    fleet.bench.server.configure_model(name, ModelRow("scripted", 0, True, 64, spec=source))


@pytest.fixture
def trying(fleet: Fleet, blobs: Blobs) -> Trying:
    name = fleet.bench.queue.name
    follow_prod(fleet)
    for number in (3, 4):
        put_version(blobs, name, {"scripted.json": b"{}"}, number=number)
    fleet.serving("3", "a")
    fleet.serving("4", "b")
    aliases = Aliases(Registry(blobs, name, writer="the test"))
    aliases.move("prod", to=3, left=None, who="the test")
    found = Trying(fleet, blobs, aliases, TrialWatch(fleet.bench.server, blobs, writer="the test"))
    copy_alias(found.queue, found.alias)
    return found


def test_a_trial_that_breaks_its_bounds_is_rolled_back_and_says_why(trying: Trying) -> None:
    trying.begin()
    trying.end_jobs("3", 40)
    trying.end_jobs("4", 25, failed=20)
    trying.watch.tick()
    last = trying.alias.history[-1]
    assert (trying.alias.to, trying.alias.trial, last.cause) == (3, None, Cause.AUTOMATIC)
    assert "of jobs fail" in last.note
    assert "the persister on" in last.who
    assert (trying.switch.seq, trying.switch.target, trying.switch.trial) == (trying.alias.seq, "3", "")


def test_a_trial_that_is_slower_is_rolled_back(trying: Trying) -> None:
    trying.begin()
    trying.end_jobs("3", 40)
    trying.end_jobs("4", 25, first_token_s=0.4)
    trying.watch.tick()
    assert (trying.alias.to, trying.alias.trial) == (3, None)
    assert "the first token" in trying.alias.history[-1].note


def test_a_trial_that_keeps_its_bounds_is_promoted_once(trying: Trying) -> None:
    trying.begin()
    trying.end_jobs("3", 40)
    trying.end_jobs("4", 29)
    trying.watch.tick()
    assert trying.alias.trial is not None
    trying.end_jobs("4", 1)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda _: trying.watch.tick(), range(4)))
    alias = trying.alias
    assert (alias.to, alias.previous, alias.trial) == (4, 3, None)
    assert [move.cause for move in alias.history] == [Cause.PROMOTE, Cause.CANARY, Cause.AUTOMATIC]
    assert (trying.switch.seq, trying.switch.target, trying.switch.previous) == (alias.seq, "4", "3")
    trying.watch.tick()
    assert trying.alias.seq == alias.seq


def test_people_decide_where_there_are_no_bounds(trying: Trying) -> None:
    trying.begin(None)
    trying.end_jobs("3", 40)
    trying.end_jobs("4", 40, failed=40)
    seq = trying.alias.seq
    trying.watch.tick()
    assert (trying.alias.seq, trying.switch.trial) == (seq, "4")


def test_a_trial_that_does_not_load_ends_with_or_without_bounds(trying: Trying) -> None:
    trying.begin(None)
    trying.queue.refuse(who="site/host/a", version="4", reason="no memory left")
    trying.watch.tick()
    assert (trying.alias.to, trying.alias.trial) == (3, None)
    assert "no memory left" in trying.alias.history[-1].note
    assert trying.switch.trial == ""


def test_what_a_killed_persister_left_behind_is_completed(trying: Trying) -> None:
    trying.begin()
    moved = trying.aliases.promote_trial("prod", version=4, who="one that was killed", cause=Cause.AUTOMATIC)
    assert (trying.switch.target, trying.switch.trial) == ("3", "4")
    trying.watch.tick()
    assert (trying.switch.target, trying.switch.trial, trying.switch.seq) == ("4", "", moved.seq)
    assert trying.alias.seq == moved.seq


@pytest.mark.slow
@pytest.mark.parametrize("blobs", ["s3"], indirect=True)
def test_a_tick_that_is_killed_between_alias_and_queue_is_completed_by_the_next(
    trying: Trying, seaweed: SeaweedProcess
) -> None:
    trying.begin()
    trying.end_jobs("3", 40)
    trying.end_jobs("4", 30)
    server = (seaweed.url, seaweed.bucket, seaweed.region, seaweed.access_key, seaweed.secret_key)
    url = trying.fleet.bench.server.address.url
    died = subprocess.run(
        [sys.executable, "-m", "killed_tick", url, *server], capture_output=True, timeout=60, check=False,
        env=with_test_modules(),
    )  # fmt: skip
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert (trying.alias.to, trying.switch.target, trying.switch.trial) == (4, "3", "4")
    trying.watch.tick()
    assert (trying.switch.target, trying.switch.trial) == ("4", "")
    assert [move.cause for move in trying.alias.history].count(Cause.AUTOMATIC) == 1


def test_nothing_is_decided_while_the_queues_copy_is_behind(trying: Trying) -> None:
    trying.begin()
    trying.end_jobs("3", 40)
    trying.end_jobs("4", 25, failed=25)
    # Its share was changed in storage, and the queue has not heard of it.
    document = trying.aliases.begin_trial("prod", Trial(4, 200, 2, BOUNDS), who="the test")
    trying.watch.tick()
    assert trying.alias.seq == document.seq
    assert (trying.switch.seq, trying.switch.permille) == (document.seq, 200)


def test_storage_is_asked_only_while_a_trial_is_on_and_its_absence_is_survived(fleet: Fleet) -> None:
    blobs = Noting(MemoryBlobs())
    name = fleet.bench.queue.name
    follow_prod(fleet)
    for number in (3, 4):
        put_version(blobs, name, {"scripted.json": b"{}"}, number=number)
    aliases = Aliases(Registry(blobs, name, writer="the test"))
    fleet.serving("3", "a")
    fleet.serving("4", "b")
    aliases.move("prod", to=3, left=None, who="the test")
    trying = Trying(fleet, blobs, aliases, TrialWatch(fleet.bench.server, blobs, writer="the test"))
    copy_alias(trying.queue, trying.alias)
    trying.end_jobs("3", 1)  # a queue that holds jobs stays open when its journal begins
    blobs.read.clear()
    trying.watch.tick()
    # Other queues of this server may have trials of their own.
    assert not [key for key in blobs.read if f"/{name}/" in key]
    trying.begin()
    trying.end_jobs("3", 40)
    trying.end_jobs("4", 25, failed=25)
    for fault in (Fault.NEVER_STORED, Fault.REPLY_LOST):
        blobs.fail_next_put(fault, key_part="aliases/")
        trying.watch.tick()
    assert trying.alias.trial is None
    assert [move.cause for move in trying.alias.history].count(Cause.AUTOMATIC) == 1
    trying.watch.tick()
    assert trying.switch.trial == ""


def test_one_models_trouble_is_no_others(trying: Trying, caplog: pytest.LogCaptureFixture) -> None:
    trying.begin()
    trying.end_jobs("3", 40)
    trying.end_jobs("4", 25, failed=25)
    server = trying.fleet.bench.server
    server.configure_model("aaa", ModelRow("scripted", 0, True, 64, spec='{"source":"s3:broken@prod"}'))
    server.queue("aaa", storage=True).switch(seq=1, target="1", previous="", trial="2", permille=10)
    trying.blobs.put_new("models/broken/aliases/prod", b"no document")
    trying.watch.tick()
    assert trying.alias.trial is None
    assert "trial_not_watched model=aaa" in caplog.text
    server.read("HDEL", "headpond:models", "aaa")


@pytest.mark.parametrize(
    ("spec", "source"),
    [
        ("", None),
        ('{"engine":"scripted","source":"s3:talk@beta"}', VersionSource("talk", "beta")),
        ('{"engine":"scripted","source":"s3:talk@3"}', None),
        ("no JSON", None),
        ('{"engine":"llamacpp","source":"smollm2-135m:Q8_0"}', None),
        ('{"engine":"scripted"}', None),
    ],
)
def test_a_model_follows_the_alias_that_its_deployments_say(spec: str, source: VersionSource | None) -> None:
    rows = {"chat": ModelRow("scripted", 0, True, 64, spec, (Holder("d", "h", "/f"),))}
    assert followed(rows) == ({} if source is None else {"chat": source})
