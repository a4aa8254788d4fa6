"""Deletion of a version: in two steps, never one that an alias names, whoever dies between."""

from __future__ import annotations

import pytest

from headpond.errors import VersionInUse, VersionMissing, VersionUnusable
from headpond_workers.checkpoints.alias_document import Trial
from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.delete import delete_version
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.version_document import VersionState
from headpond_workers.storage.blobs import Blobs
from memory_blobs import MemoryBlobs
from model_pusher import push
from stepped_blobs import Actor


@pytest.fixture
def memory() -> MemoryBlobs:
    memory = MemoryBlobs()
    for text in (b"one", b"two", b"three"):
        push(memory, "chat", [b"shared", text])
    return memory


@pytest.fixture
def aliases(memory: MemoryBlobs) -> Aliases:
    return aliases_of(memory)


def aliases_of(blobs: Blobs) -> Aliases:
    return Aliases(Registry(blobs, "chat", writer="the test"), threads=1, pause=lambda seconds: None)


def deleter_of(memory: MemoryBlobs, number: int) -> Actor:
    return Actor("delete", memory, lambda blobs: delete_version(aliases_of(blobs), number))


def mover_of(memory: MemoryBlobs, alias: str, number: int) -> Actor:
    return Actor("move", memory, lambda blobs: aliases_of(blobs).move(alias, to=number, left=None, who="ada"))


def state_of(aliases: Aliases, number: int) -> VersionState:
    return aliases.registry.read(number).document.state


def test_a_version_is_deleted_once_and_its_number_is_never_given_again(aliases: Aliases, memory: MemoryBlobs) -> None:
    deleted = delete_version(aliases, 3)
    assert deleted.state is VersionState.DELETED
    assert delete_version(aliases, 3) == deleted
    with pytest.raises(VersionUnusable, match="deleted"):
        aliases.registry.complete(3)
    assert push(memory, "chat", [b"four"]) == 4
    with pytest.raises(VersionMissing):
        delete_version(aliases, 9)


def test_what_an_alias_names_is_not_deleted_and_it_is_said_what_to_do(aliases: Aliases) -> None:
    aliases.move("prod", to=1, left=None, who="ada")
    aliases.move("prod", to=2, left=None, who="ada")
    aliases.begin_trial("prod", Trial(3, 100, 0), who="ada")
    for number, words in ((2, "headpond models promote chat VERSION --alias prod"), (3, "headpond models canary chat")):
        for force in (False, True):
            with pytest.raises(VersionInUse, match=words):
                delete_version(aliases, number, force=force)
            assert state_of(aliases, number) is VersionState.COMPLETE
    with pytest.raises(VersionInUse, match="headpond models delete chat 1 --force"):
        delete_version(aliases, 1)
    assert delete_version(aliases, 1, force=True).state is VersionState.DELETED
    with pytest.raises(VersionUnusable, match="deleted"):
        aliases.rollback("prod", left=2, who="ada")


def test_a_refusal_touches_neither_the_version_nor_the_alias(aliases: Aliases, memory: MemoryBlobs) -> None:
    """A worker that starts meanwhile must be able to load it."""
    aliases.move("prod", to=2, left=None, who="ada")
    before = dict(memory.objects)
    with pytest.raises(VersionInUse):
        delete_version(aliases, 2)
    assert memory.objects == before


def test_a_version_that_is_being_pushed_is_not_deleted(aliases: Aliases, memory: MemoryBlobs) -> None:
    pusher = Actor("push", memory, lambda blobs: push(blobs, "chat", [b"four"]))
    pusher.until("get", "intents/")
    with pytest.raises(VersionUnusable, match="not acknowledged"):
        delete_version(aliases, 4)
    pusher.finish()
    assert pusher.result == 4


def test_a_deletion_that_was_killed_between_its_steps_is_ended_by_a_repeat(
    aliases: Aliases, memory: MemoryBlobs
) -> None:
    total = deleter_of(memory, 3)
    total.finish()
    steps = total.calls
    for calls in range(steps):
        number = push(memory, "chat", [b"content %d" % calls])
        deleter = deleter_of(memory, number)
        deleter.step(calls)
        deleter.crash()
        assert delete_version(aliases, number).state is VersionState.DELETED


def test_a_move_is_seen_by_the_deletion_or_sees_it_wherever_either_stops_or_dies(memory: MemoryBlobs) -> None:
    """Every point at which the one may stop, times every point at which the other may begin, and who dies after."""
    for alias, dies in (("prod", ""), ("fresh", ""), ("prod", "move"), ("fresh", "move"), ("prod", "delete")):
        for moved in range(14):
            for deleted in range(12):
                start = MemoryBlobs()
                start.objects = dict(memory.objects)
                aliases = aliases_of(start)
                aliases.move("prod", to=1, left=None, who="ada")
                mover, deleter = mover_of(start, alias, 3), deleter_of(start, 3)
                mover.step(moved)
                deleter.step(deleted)
                mover.step(1)
                if dies == "move":
                    mover.crash()
                elif dies == "delete":
                    deleter.crash()
                mover.finish()
                deleter.finish()
                at = aliases.get(alias)
                names = at is not None and at.document.to == 3
                state = state_of(aliases, 3)
                where = f"{alias}, {dies or 'nobody'} dies, {moved} calls of the move, {deleted} of the deletion"
                assert not (names and state is VersionState.DELETED), where
                if names:
                    assert aliases.resolve(alias).state is VersionState.COMPLETE, where
                if not dies:
                    assert names == (state is VersionState.COMPLETE), where
                    assert names == isinstance(deleter.error, VersionInUse), where
                    assert names != isinstance(mover.error, VersionUnusable), where


def test_a_refused_deletion_of_a_quarantined_version_leaves_it_quarantined(
    aliases: Aliases, memory: MemoryBlobs
) -> None:
    mover = mover_of(memory, "prod", 2)
    mover.until("put_if", "/aliases/prod")
    aliases.registry.quarantine(2, reason="a chunk is damaged")
    deleter = deleter_of(memory, 2)
    deleter.until("put_if", "/versions/")
    mover.finish()  # It saw the version while it was complete.
    deleter.finish()
    assert isinstance(deleter.error, VersionInUse)
    document = aliases.registry.read(2).document
    assert (document.state, document.reason) == (VersionState.QUARANTINED, "a chunk is damaged")


def test_two_deletions_at_once_delete_it(memory: MemoryBlobs, aliases: Aliases) -> None:
    for calls in range(8):
        number = push(memory, "chat", [b"content %d" % calls])
        first, second = deleter_of(memory, number), deleter_of(memory, number)
        first.step(calls)
        second.finish()
        first.finish()
        assert (first.error, second.error) == (None, None)
        assert state_of(aliases, number) is VersionState.DELETED
