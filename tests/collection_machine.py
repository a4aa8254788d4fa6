"""Pushes, moves, deletions and two collectors at once, each stopped, killed and woken anywhere: the hypothesis machine
of test_collection_machine.py. Its rules choose who makes the next call on storage; the code is the real one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headpond.errors import (
    AliasMoved,
    BlobChanged,
    CollectionUnderWay,
    InvalidRequest,
    VersionInUse,
    VersionMissing,
    VersionUnusable,
)
from headpond_workers.checkpoints.alias_document import AliasDocument, Trial
from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.collection.gc import HOUR_MS, Collector
from headpond_workers.checkpoints.delete import delete_version
from headpond_workers.checkpoints.manifest import Manifest
from headpond_workers.checkpoints.names import epoch_of
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.version_document import VersionDocument, VersionState
from headpond_workers.storage.blobs import Blobs
from memory_blobs import MemoryBlobs
from model_pusher import ModelPush
from stepped_blobs import Actor, Call

MODEL = "chat"
CHUNKS = (b"first", b"second", b"third", b"fourth")
BEGINNINGS = ("push", "push", "collect", "collect", "delete", "promote", "rollback", "trial")
"""What may begin, the likelier the oftener it stands here."""
MOST_ACTORS = 4
CALLS = ("list_sizes", "put_if", "put_new", "put_once", "size_of", "delete")
GRACE_MS = 24 * HOUR_MS
REFUSALS = (AliasMoved, CollectionUnderWay, InvalidRequest, VersionInUse, VersionMissing, VersionUnusable)

numbers = st.integers(0, 3)
recent = st.sampled_from([0, 0, 1, 2])
"""How many versions are newer."""
aliases = st.sampled_from(["prod", "next"])
contents = st.sets(st.sampled_from(CHUNKS), min_size=1, max_size=2).map(sorted)


class CollectionMachine(RuleBasedStateMachine):
    """Everything of one bucket."""

    pusher: type[ModelPush] = ModelPush
    collector: type[Collector] = Collector
    delete: Callable[[Aliases, int], object] = staticmethod(delete_version)
    cast: tuple[tuple[str, int, str], ...] = ()
    """What has begun at the start, each with the version that it is about, and the call that it stands before (empty:
    its first); nothing else begins then."""

    @initialize()
    def start(self) -> None:
        self.memory = MemoryBlobs()
        self.clock_ms = 1_000 * HOUR_MS
        self.actors: list[Actor] = []
        self.late: list[Call] = []
        self.collections = 0
        for chunks in (CHUNKS[:2], CHUNKS[1:3]):
            self.process("push", list(chunks), "", 0)(self.memory)
        for what, number, call in self.cast:
            self.begin_process(what, list(CHUNKS[number - 1 : number + 1]), "prod", number)
            if call:
                self.actors[-1].until(call, "")

    def teardown(self) -> None:
        for actor in getattr(self, "actors", []):
            actor.crash()

    # What may begin.

    @precondition(lambda self: not self.cast and len(self.actors) < MOST_ACTORS)
    @rule(what=st.sampled_from(BEGINNINGS), chunks=contents, alias=aliases, number=recent)
    def begin(self, what: str, chunks: list[bytes], alias: str, number: int) -> None:
        self.begin_process(what, chunks, alias, self.version(number))

    @precondition(lambda self: not self.cast)
    @rule(what=st.sampled_from(("push", "delete", "delete", "collect")), chunks=contents, number=recent)
    def happen_at_once(self, what: str, chunks: list[bytes], number: int) -> None:
        with suppress(*REFUSALS):
            self.process(what, chunks, "prod", self.version(number))(self.memory)

    # What goes on.

    @precondition(lambda self: self.actors)
    @rule(number=numbers, name=st.sampled_from(CALLS))
    def go_on_until(self, number: int, name: str) -> None:
        """To a point where it matters who comes next."""
        actor = self.actor(number)
        actor.step()
        while actor.call is not None and actor.call.name != name:
            actor.step()
        self.bury()

    @precondition(lambda self: self.actors)
    @rule(number=numbers, times=st.integers(1, 6))
    def go_on(self, number: int, times: int) -> None:
        self.actor(number).step(times)
        self.bury()

    @precondition(lambda self: self.actors and not self.cast)
    @rule(number=numbers)
    def finish(self, number: int) -> None:
        self.actor(number).finish()
        self.bury()

    @precondition(lambda self: self.actors and not self.cast)
    @rule(number=numbers, arrives_late=st.booleans())
    def crash(self, number: int, arrives_late: bool) -> None:
        call = self.actor(number).crash()
        if arrives_late and call is not None and call.late is not None:
            self.late.append(call)
        self.bury()

    @precondition(lambda self: self.late)
    @rule(number=numbers)
    def request_of_a_dead_process_arrives(self, number: int) -> None:
        call = self.late.pop(number % len(self.late))
        assert call.late is not None
        with suppress(BlobChanged):
            call.late()

    @rule(hours=st.sampled_from([1, 25]))
    def time_passes_and_it_is_collected(self, hours: int) -> None:
        self.clock_ms += hours * HOUR_MS
        with suppress(CollectionUnderWay):
            self.collect(self.memory)

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

    def collect(self, blobs: Blobs) -> object:
        self.collections += 1
        writer = f"collector-{self.collections}"
        return self.collector(blobs, writer=writer, now_ms=self.now_ms, grace_ms=GRACE_MS, threads=1).collect()

    def process(self, what: str, chunks: list[bytes], alias: str, number: int) -> Callable[[Blobs], object]:
        def try_version(blobs: Blobs) -> object:
            at = self.aliases(blobs).get(alias)
            if at is not None and at.document.to == number:
                return None
            return self.aliases(blobs).begin_trial(alias, Trial(number, 100, self.clock_ms), who="t")

        runs: dict[str, Callable[[Blobs], object]] = {
            "push": lambda blobs: self.pusher(blobs, MODEL, chunks, now_ms=self.now_ms).run(),
            "collect": self.collect,
            "delete": lambda blobs: type(self).delete(self.aliases(blobs), number),
            "promote": lambda blobs: self.aliases(blobs).move(alias, to=number, left=None, who="p"),
            "rollback": lambda blobs: self.aliases(blobs).rollback(alias, left=None, who="r"),
            "trial": try_version,
        }
        return runs[what]

    def begin_process(self, what: str, chunks: list[bytes], alias: str, number: int) -> None:
        self.actors.append(Actor(what, self.memory, self.process(what, chunks, alias, number)))
        self.bury()

    def version(self, number: int) -> int:
        """One of the newest few."""
        newest = len(self.documents("versions", _version))
        return max(1, newest - number)

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
            self.collect(self.memory)
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
