"""Collection: what nothing leads to is condemned, waits, and is deleted by a later run; nothing else ever is."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from headpond.errors import BlobCorrupt, CollectionUnderWay, ConfigError, UnsupportedSchema, VersionUnusable
from headpond.wire import pack_document
from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.collection.gc import GRACE_MS, HOUR_MS, LEASE_MS, Collected, Collector
from headpond_workers.checkpoints.collection.gc_documents import GcState, Round
from headpond_workers.checkpoints.collection.gc_mark import Mark, mark
from headpond_workers.checkpoints.collection.gc_state import GcStateAt, GcStore
from headpond_workers.checkpoints.delete import delete_version
from headpond_workers.checkpoints.document_io import new_txn
from headpond_workers.checkpoints.names import condemned_key, epoch_of, intent_key
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.storage_status import storage_status
from headpond_workers.checkpoints.version_document import VersionState
from headpond_workers.cli.storage_blobs import is_dead
from headpond_workers.storage.blobs import Blobs
from memory_blobs import MemoryBlobs
from model_pusher import ModelPush
from stepped_blobs import Actor

OTHERS = {"state/chat/head": b"a head", "kv/f/p": b"a prefix", "chunks/not-ours": b"?", "models/x/manifests/y": b"?"}


class Pond:
    """A bucket and a clock."""

    def __init__(self) -> None:
        self.memory = MemoryBlobs()
        self.memory.objects.update(OTHERS)
        self.now_ms = 1000 * HOUR_MS

    def push(self, *chunks: bytes, model: str = "chat") -> int:
        return self.pusher(self.memory, *chunks, model=model).run()

    def pusher(self, blobs: Blobs, *chunks: bytes, model: str = "chat") -> ModelPush:
        return ModelPush(blobs, model, chunks, now_ms=lambda: self.now_ms)

    def stepped_push(self, *chunks: bytes, pusher: type[ModelPush] = ModelPush) -> Actor:
        return Actor("push", self.memory, lambda blobs: pusher(blobs, "chat", chunks, now_ms=lambda: self.now_ms).run())

    def collector(self, blobs: Blobs | None = None, *, writer: str = "collector") -> Collector:
        return Collector(blobs or self.memory, writer=writer, now_ms=lambda: self.now_ms, threads=1)

    def collect(self, *, writer: str = "collector") -> Collected:
        return self.collector(writer=writer).collect()

    def stepped_collect(self, writer: str, *, collector: type[Collector] = Collector) -> Actor:
        def collect(blobs: Blobs) -> Collected:
            return collector(blobs, writer=writer, now_ms=lambda: self.now_ms, threads=1).collect()

        return Actor("collect", self.memory, collect)

    def pass_grace(self) -> None:
        self.now_ms += GRACE_MS

    def delete(self, number: int, *, model: str = "chat") -> None:
        delete_version(Aliases(self.registry(model)), number)

    def registry(self, model: str = "chat") -> Registry:
        return Registry(self.memory, model, writer="the test")

    def objects_of(self, number: int) -> list[str]:
        registry = self.registry()
        return [stored.key for stored in registry.manifest_of(registry.read(number).document).objects]

    def state_of(self, number: int) -> VersionState:
        return self.registry().read(number).document.state

    def is_whole(self, number: int) -> bool:
        return all(key in self.memory.objects for key in self.objects_of(number))

    @property
    def chunks(self) -> set[bytes]:
        return {body for key, body in self.memory.objects.items() if epoch_of(key) is not None}

    @property
    def gc(self) -> GcState:
        at = GcStore(self.memory, writer="-").read()
        assert at is not None
        return at.state


@pytest.fixture
def pond() -> Pond:
    return Pond()


def test_what_a_deleted_version_had_alone_goes_a_grace_later_and_what_it_shared_stays(pond: Pond) -> None:
    pond.push(b"shared", b"old")
    pond.push(b"shared", b"new")
    pond.push(b"shared", b"other", model="code")
    pond.delete(1)
    first = pond.collect()
    assert (first.deleted, first.condemned, first.round) == (0, 2, 1)
    assert first.not_before_ms == pond.now_ms + GRACE_MS
    assert pond.collect().deleted == 0
    assert b"old" in pond.chunks
    pond.pass_grace()
    second = pond.collect()
    assert (second.rounds, second.deleted, second.kept, second.condemned) == ([1], 2, 0, 0)
    assert pond.chunks == {b"shared", b"new", b"other"}
    assert pond.gc.rounds == ()
    assert not [key for key in pond.memory.objects if key.startswith("gc/condemned/")]


def test_other_objects_are_never_touched(pond: Pond) -> None:
    pond.push(b"one")
    pond.delete(1)
    for _ in range(3):
        pond.collect()
        pond.pass_grace()
    assert OTHERS.items() <= pond.memory.objects.items()
    assert pond.state_of(1) is VersionState.DELETED


def test_quarantined_versions_and_those_that_are_being_deleted_keep_their_objects(pond: Pond) -> None:
    pond.push(b"one")
    pond.push(b"two")
    pond.registry().quarantine(1, reason="a test")
    deleter = Actor(
        "delete", pond.memory, lambda blobs: delete_version(Aliases(Registry(blobs, "chat", writer="x")), 2)
    )
    deleter.until("put_if", "/versions/")
    deleter.step()
    deleter.crash()
    assert pond.state_of(2) is VersionState.DELETING
    for _ in range(3):
        pond.collect()
        pond.pass_grace()
    assert pond.is_whole(1)
    assert pond.is_whole(2)


def test_a_push_that_was_killed_is_collected_wherever_it_stopped(pond: Pond) -> None:
    whole = pond.stepped_push(b"probe")
    whole.finish()
    for calls in range(whole.calls):
        pusher = pond.stepped_push(b"content %d" % calls)
        pusher.step(calls)
        pusher.crash()
    before = {number for number in pond.registry().numbers() if pond.state_of(number) is VersionState.COMPLETE}
    for _ in range(3):
        pond.pass_grace()
        pond.collect()
    assert {number for number in pond.registry().numbers() if pond.state_of(number) is VersionState.COMPLETE} == before
    assert not [number for number in pond.registry().numbers() if pond.state_of(number) is VersionState.PENDING]
    assert all(pond.is_whole(number) for number in before)
    needed = {key for number in before for key in pond.objects_of(number)}
    assert {key for key in pond.memory.objects if epoch_of(key) is not None} == needed
    assert not [key for key in pond.memory.objects if key.startswith("intents/")]


def test_a_push_within_the_grace_keeps_all_that_it_has_put(pond: Pond) -> None:
    pusher = pond.stepped_push(b"slow")
    pusher.until("put_new", "/manifests/")
    pond.now_ms += GRACE_MS - 1
    assert pond.collect().intents == 0
    pond.now_ms += 1
    collected = pond.collect(writer="another")
    assert collected.intents == 1
    pusher.finish()
    assert pusher.error is None
    assert pond.state_of(1) is VersionState.DELETED, "it noticed, and began anew"
    assert pusher.result == 2
    for _ in range(3):
        pond.pass_grace()
        pond.collect()
    assert pond.is_whole(2)


def test_a_push_takes_nothing_for_granted_that_is_condemned(pond: Pond) -> None:
    pond.push(b"content")
    old = pond.objects_of(1)
    pond.delete(1)
    pond.collect()
    assert pond.push(b"content") == 2
    assert set(pond.objects_of(2)).isdisjoint(old)
    pond.pass_grace()
    assert pond.collect().deleted == 2
    assert pond.is_whole(2)


def test_what_came_back_to_life_during_the_wait_is_kept(pond: Pond) -> None:
    """A push that planned before the round was there."""
    pond.push(b"content")
    pusher = pond.stepped_push(b"content", b"more")
    pusher.until("size_of", "chunks/")
    pond.delete(1)
    assert pond.collect().condemned == 1, "the intent keeps what it names; only the manifest is condemned"
    pusher.finish()
    pond.pass_grace()
    pond.collect()
    assert pond.is_whole(2)


def test_a_round_that_condemned_what_a_push_just_planned_with_deletes_none_of_it(pond: Pond) -> None:
    """The mark of the first run reads the intents before that of the push is there."""
    pond.push(b"content")
    pusher = pond.stepped_push(b"content", b"more")
    pusher.until("put_new", "intents/")
    collector = pond.stepped_collect("first")
    collector.until("list_keys", "models/")
    collector.step()
    collector.until("list_keys", "models/")
    pusher.until("size_of", "chunks/")
    pond.delete(1)
    collector.finish()
    assert collector.error is None
    assert pond.gc.rounds, "its object is condemned"
    pusher.finish()
    assert pusher.result == 2
    pond.pass_grace()
    second = pond.collect(writer="second")
    assert second.kept >= 1
    assert pond.is_whole(2)


def test_a_collector_that_wakes_when_another_has_ended_its_round_deletes_nothing(pond: Pond) -> None:
    pond.push(b"content")
    pond.delete(1)
    pond.collect()
    pond.pass_grace()
    zombie = pond.stepped_collect("zombie")
    zombie.until("list_sizes", "chunks/")
    pond.now_ms += LEASE_MS
    other = pond.collect(writer="other")
    assert other.deleted == 2
    zombie.finish()
    assert zombie.error is None
    assert isinstance(zombie.result, Collected)
    assert (zombie.result.rounds, zombie.result.deleted) == ([], 0)


def test_two_collectors_do_not_work_at_once_and_a_dead_one_is_waited_for_no_longer_than_its_lease(pond: Pond) -> None:
    first = pond.stepped_collect("first")
    first.until("list_keys", "intents/")
    with pytest.raises(CollectionUnderWay, match="first collects just now") as caught:
        pond.collect(writer="second")
    assert caught.value.retry
    first.crash()
    with pytest.raises(CollectionUnderWay):
        pond.collect(writer="second")
    pond.now_ms += LEASE_MS
    pond.collect(writer="second")
    assert pond.gc.holder == ""


def test_the_lease_of_a_process_of_this_host_that_is_gone_is_no_lease(pond: Pond) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(10)
    here = socket.gethostname()
    for holder, ended in ((f"{here}:{gone.pid}:1", True), (f"{here}:{os.getpid()}:1", False), ("far:1:1", False)):
        killed = pond.stepped_collect(holder)
        killed.until("list_keys", "intents/")
        killed.crash()
        collector = Collector(pond.memory, writer="next", now_ms=lambda: pond.now_ms, threads=1, is_dead=is_dead)
        if ended:
            collector.collect()
        else:
            with pytest.raises(CollectionUnderWay):
                collector.collect()
        pond.now_ms += LEASE_MS


def test_a_collection_that_is_refused_gives_its_lease_back(pond: Pond) -> None:
    pond.push(b"one")
    pond.memory.objects[pond.registry().read(1).document.manifest] = b"nonsense"
    with pytest.raises(VersionUnusable):
        pond.collect()
    assert pond.gc.holder == ""


@pytest.mark.parametrize("what", ["intent", "version", "manifest", "lost manifest", "newer intent"])
def test_a_document_that_cannot_be_read_ends_the_collection_with_nothing_removed(pond: Pond, what: str) -> None:
    pond.push(b"kept")
    pond.push(b"garbage")
    pond.delete(2)
    pond.collect()
    pond.pass_grace()
    keys = {
        "intent": intent_key(new_txn()),
        "newer intent": intent_key(new_txn()),
        "version": "models/chat/versions/0000000001",
    }
    objects = pond.memory.objects
    key = keys.get(what, pond.registry().read(1).document.manifest)
    error: type[Exception] = VersionUnusable if "manifest" in what else BlobCorrupt
    if what == "lost manifest":
        del objects[key]
    elif what == "newer intent":
        objects[key] = _newer_intent()
        error = UnsupportedSchema
    else:
        objects[key] = b"nonsense"
    before = {k for k in objects if not k.startswith("gc/")}
    with pytest.raises(error) as caught:
        pond.collect()
    assert ("headpond models delete chat 1" in str(caught.value)) == ("manifest" in what)
    assert {k for k in objects if not k.startswith("gc/")} == before
    if "manifest" in what:
        pond.delete(1)
        assert pond.collect().rounds == [1]


def test_a_list_that_is_lost_costs_its_round_and_nothing_else(pond: Pond) -> None:
    pond.push(b"garbage")
    pond.push(b"kept")
    pond.delete(1)
    pond.collect()
    del pond.memory.objects[condemned_key(1)]
    pond.pass_grace()
    second = pond.collect()
    assert (second.rounds, second.deleted, second.condemned) == ([1], 0, 2)
    pond.pass_grace()
    assert pond.collect().deleted == 2
    assert pond.chunks == {b"kept"}


def test_a_list_that_a_killed_collector_left_is_no_round_and_goes(pond: Pond) -> None:
    pond.push(b"garbage")
    pond.delete(1)
    killed = pond.stepped_collect("killed")
    killed.until("put_new", "gc/condemned/")
    killed.step()
    killed.crash()
    assert condemned_key(1) in pond.memory.objects
    pond.now_ms += LEASE_MS
    done = pond.collect(writer="next")
    assert (done.round, done.condemned) == (2, 2)
    assert [key for key in pond.memory.objects if key.startswith("gc/condemned/")] == [condemned_key(2)]
    pond.pass_grace()
    assert pond.collect().deleted == 2


def test_a_killed_collection_is_gone_on_with_wherever_it_stopped(pond: Pond) -> None:
    pond.push(b"shared", b"kept")
    pond.push(b"shared", b"garbage")
    pond.delete(2)
    pond.collect()
    pond.pass_grace()
    start = dict(pond.memory.objects)
    whole = pond.stepped_collect("whole")
    whole.finish()
    after = pond.chunks
    for calls in range(whole.calls):
        pond.memory.objects = dict(start)
        killed = pond.stepped_collect("killed")
        killed.step(calls)
        killed.crash()
        pond.now_ms += LEASE_MS
        pond.collect(writer="next")
        assert pond.chunks == after
        assert pond.is_whole(1)


def test_a_gc_state_that_was_lost_is_made_anew_above_every_epoch(pond: Pond) -> None:
    pond.push(b"garbage")
    pond.delete(1)
    pond.collect()
    pond.push(b"kept")
    epoch = pond.gc.epoch
    del pond.memory.objects["gc/state"]
    pond.collect()
    assert pond.gc.epoch > epoch
    assert pond.is_whole(2)


def test_a_preview_says_what_would_be_done_and_writes_nothing(pond: Pond) -> None:
    pond.push(b"one")
    pond.push(b"two")
    pond.delete(1)
    pond.collect()
    pond.delete(2)
    pusher = pond.stepped_push(b"three")
    pusher.until("put_new", "/manifests/")
    pusher.crash()
    pond.pass_grace()
    before = dict(pond.memory.objects)
    found = pond.collector().preview()
    assert pond.memory.objects == before
    assert (found.intents, found.rounds, found.deleted, found.condemned) == (1, [1], 2, 2)
    assert found.deleted_bytes > 0


def test_more_garbage_than_a_round_holds_waits_for_the_next(pond: Pond, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headpond_workers.checkpoints.collection.gc.MAX_KEYS", 3)
    pond.push(*(b"chunk %d" % n for n in range(5)))
    pond.delete(1)
    assert pond.collect().condemned == 3
    assert pond.collect().condemned == 3
    pond.pass_grace()
    assert pond.collect().deleted == 6
    assert pond.chunks == set()


def test_content_that_was_damaged_is_put_anew_by_a_push_after_the_quarantine(pond: Pond) -> None:
    pond.push(b"content")
    (key,) = pond.objects_of(1)
    pond.memory.objects[key] = b"CONTENT"
    pond.registry().quarantine(1, reason="a chunk is damaged")
    assert pond.push(b"content") == 2
    assert pond.objects_of(2) != [key]
    assert pond.memory.objects[pond.objects_of(2)[0]] == b"content"


class NoRightToTheState(MemoryBlobs):
    """As a worker may have it."""

    def put_if(self, key: str, body: bytes, *, etag: str) -> str:
        if key == "gc/state":
            raise ConfigError("refused (AccessDenied)", where="the test")
        return super().put_if(key, body, etag=etag)


def test_a_quarantine_without_rights_to_the_state_is_made_up_for_by_the_next_collection(pond: Pond) -> None:
    pond.push(b"content", b"more")
    pond.collect()
    damaged = pond.objects_of(1)[0]
    pond.memory.objects[damaged] = b"CONTENT"
    worker = NoRightToTheState()
    worker.objects = pond.memory.objects
    epoch = pond.gc.epoch
    assert Registry(worker, "chat", writer="a worker").quarantine(1, reason="a chunk is damaged")
    assert pond.state_of(1) is VersionState.QUARANTINED
    assert pond.gc.epoch == epoch
    pond.collect()
    assert pond.push(b"content", b"more") == 2
    assert set(pond.objects_of(2)).isdisjoint(pond.objects_of(1))


def test_a_damaged_state_keeps_nobody_from_a_quarantine(pond: Pond) -> None:
    pond.push(b"content")
    pond.memory.objects["gc/state"] = b"nonsense"
    assert pond.registry().quarantine(1, reason="a chunk is damaged")
    assert pond.state_of(1) is VersionState.QUARANTINED
    assert not pond.registry().quarantine(1, reason="once more")


def test_the_status_counts_what_is_stored_needed_condemned_and_yet_to_be(pond: Pond) -> None:
    pond.push(b"shared..", b"first")
    pond.push(b"shared..", b"second")
    pond.push(b"third...")
    pond.delete(3)
    pond.collect()
    pond.push(b"fourth..")
    pond.delete(4)
    found = storage_status(pond.memory, writer="x", threads=1)
    assert (found.stored.objects, found.stored.bytes) == (5, 8 + 5 + 6 + 8 + 8)
    assert (found.needed.objects, found.needed.bytes) == (3, 19)
    assert found.manifests.objects == 4
    assert found.version_bytes == 13 + 14
    assert found.dedup_ratio == pytest.approx(27 / 19)
    assert found.versions == {"complete": 2, "deleted": 2}
    assert (found.condemned.objects, found.unreferenced.objects) == (2, 2)
    assert [round_.number for round_ in found.rounds] == [1]
    assert storage_status(MemoryBlobs(), writer="x", threads=1).dedup_ratio is None


def test_a_mark_reads_intents_first(pond: Pond) -> None:
    """A push that ends between the two is found among the versions; the other way round it would be missed."""
    order: list[str] = []
    watcher = Actor("mark", pond.memory, lambda blobs: mark(blobs, threads=1))
    while watcher.call is not None:
        order.append(watcher.call.key)
        watcher.step()
    assert order.index("intents/") < order.index("models/")


# Holes that take more turns than random choices come to: the rule that closes each, and what happens without it.


class DoesNotLookAgain(ModelPush):
    """A push that does not read `gc/state` again after its intent is there."""

    def is_unchanged(self, at: GcStateAt | None) -> bool:
        return True


class LeansOnWhatIsCondemned(ModelPush):
    """A plan that does not read the lists of the rounds."""

    def known(self, at: GcStateAt | None) -> dict[bytes, str] | None:
        return super().known(None)


class DoesNotMissItsRound(Collector):
    """A collector that does not read `gc/state` again after its mark."""

    def _carry_out(
        self, due: dict[Round, tuple[str, ...]], known: Mark, sizes: dict[str, int], done: Collected
    ) -> None:
        store, self._store = self._store, _AsBefore(tuple(due))  # type: ignore[assignment]
        super()._carry_out(due, known, sizes, done)
        self._store = store


@dataclass
class _AsBefore:
    rounds: tuple[Round, ...]

    def read(self) -> SimpleNamespace:
        return SimpleNamespace(state=self)


def condemn_what_is_needed(pond: Pond, *chunks: bytes) -> int:
    """A version whose objects a round has condemned: its push came between the mark and the listing of a collector."""
    collector = pond.stepped_collect("unlucky")
    collector.until("list_sizes", "chunks/")
    number = pond.push(*chunks)
    collector.finish()
    assert collector.error is None
    assert pond.gc.rounds
    return number


@pytest.mark.parametrize("pusher", [ModelPush, DoesNotLookAgain], ids=lambda pusher: pusher.__name__)
def test_a_plan_is_worth_nothing_if_a_round_came_after_it(pond: Pond, pusher: type[ModelPush]) -> None:
    pond.push(b"content")
    sleeper = pond.stepped_push(b"content", b"more", pusher=pusher)
    sleeper.until("put_new", "intents/")
    pond.delete(1)
    for _ in range(2):
        pond.collect()
        pond.pass_grace()
    sleeper.finish()
    assert sleeper.result == 2
    assert pond.is_whole(2) == (pusher is ModelPush)


@pytest.mark.parametrize("pusher", [ModelPush, LeansOnWhatIsCondemned], ids=lambda pusher: pusher.__name__)
def test_a_plan_leans_on_nothing_condemned_though_it_is_needed_just_now(pond: Pond, pusher: type[ModelPush]) -> None:
    needed = condemn_what_is_needed(pond, b"content")
    pond.pass_grace()
    second = pond.stepped_collect("second")
    second.until("abort_uploads", "chunks/")
    sleeper = pond.stepped_push(b"content", b"more", pusher=pusher)
    sleeper.until("put_new", "intents/")
    pond.delete(needed)
    second.until("delete", "chunks/")
    sleeper.until("put_new", "/manifests/")
    second.finish()
    sleeper.finish()
    assert (second.error, sleeper.error) == (None, None)
    assert pond.is_whole(needed + 1) == (pusher is ModelPush)


@pytest.mark.parametrize("collector", [Collector, DoesNotMissItsRound], ids=lambda collector: collector.__name__)
def test_a_collector_whose_round_another_has_ended_deletes_nothing_that_was_needed_then(
    pond: Pond, collector: type[Collector]
) -> None:
    needed = condemn_what_is_needed(pond, b"content")
    pond.pass_grace()
    zombie = pond.stepped_collect("zombie", collector=collector)
    zombie.until("abort_uploads", "chunks/")
    pond.now_ms += LEASE_MS
    other = pond.stepped_collect("other")
    other.until("delete", "gc/condemned/")
    other.crash()  # It has ended the round; its list is still there.
    assert pond.gc.rounds == ()
    pusher = pond.stepped_push(b"content", b"more")
    pusher.until("put_new", "intents/")
    pond.delete(needed)
    zombie.until("list_sizes", "models/")
    pusher.finish()
    zombie.finish()
    assert (zombie.error, pusher.error) == (None, None)
    assert pond.is_whole(needed + 1) == (collector is Collector)


def _newer_intent() -> bytes:
    return pack_document("headpond/intent", 99, {"digest": bytes(32)})
