"""Aliases: moved by one swap after the other, whoever else moves them, and never onto a version that is not whole."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from headpond.errors import (
    AliasMoved,
    BlobCorrupt,
    InvalidRequest,
    StorageUnavailable,
    VersionMissing,
    VersionUnusable,
)
from headpond_workers.checkpoints.alias_document import (
    MAX_HISTORY,
    MAX_WHO_CHARS,
    AliasDocument,
    Cause,
    Trial,
    TrialBounds,
)
from headpond_workers.checkpoints.alias_history import previous_after
from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.delete import delete_version
from headpond_workers.checkpoints.names import alias_key
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.version_document import MAX_NOTE_CHARS, VersionState
from headpond_workers.storage.blobs import Blobs
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.settings import StorageAddress
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from memory_blobs import Fault, FaultyBlobs, MemoryBlobs
from model_pusher import push
from stepped_blobs import Actor

MOVERS = 40


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as process:
        yield process


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.slow)])
def blobs(request: pytest.FixtureRequest) -> Blobs:
    if request.param == "memory":
        return MemoryBlobs()
    seaweed: SeaweedProcess = request.getfixturevalue("seaweed")
    return S3Blobs(
        StorageAddress(seaweed.url, seaweed.bucket, seaweed.region, seaweed.access_key, seaweed.secret_key, "the test")
    )


def aliases_of(blobs: Blobs, model: str) -> Aliases:
    return Aliases(Registry(blobs, model, writer="the test"), threads=4)


@pytest.fixture
def model() -> str:
    return f"m{secrets.token_hex(6)}"


@pytest.fixture
def aliases(blobs: Blobs, model: str) -> Aliases:
    """Of a model with four versions, whose chunks are those of no other model."""
    for text in (b"one", b"two", b"three", b"four"):
        push(blobs, model, [model.encode(), model.encode() + text])
    return aliases_of(blobs, model)


@pytest.fixture
def memory() -> MemoryBlobs:
    memory = MemoryBlobs()
    for text in (b"one", b"two", b"three"):
        push(memory, "chat", [b"shared", text])
    return memory


def moves(document: AliasDocument) -> list[tuple[int, int, int]]:
    return [(move.seq, move.left, move.to) for move in document.history]


def test_an_alias_names_what_it_was_moved_to_and_says_who_moved_it_when_and_why(aliases: Aliases) -> None:
    assert aliases.get("prod") is None
    assert aliases.all() == []
    aliases.move("prod", to=1, left=0, who="ada@here", note="the first")
    moved = aliases.move("prod", to=3, left=1, who="bob@there", note="a better one")
    at = aliases.get("prod")
    assert at is not None
    assert at.document == moved
    assert (moved.to, moved.previous, moved.seq) == (3, 1, 2)
    assert moves(moved) == [(1, 0, 1), (2, 1, 3)]
    last = moved.history[-1]
    assert (last.who, last.note, last.cause) == ("bob@there", "a better one", Cause.PROMOTE)
    assert moved.history[0].at_ms <= last.at_ms
    assert aliases.all() == [moved]
    assert aliases.resolve("prod").number == 3


def test_a_move_that_leaves_another_version_than_it_says_changes_nothing(aliases: Aliases) -> None:
    before = aliases.move("prod", to=2, left=None, who="ada")
    with pytest.raises(AliasMoved) as caught:
        aliases.move("prod", to=3, left=1, who="ada")
    assert (caught.value.expected, caught.value.found) == (1, 2)
    with pytest.raises(AliasMoved):
        aliases.move("prod", to=3, left=0, who="ada")
    with pytest.raises(AliasMoved):
        aliases.move("fresh", to=3, left=1, who="ada")
    assert aliases.all() == [before]


def test_a_repeated_move_changes_nothing(aliases: Aliases) -> None:
    first = aliases.move("prod", to=2, left=0, who="ada")
    assert aliases.move("prod", to=2, left=0, who="ada") == first
    assert aliases.move("prod", to=2, left=1, who="bob") == first


def test_rollbacks_go_further_back_and_never_to_what_was_left(aliases: Aliases) -> None:
    for number in (1, 2, 3):
        aliases.move("prod", to=number, left=None, who="ada")
    back = aliases.rollback("prod", left=3, who="bob", note="it is slow")
    assert (back.to, back.previous, back.seq) == (2, 1, 4)
    assert back.history[-1].cause is Cause.ROLLBACK
    assert aliases.rollback("prod", left=3, who="bob") == back, "a repeat"
    again = aliases.rollback("prod", left=2, who="bob", cause=Cause.AUTOMATIC)
    assert (again.to, again.previous) == (1, 0)
    with pytest.raises(VersionMissing, match="nothing to go back to"):
        aliases.rollback("prod", left=1, who="bob")
    with pytest.raises(AliasMoved):
        aliases.rollback("prod", left=3, who="bob")
    forward = aliases.move("prod", to=4, left=1, who="ada")
    assert (forward.to, forward.previous) == (4, 1)


def test_a_rollback_of_an_alias_that_names_nothing_is_refused(aliases: Aliases) -> None:
    for call in (
        lambda: aliases.rollback("prod", left=None, who="ada"),
        lambda: aliases.end_trial("prod", version=1, who="ada"),
        lambda: aliases.promote_trial("prod", version=1, who="ada"),
        lambda: aliases.resolve("prod"),
    ):
        with pytest.raises(VersionMissing, match="headpond models promote"):
            call()
    assert aliases.get("prod") is None


def test_a_version_that_is_not_complete_is_named_by_no_alias(aliases: Aliases) -> None:
    aliases.registry.quarantine(2, reason="a chunk is damaged")
    delete_version(aliases, 3)
    before = aliases.move("prod", to=1, left=None, who="ada")
    for number, reason in ((2, "quarantined: a chunk is damaged"), (3, "deleted")):
        with pytest.raises(VersionUnusable, match=reason):
            aliases.move("prod", to=number, left=None, who="ada")
        with pytest.raises(VersionUnusable, match=reason):
            aliases.begin_trial("prod", Trial(number, 100, 0), who="ada")
        with pytest.raises(VersionUnusable, match=reason):
            aliases.move("fresh", to=number, left=None, who="ada")
    with pytest.raises(VersionMissing):
        aliases.move("prod", to=9, left=None, who="ada")
    with pytest.raises(InvalidRequest):
        aliases.move("prod", to=0, left=None, who="ada")
    assert aliases.all() == [before]


def test_a_version_whose_object_is_lost_or_short_is_named_by_no_alias(aliases: Aliases, blobs: Blobs) -> None:
    objects = [aliases.registry.manifest_of(aliases.registry.complete(number)).objects[-1].key for number in (1, 2)]
    blobs.delete(objects[0])
    with pytest.raises(VersionUnusable, match="not there") as caught:
        aliases.move("prod", to=1, left=None, who="ada")
    assert objects[0] in str(caught.value)
    assert "headpond models verify" in str(caught.value)
    blobs.delete(objects[1])
    blobs.put_new(objects[1], b"t")
    with pytest.raises(VersionUnusable, match="1 bytes instead of 16"):
        aliases.begin_trial("prod", Trial(2, 100, 0), who="ada")
    blobs.delete(aliases.registry.read(3).document.manifest)
    with pytest.raises(VersionUnusable, match="not there"):
        aliases.move("prod", to=3, left=None, who="ada")
    assert aliases.all() == []


def test_a_trial_leaves_what_the_alias_names_and_is_in_its_history(aliases: Aliases) -> None:
    aliases.move("prod", to=1, left=None, who="ada")
    trial = Trial(2, 100, 1234, TrialBounds())
    on = aliases.begin_trial("prod", trial, who="ada", note="ten percent")
    assert (on.to, on.previous, on.trial) == (1, 0, trial)
    assert on.history[-1].cause is Cause.CANARY
    assert aliases.begin_trial("prod", trial, who="ada") == on, "a repeat"
    more = aliases.begin_trial("prod", Trial(2, 500, 9999), who="ada")
    assert more.trial == Trial(2, 500, 1234), "the same trial goes on, with another share"
    with pytest.raises(InvalidRequest, match="names version 1 already"):
        aliases.begin_trial("prod", Trial(1, 100, 0), who="ada")
    assert aliases.end_trial("prod", version=3, who="ada") == more, "that one is not on"
    off = aliases.end_trial("prod", version=2, who="ada", cause=Cause.AUTOMATIC)
    assert (off.to, off.trial, off.history[-1].cause) == (1, None, Cause.AUTOMATIC)
    assert aliases.end_trial("prod", version=2, who="ada") == off
    with pytest.raises(VersionUnusable, match="not on trial"):
        aliases.promote_trial("prod", version=2, who="ada")


def test_a_trial_is_promoted_once_and_a_move_ends_one(aliases: Aliases) -> None:
    aliases.move("prod", to=1, left=None, who="ada")
    aliases.begin_trial("prod", Trial(2, 100, 0), who="ada")
    promoted = aliases.promote_trial("prod", version=2, who="the canary", cause=Cause.AUTOMATIC)
    assert (promoted.to, promoted.previous, promoted.trial) == (2, 1, None)
    assert aliases.promote_trial("prod", version=2, who="the canary") == promoted
    aliases.begin_trial("prod", Trial(3, 100, 0), who="ada")
    moved = aliases.move("prod", to=4, left=2, who="ada")
    assert (moved.to, moved.trial) == (4, None)


def test_an_alias_may_have_a_trial_alone(aliases: Aliases) -> None:
    on = aliases.begin_trial("next", Trial(2, 100, 0), who="ada")
    assert (on.to, on.seq) == (0, 1)
    at = aliases.get("next")
    assert at is not None
    assert at.document == on
    with pytest.raises(VersionMissing):
        aliases.resolve("next")
    aliases.end_trial("next", version=2, who="ada")
    assert aliases.get("next") is None
    assert aliases.move("next", to=1, left=0, who="ada").seq == 3


def test_the_history_keeps_the_newest_moves(memory: MemoryBlobs) -> None:
    aliases = aliases_of(memory, "chat")
    for turn in range(MAX_HISTORY + 10):
        aliases.move("prod", to=1 + turn % 3, left=None, who="w" * 1000, note="\N{SNOWMAN}" * MAX_NOTE_CHARS)
    at = aliases.get("prod")
    assert at is not None
    assert [move.seq for move in at.document.history] == list(range(11, MAX_HISTORY + 11))
    assert at.document.seq == MAX_HISTORY + 10
    assert at.document.history[-1].who == "w" * MAX_WHO_CHARS


def test_a_note_that_cannot_be_kept_is_refused(memory: MemoryBlobs) -> None:
    aliases = aliases_of(memory, "chat")
    for note in ("n" * (MAX_NOTE_CHARS + 1), "half a \udc80 letter"):
        with pytest.raises(InvalidRequest, match="a note"):
            aliases.move("prod", to=1, left=None, who="ada", note=note)
    with pytest.raises(InvalidRequest, match="cannot name an alias"):
        aliases.move("3", to=1, left=None, who="ada")


def test_what_a_rollback_goes_to_follows_from_the_history() -> None:
    memory = MemoryBlobs()
    for text in (b"1", b"2", b"3", b"4", b"5"):
        push(memory, "chat", [text])
    aliases = aliases_of(memory, "chat")
    for to in (1, 2, 1, 3):
        document = aliases.move("prod", to=to, left=None, who="ada")
    assert document.previous == 1
    assert [aliases.rollback("prod", left=None, who="ada").to for _ in range(3)] == [1, 2, 1]
    assert previous_after(()) == 0


def test_an_alias_that_cannot_be_read_is_named(memory: MemoryBlobs) -> None:
    memory.objects[alias_key("chat", "prod")] = b"nonsense"
    with pytest.raises(BlobCorrupt, match="models/chat/aliases/prod"):
        aliases_of(memory, "chat").get("prod")


@pytest.mark.parametrize("fault", [Fault.REPLY_LOST, Fault.NEVER_STORED])
def test_a_move_whose_reply_was_lost_is_found_by_its_txn(memory: MemoryBlobs, fault: Fault) -> None:
    faulty = FaultyBlobs(memory)
    aliases = aliases_of(faulty, "chat")
    aliases.move("prod", to=1, left=None, who="ada")
    faulty.fail_next_put(fault, key_part="/aliases/prod")
    if fault is Fault.REPLY_LOST:
        assert aliases.move("prod", to=2, left=1, who="ada").to == 2
    else:
        with pytest.raises(StorageUnavailable):
            aliases.move("prod", to=2, left=1, who="ada")
    done = aliases.move("prod", to=2, left=1, who="ada")
    assert moves(done) == [(1, 0, 1), (2, 1, 2)]


def test_a_move_that_arrives_after_its_sender_gave_up_changes_nothing_if_another_came_first(
    memory: MemoryBlobs,
) -> None:
    faulty = FaultyBlobs(memory)
    aliases = aliases_of(faulty, "chat")
    aliases.move("prod", to=1, left=None, who="ada")
    faulty.fail_next_put(Fault.STORED_LATE, key_part="/aliases/prod")
    with pytest.raises(StorageUnavailable):
        aliases.move("prod", to=2, left=None, who="ada")
    third = aliases.move("prod", to=3, left=1, who="bob")
    faulty.release()
    assert aliases.all() == [third]


def test_a_move_that_was_stored_and_then_moved_on_by_another_is_not_made_twice(memory: MemoryBlobs) -> None:
    """Storage says of it only that another body is there."""
    aliases = aliases_of(memory, "chat")
    aliases.move("prod", to=1, left=None, who="ada")

    def lost(blobs: Blobs) -> AliasDocument:
        return aliases_of(blobs, "chat").move("prod", to=2, left=None, who="bob")

    mover = Actor("mover", memory, lost)
    mover.until("put_if", "/aliases/prod")
    call = mover.call
    assert call is not None
    assert call.late is not None
    call.late()  # It arrives; then the reply is lost, another moves on, and the request is sent again.
    aliases.move("prod", to=3, left=2, who="eve")
    mover.finish()
    assert mover.error is None
    at = aliases.get("prod")
    assert at is not None
    assert moves(at.document) == [(1, 0, 1), (2, 1, 2), (3, 2, 3)]
    assert mover.result == at.document


def test_many_movers_at_once_make_one_line_of_history(aliases: Aliases, blobs: Blobs, model: str) -> None:
    def move(number: int) -> AliasDocument:
        return aliases_of(blobs, model).move("prod", to=1 + number % 4, left=None, who=f"mover-{number}")

    with ThreadPoolExecutor(MOVERS) as pool:
        done = list(pool.map(move, range(MOVERS)))
    at = aliases.get("prod")
    assert at is not None
    history = at.document.history
    assert [move.seq for move in history] == list(range(1, at.document.seq + 1))
    assert [move.left for move in history] == [0, *(move.to for move in history[:-1])]
    assert at.document.to == history[-1].to
    # Each moved it once, or found that it names the version already.
    assert len({move.who for move in history}) == len(history)
    assert len({move.txn for move in history}) == len(history)
    for number, document in enumerate(done):
        assert document.to == 1 + number % 4
    assert {document.seq for document in done} == {move.seq for move in history}


def test_of_many_movers_that_leave_the_same_version_one_moves(aliases: Aliases, blobs: Blobs, model: str) -> None:
    aliases.move("prod", to=1, left=0, who="ada")

    def move(number: int) -> int:
        try:
            return aliases_of(blobs, model).move("prod", to=2 + number % 3, left=1, who=f"mover-{number}").to
        except AliasMoved:
            return 0

    with ThreadPoolExecutor(8) as pool:
        done = set(pool.map(move, range(8)))
    at = aliases.get("prod")
    assert at is not None
    assert at.document.seq == 2
    # Those who wanted what the winner did find it done.
    assert done == {0, at.document.to}


def test_a_deletion_that_was_killed_is_undone_by_whoever_resolves_its_alias(memory: MemoryBlobs) -> None:
    aliases = aliases_of(memory, "chat")
    deleter = Actor("delete", memory, lambda blobs: delete_version(aliases_of(blobs, "chat"), 2))
    deleter.until("put_if", "/versions/")
    aliases.move("prod", to=2, left=None, who="ada")
    deleter.step()
    deleter.crash()
    assert aliases.registry.read(2).document.state is VersionState.DELETING
    assert aliases.resolve("prod").state is VersionState.COMPLETE
    assert aliases.registry.complete(2).number == 2
