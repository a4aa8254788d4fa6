"""Pushes, moves, deletions and two collectors at once, each stopped, killed and woken anywhere: the hypothesis machine
of test_collection_machine.py. Its rules choose who makes the next call on storage; the code is the real one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headpond.errors import AliasMoved, BlobChanged, CollectionUnderWay, VersionInUse, VersionMissing, VersionUnusable
from headpond_workers.checkpoints.alias_document import AliasDocument, Trial
from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.delete import delete_version
from headpond_workers.checkpoints.gc import HOUR_MS, Collector
from headpond_workers.checkpoints.manifest import Manifest
from headpond_workers.checkpoints.names import epoch_of
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.version_document import VersionDocument, VersionState
from headpond_workers.persistence.blobs import Blobs
from memory_blobs import MemoryBlobs
from model_pusher import ModelPush
from stepped_blobs import Actor, Call

MODEL = "chat"
CHUNKS = (b"first", b"second", b"third")
MOST_ACTORS = 6
GRACE_MS = 24 * HOUR_MS
REFUSALS = (AliasMoved, CollectionUnderWay, VersionInUse, VersionMissing, VersionUnusable)

actor_numbers = st.integers(0, MOST_ACTORS - 1)
versions = st.integers(1, 4)
aliases = st.sampled_from(["prod", "next"])
contents = st.sets(st.sampled_from(CHUNKS), min_size=1).map(sorted)


class CollectionMachine(RuleBasedStateMachine):
    """Everything of one bucket."""

    pusher: type[ModelPush] = ModelPush
    collector: type[Collector] = Collector
    delete: Callable[[Aliases, int], object] = staticmethod(delete_version)

    @initialize()
    def start(self) -> None:
        self.memory = MemoryBlobs()
        self.clock_ms = 1_000 * HOUR_MS
        self.actors: list[Actor] = []
        self.late: list[Call] = []
        self.started = 0

    def teardown(self) -> None:
        for actor in getattr(self, "actors", []):
            actor.crash()

    # What may begin.

    @precondition(lambda self: len(self.actors) < MOST_ACTORS)
    @rule(chunks=contents)
    def begin_push(self, chunks: list[bytes]) -> None:
        self.begin("push", lambda blobs: self.pusher(blobs, MODEL, chunks, now_ms=self.now_ms).run())

    @rule(chunks=contents)
    def push_at_once(self, chunks: list[bytes]) -> None:
        self.pusher(self.memory, MODEL, chunks, now_ms=self.now_ms).run()

    @precondition(lambda self: len(self.actors) < MOST_ACTORS)
    @rule(alias=aliases, number=versions)
    def begin_promote(self, alias: str, number: int) -> None:
        self.begin("promote", lambda blobs: self.aliases(blobs).move(alias, to=number, left=None, who="p"))

    @precondition(lambda self: len(self.actors) < MOST_ACTORS)
    @rule(alias=aliases)
    def begin_rollback(self, alias: str) -> None:
        self.begin("rollback", lambda blobs: self.aliases(blobs).rollback(alias, left=None, who="r"))

    @precondition(lambda self: len(self.actors) < MOST_ACTORS)
    @rule(alias=aliases, number=versions)
    def begin_trial(self, alias: str, number: int) -> None:
        def run(blobs: Blobs) -> object:
            at = self.aliases(blobs).get(alias)
            if at is not None and at.document.to == number:
                return None
            return self.aliases(blobs).begin_trial(alias, Trial(number, 100, self.clock_ms), who="t")

        self.begin("trial", run)

    @precondition(lambda self: len(self.actors) < MOST_ACTORS)
    @rule(number=versions)
    def begin_delete(self, number: int) -> None:
        self.begin("delete", lambda blobs: type(self).delete(self.aliases(blobs), number))

    @rule(number=versions)
    def delete_at_once(self, number: int) -> None:
        with suppress(*REFUSALS):
            type(self).delete(self.aliases(self.memory), number)

    @precondition(lambda self: len(self.actors) < MOST_ACTORS)
    @rule()
    def begin_collection(self) -> None:
        self.started += 1
        writer = f"collector-{self.started}"
        self.begin("collect", lambda blobs: self.collect(blobs, writer))

    @rule()
    def collect_at_once(self) -> None:
        self.started += 1
        with suppress(CollectionUnderWay):
            self.collect(self.memory, f"collector-{self.started}")

    # What goes on.

    @precondition(lambda self: self.actors)
    @rule(number=actor_numbers, times=st.integers(1, 12))
    def step(self, number: int, times: int) -> None:
        self.actor(number).step(times)
        self.bury()

    @precondition(lambda self: self.actors)
    @rule(number=actor_numbers)
    def finish(self, number: int) -> None:
        self.actor(number).finish()
        self.bury()

    @precondition(lambda self: self.actors)
    @rule(number=actor_numbers, arrives_late=st.booleans())
    def crash(self, number: int, arrives_late: bool) -> None:
        call = self.actor(number).crash()
        if arrives_late and call is not None and call.late is not None:
            self.late.append(call)
        self.bury()

    @precondition(lambda self: self.late)
    @rule(number=st.integers(0, 3))
    def request_of_a_dead_process_arrives(self, number: int) -> None:
        call = self.late.pop(number % len(self.late))
        assert call.late is not None
        with suppress(BlobChanged):
            call.late()

    @rule(hours=st.sampled_from([1, 25, 25, 60]))
    def time_passes(self, hours: int) -> None:
        self.clock_ms += hours * HOUR_MS

    # What holds.

    @invariant()
    def every_version_that_can_be_used_is_whole(self) -> None:
        for version in self.documents("versions", _version):
            if version.state not in (VersionState.COMPLETE, VersionState.DELETING):
                continue
            name = f"version {version.number} ({version.state})"
            body = self.memory.objects.get(version.manifest)
            assert body is not None, f"the manifest of {name} is gone"
            assert hashlib.sha256(body).digest() == version.manifest_digest, f"{name} has another manifest"
            manifest = _manifest(body)
            for chunk in manifest.chunks:
                found = self.memory.objects.get(manifest.objects[chunk.object].key)
                assert found is not None, f"a chunk of {name} is gone"
                assert hashlib.sha256(found).digest() == chunk.sha256, f"a chunk of {name} is another"

    @invariant()
    def no_alias_names_a_version_that_is_gone(self) -> None:
        states = {version.number: version.state for version in self.documents("versions", _version)}
        for alias in self.documents("aliases", _alias):
            named = [alias.to] if alias.to else []
            named += [alias.trial.version] if alias.trial is not None else []
            for number in named:
                state = states.get(number)
                assert state in (VersionState.COMPLETE, VersionState.DELETING), f"{alias.alias} names {number}: {state}"

    @invariant()
    def numbers_are_contiguous(self) -> None:
        numbers = sorted(version.number for version in self.documents("versions", _version))
        assert numbers == list(range(1, len(numbers) + 1))

    @invariant()
    def histories_are_lines(self) -> None:
        for alias in self.documents("aliases", _alias):
            assert [move.seq for move in alias.history] == list(range(1, alias.seq + 1))[-len(alias.history) :]
            before = 0
            for move in alias.history:
                assert move.left == before or (move.seq > 1 and move is alias.history[0])
                before = move.to
            assert before == alias.to

    # Helpers.

    def now_ms(self) -> int:
        return self.clock_ms

    def aliases(self, blobs: Blobs) -> Aliases:
        return Aliases(Registry(blobs, MODEL, writer="a"), threads=1, pause=lambda seconds: None)

    def collect(self, blobs: Blobs, writer: str) -> object:
        return self.collector(blobs, writer=writer, now_ms=self.now_ms, grace_ms=GRACE_MS, threads=1).collect()

    def begin(self, what: str, run: Callable[[Blobs], object]) -> None:
        self.actors.append(Actor(f"{what}-{len(self.actors)}", self.memory, run))
        self.bury()

    def actor(self, number: int) -> Actor:
        return self.actors[number % len(self.actors)]

    def bury(self) -> None:
        """Those that ended. An error that is no refusal fails the test."""
        for actor in [actor for actor in self.actors if actor.ended]:
            self.actors.remove(actor)
            if actor.error is not None and not isinstance(actor.error, REFUSALS):
                raise AssertionError(f"{actor.name} failed") from actor.error
            refused = isinstance(actor.error, REFUSALS) and not isinstance(actor.error, CollectionUnderWay)
            assert not (refused and actor.name.startswith("collect")), f"a collection was refused: {actor.error}"

    def documents(self, kind: str, unpack: Callable[[bytes], object]) -> list:  # type: ignore[type-arg]
        prefix = f"models/{MODEL}/{kind}/"
        return [unpack(body) for key, body in self.memory.objects.items() if key.startswith(prefix)]

    def settle(self) -> None:
        """Everybody is killed, what is on its way arrives, and collections run until they find nothing."""
        for actor in self.actors:
            actor.crash()
        self.actors.clear()
        while self.late:
            self.request_of_a_dead_process_arrives(0)
        for _ in range(3):
            self.clock_ms += 2 * GRACE_MS
            self.collect(self.memory, "the last one")
        needed = set()
        for version in self.documents("versions", _version):
            assert version.state is not VersionState.PENDING
            if version.state is not VersionState.DELETED:
                needed.add(version.manifest)
                needed.update(stored.key for stored in _manifest(self.memory.objects[version.manifest]).objects)
        left = {key for key in self.memory.objects if epoch_of(key) is not None or "/manifests/" in key}
        assert left == needed, "garbage stays"
        assert not [key for key in self.memory.objects if key.startswith(("intents/", "gc/condemned/"))]


@lru_cache(4096)
def _version(body: bytes) -> VersionDocument:
    return VersionDocument.unpack(body)


@lru_cache(4096)
def _alias(body: bytes) -> AliasDocument:
    return AliasDocument.unpack(body)


@lru_cache(4096)
def _manifest(body: bytes) -> Manifest:
    return Manifest.unpack(body)
