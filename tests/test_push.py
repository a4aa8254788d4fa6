"""A push sends what storage lacks and nothing else, and is acknowledged or gone on with wherever it is killed."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import threading
import tracemalloc
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headpond.errors import (
    BlobChanged,
    BlobCorrupt,
    InvalidRequest,
    ModelFileError,
    PushOvertaken,
    StorageUnavailable,
)
from headpond_workers.checkpoints.collection.gc_documents import GcState
from headpond_workers.checkpoints.description import Description
from headpond_workers.checkpoints.manifest import MAX_OBJECT_BYTES, SMALL_CHUNK_BYTES
from headpond_workers.checkpoints.names import GC_STATE, epoch_of, intent_key
from headpond_workers.checkpoints.pushes import sending
from headpond_workers.checkpoints.pushes.intent import Intent
from headpond_workers.checkpoints.pushes.push_plan import Piece
from headpond_workers.checkpoints.pushes.pushing import How, Stage, Unchanged, push
from headpond_workers.checkpoints.pushes.sending import LOOKS, PARALLEL_PUTS
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.version_document import VersionState
from memory_blobs import Fault, FaultyBlobs, MemoryBlobs
from pushed_versions import (
    MODEL,
    check_versions,
    condemn,
    content_of,
    flip_last_bit_of_large_chunks,
    on_disk,
    pushed,
    registry_on,
)
from tiny_weights import gguf, noise, safetensors, write_model

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def blobs() -> MemoryBlobs:
    return MemoryBlobs()


@pytest.fixture
def registry(blobs: MemoryBlobs) -> Registry:
    return registry_on(blobs)


def tensors(count: int = 40, size: int = 64 * KIB, *, seed: int = 0) -> dict[str, bytes]:
    return {f"layer.{number}.weight": noise(1000 * seed + number, size) for number in range(count)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", tensors())


def chunk_keys(blobs: MemoryBlobs) -> set[str]:
    return set(blobs.list_keys("chunks/"))


# -- What is sent


def test_a_folder_comes_back_from_storage_as_it_was(blobs: MemoryBlobs, registry: Registry, model: Path) -> None:
    (model / "sub" / "deep").mkdir(parents=True)
    (model / "sub" / "deep" / "tokenizer.json").write_bytes(noise(5, 3 * MIB))
    (model / "empty.txt").touch()
    found = pushed(blobs, model)
    assert (found.number, found.how) == (1, How.NEW)
    assert content_of(registry, 1) == on_disk(model)
    assert found.document.files == 4
    assert found.document.size_bytes == sum(map(len, on_disk(model).values()))
    assert list(blobs.list_keys("intents/")) == []


def test_a_single_file_is_a_version_under_its_own_name(blobs: MemoryBlobs, registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "model-Q8_0.gguf"
    path.write_bytes(gguf(tensors()))
    link = tmp_path / "latest.gguf"
    link.symlink_to(path)
    pushed(blobs, path)
    assert content_of(registry, 1) == {"model-Q8_0.gguf": path.read_bytes()}
    pushed(blobs, link)
    assert content_of(registry, 2) == {"latest.gguf": path.read_bytes()}, "the path itself may be a link"


def test_small_chunks_stand_in_packs_and_large_ones_for_themselves(
    blobs: MemoryBlobs, registry: Registry, tmp_path: Path
) -> None:
    large = {"embedding": noise(7, 20 * MIB), "head": noise(8, SMALL_CHUNK_BYTES)}
    model = write_model(tmp_path / "model", tensors(20, 2 * MIB) | large)
    pushed(blobs, model)
    sizes = sorted(len(blobs.objects[key]) for key in chunk_keys(blobs))
    # 40 MiB in packs of up to 16 MiB, with the header and config.json; 16 MiB, 4 MiB and 4 MiB.
    assert len(sizes) == 3 + 3
    assert all(size <= MAX_OBJECT_BYTES for size in sizes)
    assert sizes.count(16 * MIB) >= 1
    assert sizes.count(4 * MIB) >= 2
    assert content_of(registry, 1) == on_disk(model)


def test_a_chunk_that_occurs_twice_is_stored_once(blobs: MemoryBlobs, registry: Registry, tmp_path: Path) -> None:
    same = noise(1, 6 * MIB)
    model = write_model(tmp_path / "model", {"a": same, "b": same, "c": noise(2, 6 * MIB)})
    found = pushed(blobs, model)
    assert found.new_bytes == sum(len(blobs.objects[key]) for key in chunk_keys(blobs))
    assert found.new_bytes < found.document.size_bytes - 5 * MIB
    assert content_of(registry, 1) == on_disk(model)


CHANGES: Mapping[str, tuple[str, ...]] = {
    "5 % changed": ("change",),
    "and the header grown": ("change", "grow"),
    "and a tensor inserted": ("change", "grow", "insert"),
}


@pytest.mark.parametrize("made", [safetensors, gguf], ids=["safetensors", "gguf"])
@pytest.mark.parametrize("steps", CHANGES.values(), ids=CHANGES)
def test_only_what_changed_is_new(
    blobs: MemoryBlobs, registry: Registry, tmp_path: Path, made: Callable[..., bytes], steps: tuple[str, ...]
) -> None:
    path = tmp_path / f"model.{made.__name__}"
    before = tensors(58, 256 * KIB) | {"big": noise(99, 17 * MIB), "bias": noise(98, 256)}
    path.write_bytes(made(before))
    pushed(blobs, path)
    old_header = path.stat().st_size - sum(map(len, before.values()))
    names = ("layer.3.weight", "layer.30.weight", "layer.57.weight")
    changed = {name: noise(7000 + number, len(before[name])) for number, name in enumerate(names)}
    after = before | changed
    if "insert" in steps:
        changed["new"] = noise(78, 256 * KIB)
        order = list(after)
        after = {name: (after | changed)[name] for name in [*order[:20], "new", *order[20:]]}
    path.write_bytes(made(after, metadata={"note": "x" * 5000} if "grow" in steps else None))
    found = pushed(blobs, path)
    changed_bytes = sum(map(len, changed.values()))
    header = path.stat().st_size - sum(map(len, after.values()))
    # The header itself is new where it differs, and with it the padding between tensors of another file.
    assert changed_bytes <= found.new_bytes <= changed_bytes + header
    assert found.new_bytes <= 1.05 * changed_bytes
    if steps == ("change",):
        assert found.new_bytes == changed_bytes, f"the header of {old_header} bytes is the same"
    assert found.sent_bytes == found.new_bytes
    assert content_of(registry, 2) == on_disk(path)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    versions=st.lists(
        st.dictionaries(
            st.sampled_from([f"t{n}" for n in range(8)]),
            st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 1000, 300 * KIB, SMALL_CHUNK_BYTES, 5 * MIB])),
            min_size=1,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_versions_have_in_common_each_comes_back_as_it_was(
    tmp_path: Path, versions: list[dict[str, tuple[int, int]]]
) -> None:
    blobs = MemoryBlobs()
    registry = registry_on(blobs)
    stored = {}
    sent: set[bytes] = set()
    for version in versions:
        content = {name: bytes([seed]) * size for name, (seed, size) in version.items()}
        model = write_model(tmp_path / "model", content)
        found = pushed(blobs, model)
        stored[found.number] = on_disk(model)
        manifest = registry.manifest_of(found.document)
        new = {chunk.sha256: chunk.size for chunk in manifest.chunks if chunk.sha256 not in sent}
        assert found.new_bytes == sum(new.values())
        sent |= new.keys()
    assert {number: content_of(registry, number) for number in registry.numbers()} == stored


# -- The same content again


def test_the_same_content_is_no_new_version_and_nothing_is_sent(
    blobs: MemoryBlobs, registry: Registry, model: Path
) -> None:
    pushed(blobs, model)
    before = dict(blobs.objects)
    hashed: list[int] = []
    found = pushed(blobs, model, on_progress=lambda stage, done, total: hashed.append(done))
    assert (found.number, found.how, found.sent_bytes) == (1, How.UNCHANGED, 0)
    assert hashed[-1] == found.document.size_bytes, "every byte is hashed again"
    assert blobs.objects == before


@pytest.mark.parametrize("at", [0, 6 * MIB, -1], ids=["first byte", "between", "last byte"])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_file_of_the_same_path_and_size_with_other_bytes_is_hashed_as_a_whole(
    blobs: MemoryBlobs, registry: Registry, tmp_path: Path, name: str, at: int
) -> None:
    model = write_model(tmp_path / "model", {f"t{n}": noise(n, 3 * MIB) for n in range(4)})
    (model / "tokenizer.json").write_bytes(noise(9, 8 * MIB))
    pushed(blobs, model)
    content = bytearray((model / name).read_bytes())
    # The first tensor's first byte: the header itself has to stay one.
    position = int.from_bytes(content[:8], "little") + 8 if at == 0 and name == "model.safetensors" else at
    content[position] ^= 1
    (model / name).write_bytes(content)
    done: list[int] = []
    found = pushed(
        blobs, model, on_progress=lambda stage, now, total: done.append(now) if stage is Stage.HASH else None
    )
    assert (found.number, found.how) == (2, How.NEW)
    digests = {file.path: file.sha256 for file in registry.manifest_of(found.document).files}
    assert digests == {path: hashlib.sha256(body).digest() for path, body in on_disk(model).items()}
    assert content_of(registry, 2) == on_disk(model)
    assert done == sorted(done), "what is read twice counts once"
    assert done[-1] == found.document.size_bytes


def test_a_manifest_that_cannot_be_read_makes_hashing_longer_and_nothing_else(
    blobs: MemoryBlobs, registry: Registry, model: Path
) -> None:
    blobs.objects[pushed(blobs, model).document.manifest] = b"damaged"
    found = pushed(blobs, model, unchanged=Unchanged.NEW_VERSION)
    assert (found.number, found.how) == (2, How.NEW)
    assert content_of(registry, 2) == on_disk(model)


def test_after_many_new_objects_only_puts_tell_what_is_there(tmp_path: Path) -> None:
    asked: list[str] = []

    class Asked(MemoryBlobs):
        def size_of(self, key: str) -> int | None:
            if key.startswith("chunks/"):
                asked.append(key)
            return super().size_of(key)

    blobs = Asked()
    base = {f"base.{n}": noise(n, SMALL_CHUNK_BYTES) for n in range(6)}
    other = {f"added.{n:02d}": noise(100 + n, SMALL_CHUNK_BYTES) for n in range(20)}
    push(registry_on(blobs, "base"), write_model(tmp_path / "base", base), Description())
    asked.clear()
    # Sorted by name: the tensors of the other model come behind the new ones.
    found = push(registry_on(blobs), write_model(tmp_path / "model", other | base), Description())
    assert found.new_bytes - found.sent_bytes == 6 * SMALL_CHUNK_BYTES, "they are found all the same"
    assert LOOKS <= len(asked) < 20 + 6
    assert content_of(registry_on(blobs), 1) == on_disk(tmp_path / "model")


def test_it_is_another_version_if_that_is_wanted(blobs: MemoryBlobs, registry: Registry, model: Path) -> None:
    pushed(blobs, model)
    found = pushed(blobs, model, unchanged=Unchanged.NEW_VERSION)
    assert (found.number, found.how, found.new_bytes) == (2, How.NEW, 0)
    assert found.document.parent == 1
    assert content_of(registry, 2) == content_of(registry, 1)


def test_content_of_an_older_version_is_a_new_version(blobs: MemoryBlobs, registry: Registry, model: Path) -> None:
    pushed(blobs, model)
    first = (model / "config.json").read_bytes()
    (model / "config.json").write_text("{}")
    pushed(blobs, model)
    (model / "config.json").write_bytes(first)
    found = pushed(blobs, model)
    assert (found.number, found.how, found.new_bytes) == (3, How.NEW, 0)


# -- The collector


def test_a_condemned_object_is_put_anew_under_the_epoch_of_now(
    blobs: MemoryBlobs, registry: Registry, model: Path
) -> None:
    pushed(blobs, model)
    before = chunk_keys(blobs)
    condemn(blobs, lambda key: True)
    (model / "config.json").write_text("{}")
    pushed(blobs, model)
    new = {stored.key for stored in registry.manifest_of(registry.complete(2)).objects}
    assert new.isdisjoint(before)
    assert {epoch_of(key) for key in new} == {2}
    for key in before:
        blobs.delete(key)
    assert content_of(registry, 2) == on_disk(model)


class Meddling(MemoryBlobs):
    """Calls `then` once, after the first write to a key that begins with `after`."""

    def __init__(self, after: str, then: Callable[[MemoryBlobs, str], None]) -> None:
        super().__init__()
        self._after, self._then, self._done = after, then, False

    def _meddle(self, key: str) -> None:
        if key.startswith(self._after) and not self._done:
            self._done = True
            self._then(self, key)

    def put_new(self, key: str, body: bytes) -> str:
        etag = super().put_new(key, body)
        self._meddle(key)
        return etag


def test_a_round_that_came_between_plan_and_intent_makes_the_plan_anew(model: Path) -> None:
    seen: list[Intent] = []

    def collect(blobs: MemoryBlobs, key: str) -> None:
        condemn(blobs, lambda key: True)

    class Watched(Meddling):
        def put_if(self, key: str, body: bytes, *, etag: str) -> str:
            if key.startswith("intents/"):
                seen.append(Intent.unpack(body))
            return super().put_if(key, body, etag=etag)

    blobs = Watched("intents/", collect)
    found = pushed(blobs, model)
    state = GcState.unpack(blobs.objects[GC_STATE])
    assert [intent.gc_txn for intent in seen] == [state.txn], "the new plan was swapped into the same intent"
    assert {epoch_of(key) for key in chunk_keys(blobs)} == {state.epoch}
    manifest = registry_on(blobs).manifest_of(found.document)
    assert {*seen[0].objects} == {stored.key for stored in manifest.objects} | {found.document.manifest}
    check_versions(registry_on(blobs))


def test_a_push_whose_intent_was_dropped_begins_anew(model: Path) -> None:
    def drop(blobs: MemoryBlobs, key: str) -> None:
        for intent in list(blobs.list_keys("intents/")):
            blobs.delete(intent)

    blobs = Meddling(f"models/{MODEL}/versions/", drop)
    found = pushed(blobs, model)
    registry = registry_on(blobs)
    assert found.number == 2
    assert check_versions(registry) == {VersionState.DELETED: [1], VersionState.COMPLETE: [2]}
    assert "dropped" in registry.read(1).document.reason


def test_a_push_that_is_overtaken_again_and_again_says_so(model: Path) -> None:
    class Greedy(MemoryBlobs):
        def put_new(self, key: str, body: bytes) -> str:
            etag = super().put_new(key, body)
            if "/versions/" in key:
                for intent in list(self.list_keys("intents/")):
                    self.delete(intent)
            return etag

    blobs = Greedy()
    with pytest.raises(PushOvertaken, match="begin anew"):
        pushed(blobs, model)
    assert set(check_versions(registry_on(blobs))) == {VersionState.DELETED}


# -- Damage


@pytest.mark.parametrize("damage", ["flipped", "cut short", "gone"])
def test_content_of_a_quarantined_version_is_sent_anew_where_it_is_damaged(
    blobs: MemoryBlobs, registry: Registry, model: Path, damage: str
) -> None:
    pushed(blobs, model)
    (key,) = chunk_keys(blobs)
    body = blobs.objects[key]
    if damage == "gone":
        blobs.delete(key)
    else:
        blobs.objects[key] = body[:-1] + bytes([body[-1] ^ 1] if damage == "flipped" else [])
    registry.quarantine(1, reason="a chunk is damaged")
    found = pushed(blobs, model)
    assert (found.number, found.how) == (2, How.NEW)
    assert content_of(registry, 2) == on_disk(model)


def test_a_sound_object_of_a_quarantined_version_is_not_sent_again(
    blobs: MemoryBlobs, registry: Registry, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "model", {"a": noise(1, 5 * MIB), "b": noise(2, 5 * MIB)})
    pushed(blobs, model)
    damaged = next(key for key, body in blobs.objects.items() if body == noise(1, 5 * MIB))
    blobs.objects[damaged] = noise(3, 5 * MIB)
    epoch = {key: body for key, body in blobs.objects.items() if key == GC_STATE}
    registry.quarantine(1, reason="a chunk is damaged")
    if GC_STATE in blobs.objects and not epoch:
        blobs.delete(GC_STATE)  # as it was: the epoch of the damaged object
    found = pushed(blobs, model)
    assert 5 * MIB <= found.sent_bytes < 6 * MIB
    assert content_of(registry, 2) == on_disk(model)
    assert blobs.objects[damaged] == noise(3, 5 * MIB), "nobody replaces what others may name"


# -- Killed anywhere


class Killed(BaseException):
    """The process is gone: nothing handles it."""


class Mortal(MemoryBlobs):
    """The process that uses it dies at its n-th write, before or after it is stored."""

    def __init__(self, objects: dict[str, bytes], at: int, *, stored: bool) -> None:
        super().__init__()
        self.objects, self.left, self._stored = objects, at, stored

    def _write(self, write: Callable[[], str | None]) -> str | None:
        self.left -= 1
        if self.left < 0:
            raise Killed
        if self.left == 0 and not self._stored:
            raise Killed
        result = write()
        if self.left == 0:
            raise Killed
        return result

    def put_new(self, key: str, body: bytes) -> str:
        return self._write(lambda: MemoryBlobs.put_new(self, key, body)) or ""

    def put_if(self, key: str, body: bytes, *, etag: str) -> str:
        return self._write(lambda: MemoryBlobs.put_if(self, key, body, etag=etag)) or ""

    def put_once(self, key: str, body: bytes, *, sha256: bytes | None = None) -> bool:
        self._write(lambda: self.objects.setdefault(key, body) and None)
        return True

    def delete(self, key: str) -> None:
        self._write(lambda: MemoryBlobs.delete(self, key))


@pytest.mark.parametrize("stored", [False, True], ids=["before", "after"])
def test_a_push_killed_at_any_write_is_gone_on_with(tmp_path: Path, stored: bool) -> None:
    model = write_model(tmp_path / "model", {"a": noise(1, 5 * MIB), "b": noise(2, 100 * KIB), "c": noise(3, 5 * MIB)})
    at, outcomes = 0, []
    while True:
        at += 1
        blobs = MemoryBlobs()
        registry = registry_on(blobs)
        try:
            pushed(Mortal(blobs.objects, at, stored=stored), model)
            break  # more writes than the push has
        except Killed:
            pass
        acknowledged = VersionState.COMPLETE in check_versions(registry)
        sent = sum(len(blobs.objects[key]) for key in chunk_keys(blobs))
        found = pushed(blobs, model)
        assert check_versions(registry) == {VersionState.COMPLETE: [1]}
        assert content_of(registry, 1) == on_disk(model)
        assert list(blobs.list_keys("intents/")) == [] or found.how is How.NEW
        if found.how is How.NEW:
            assert found.sent_bytes == found.new_bytes - sent, "what was sent is found by its name"
        assert acknowledged is (found.how is How.UNCHANGED)
        outcomes.append(found.how)
    assert {How.NEW, How.RESUMED, How.UNCHANGED} == set(outcomes)


class Unlucky(MemoryBlobs):
    """The outcome of its n-th write is unknown to the caller."""

    def __init__(self, objects: dict[str, bytes], at: int, fault: Fault) -> None:
        super().__init__()
        self.objects, self._left, self._fault, self._counting = objects, at, fault, threading.Lock()
        self._late: list[Callable[[], object]] = []

    def release(self) -> None:
        """What was on its way arrives."""
        for write in self._late:
            with contextlib.suppress(BlobChanged, BlobCorrupt):
                write()

    def _write(self, write: Callable[[], Any]) -> Any:
        with self._counting:
            self._left -= 1
            unlucky = self._left == 0
        if not unlucky:
            return write()
        if self._fault is Fault.REPLY_LOST:
            write()
        elif self._fault is Fault.STORED_LATE:
            self._late.append(write)
        raise StorageUnavailable("http://memory", configured_in="the test", reason=self._fault.value)

    def put_new(self, key: str, body: bytes) -> str:
        return self._write(lambda: MemoryBlobs.put_new(self, key, body))  # type: ignore[no-any-return]

    def put_if(self, key: str, body: bytes, *, etag: str) -> str:
        return self._write(lambda: MemoryBlobs.put_if(self, key, body, etag=etag))  # type: ignore[no-any-return]

    def put_once(self, key: str, body: bytes, *, sha256: bytes | None = None) -> bool:
        self._write(lambda: MemoryBlobs.put_new(self, key, body))
        return True

    def delete(self, key: str) -> None:
        self._write(lambda: MemoryBlobs.delete(self, key))


@pytest.mark.parametrize("fault", Fault, ids=[fault.name for fault in Fault])
def test_a_write_of_unknown_outcome_makes_no_second_version(tmp_path: Path, fault: Fault) -> None:
    model = write_model(tmp_path / "model", {"a": noise(1, 5 * MIB), "b": noise(2, 100 * KIB)})
    failed = []
    for at in itertools.count(1):
        blobs = MemoryBlobs()
        unlucky = Unlucky(blobs.objects, at, fault)
        try:
            pushed(unlucky, model)
        except StorageUnavailable:
            failed.append(at)
            assert pushed(blobs, model).number == 1
        unlucky.release()
        assert check_versions(registry_on(blobs)) == {VersionState.COMPLETE: [1]}
        if unlucky._left > 0:
            break
    # Intent, two objects and manifest: the caller repeats the push. A number that was taken and a version that was
    # completed are found again at once, and an intent that stays is the collector's.
    assert failed == [1, 2, 3, 4]


def killed_while_pending(blobs: MemoryBlobs, model: Path, **how: object) -> None:
    """Leaves a pending version whose push is dead."""
    for at in range(1, 50):
        trial = Mortal(dict(blobs.objects), at, stored=True)
        with pytest.raises(Killed):
            pushed(trial, model, **how)
        if VersionState.PENDING in {at.document.state for at in registry_on(trial).all()}:
            blobs.objects.update(trial.objects)
            return
    pytest.fail("the push made no pending version")


def test_another_host_leaves_an_interrupted_push_alone(blobs: MemoryBlobs, registry: Registry, model: Path) -> None:
    killed_while_pending(blobs, model, host="there")
    found = pushed(blobs, model, host="here")
    assert (found.number, found.how) == (2, How.NEW)
    assert check_versions(registry) == {VersionState.PENDING: [1], VersionState.COMPLETE: [2]}


def test_an_interrupted_push_of_other_content_is_left_alone(
    blobs: MemoryBlobs, registry: Registry, model: Path
) -> None:
    killed_while_pending(blobs, model)
    (model / "config.json").write_text("{}")
    assert pushed(blobs, model).number == 2
    assert check_versions(registry) == {VersionState.PENDING: [1], VersionState.COMPLETE: [2]}


def test_an_interrupted_push_with_another_note_is_left_alone(
    blobs: MemoryBlobs, registry: Registry, model: Path
) -> None:
    killed_while_pending(blobs, model)
    found = push(registry, model, Description(note="the better one"))
    assert (found.number, found.document.note) == (2, "the better one")


def test_an_interrupted_push_whose_intent_is_gone_is_not_completed(
    blobs: MemoryBlobs, registry: Registry, model: Path
) -> None:
    killed_while_pending(blobs, model)
    blobs.delete(intent_key(registry.read(1).document.push))
    assert pushed(blobs, model).number == 2
    assert check_versions(registry) == {VersionState.PENDING: [1], VersionState.COMPLETE: [2]}


def test_two_processes_that_complete_one_version_both_succeed(model: Path) -> None:
    """The one is between steps 7 and 8, as the other takes its version over and removes its intent."""
    second: list[int] = []

    def take_over(blobs: MemoryBlobs, key: str) -> None:
        second.append(pushed(blobs, model).number)

    blobs = Meddling(f"models/{MODEL}/versions/", take_over)
    found = pushed(blobs, model)
    assert (found.number, second) == (1, [1])
    assert check_versions(registry_on(blobs)) == {VersionState.COMPLETE: [1]}


@pytest.mark.parametrize("fault", Fault, ids=[fault.name for fault in Fault])
@pytest.mark.parametrize("key_part", ["versions/0000000001"])
def test_a_number_whose_reply_was_lost_is_found_by_its_push(
    blobs: MemoryBlobs, registry: Registry, model: Path, fault: Fault, key_part: str
) -> None:
    faulty = FaultyBlobs(blobs)
    faulty.fail_next_put(fault, key_part=key_part)
    found = pushed(faulty, model)
    faulty.release()
    assert found.number == 1
    assert check_versions(registry) == {VersionState.COMPLETE: [1]}


def test_concurrent_pushes_get_contiguous_numbers(blobs: MemoryBlobs, registry: Registry, tmp_path: Path) -> None:
    folders = [write_model(tmp_path / f"model{n}", tensors(4, KIB, seed=n)) for n in range(8)]
    start = threading.Barrier(len(folders))

    def run(folder: Path) -> int:
        start.wait()
        return pushed(blobs, folder).number

    with ThreadPoolExecutor(len(folders)) as pool:
        numbers = dict(zip(pool.map(run, folders), folders, strict=True))
    assert sorted(numbers) == list(range(1, 9))
    assert check_versions(registry) == {VersionState.COMPLETE: list(range(1, 9))}
    assert all(content_of(registry, number) == on_disk(folder) for number, folder in numbers.items())


def test_no_more_objects_are_in_flight_than_are_put_at_once(tmp_path: Path) -> None:
    in_flight, most = 0, 0
    lock = threading.Lock()
    all_in = threading.Barrier(PARALLEL_PUTS)

    class Slow(MemoryBlobs):
        def put_once(self, key: str, body: bytes, *, sha256: bytes | None = None) -> bool:
            nonlocal in_flight, most
            if key.startswith("chunks/"):
                with lock:
                    in_flight += 1
                    most = max(most, in_flight)
                all_in.wait(30)
                with lock:
                    in_flight -= 1
            return super().put_once(key, body, sha256=sha256)

    model = write_model(tmp_path / "model", {f"t{n}": noise(n, SMALL_CHUNK_BYTES) for n in range(7)})
    pushed(Slow(), model)  # with the pack of the header: eight objects
    assert most == PARALLEL_PUTS


def test_memory_is_bounded_however_large_the_files_are(tmp_path: Path) -> None:
    class Forgetful(MemoryBlobs):
        def put_once(self, key: str, body: bytes, *, sha256: bytes | None = None) -> bool:
            return super().put_once(key, body if key.startswith("models/") else b"")

    model = write_model(tmp_path / "model", {"tiny": b"x" * 100})
    large = {f"t{n}": bytes([n]) * MAX_OBJECT_BYTES for n in range(10)}
    small = {f"s{n}": bytes([n, 1]) * (MIB // 2) for n in range(40)}
    (model / "model.safetensors").write_bytes(safetensors(large | small))
    del large, small
    tracemalloc.start()
    try:
        assert pushed(Forgetful(), model).document.size_bytes > 200 * MIB
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Four objects on their way, and one that is put together from its chunks.
    assert peak < (PARALLEL_PUTS + 2) * MAX_OBJECT_BYTES


# -- Files that change, and files that are refused


def at_sending(change: Callable[[], object]) -> Callable[[Stage, int, int], None]:
    """Progress that changes a file as soon as all is hashed."""
    done: list[bool] = []

    def on_progress(stage: Stage, _: int, __: int) -> None:
        if stage is Stage.SEND and not done:
            done.append(True)
            change()

    return on_progress


def same_times(path: Path, change: Callable[[Path], object]) -> None:
    status = path.stat()
    change(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGED: Mapping[str, Callable[[Path], object]] = {
    "grown": lambda model: (model / "config.json").write_text("{}" * 1000),
    "same size": lambda model: (model / "model.safetensors").write_bytes(
        bytes((model / "model.safetensors").stat().st_size)
    ),
    "same size and time": lambda model: same_times(
        model / "model.safetensors", lambda path: path.write_bytes(bytes(path.stat().st_size))
    ),
    "gone": lambda model: (model / "config.json").unlink(),
    "another file": lambda model: (model / "tokenizer.json").write_text("{}"),
    "a link now": lambda model: ((model / "config.json").unlink(), (model / "config.json").symlink_to("/etc/hostname")),
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
def test_a_file_that_changes_while_it_is_pushed_is_refused(
    blobs: MemoryBlobs, registry: Registry, model: Path, change: Callable[[Path], object], known: bool
) -> None:
    if known:
        pushed(blobs, model)
    with pytest.raises(ModelFileError, match=r"changed while|is a link"):
        pushed(blobs, model, unchanged=Unchanged.NEW_VERSION, on_progress=at_sending(lambda: change(model)))
    assert registry.numbers() == [1][: int(known)]


def test_a_file_that_changes_while_it_is_hashed_is_refused(blobs: MemoryBlobs, registry: Registry, model: Path) -> None:
    path = model / "tokenizer.json"
    path.write_bytes(noise(1, 40 * MIB))

    def on_progress(stage: Stage, done: int, total: int) -> None:
        if stage is Stage.HASH and done > total // 2:
            with path.open("r+b") as file:
                file.write(b"x")

    with pytest.raises(ModelFileError, match="changed while"):
        pushed(blobs, model, on_progress=on_progress)
    assert registry.numbers() == []
    assert blobs.objects == {}


def test_bytes_that_change_without_a_trace_are_refused_by_storage(
    blobs: MemoryBlobs, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a page of memory does that lost a bit: no time stamp tells."""
    large = noise(1, 5 * MIB)
    model = write_model(tmp_path / "model", {"large": large, "small": noise(2, 100)})
    flip_last_bit_of_large_chunks(monkeypatch)
    with pytest.raises(ModelFileError, match=r"model\.safetensors changed while it was pushed"):
        pushed(blobs, model)
    assert registry.numbers() == []
    assert not any(key.endswith(hashlib.sha256(large).hexdigest()) for key in chunk_keys(blobs))


def test_small_chunks_that_change_without_a_trace_are_refused_before_a_pack_is_named_by_them(
    blobs: MemoryBlobs, registry: Registry, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pack would have a digest that fits its bytes, and a chunk in it that no reader accepts."""
    read = sending._read_piece

    def flipped(descriptor: int, piece: Piece) -> bytes:
        content = read(descriptor, piece)
        return content[:-1] + bytes([content[-1] ^ 1]) if piece.file.path == "config.json" else content

    monkeypatch.setattr(sending, "_read_piece", flipped)
    with pytest.raises(ModelFileError, match=r"config\.json changed while it was pushed"):
        pushed(blobs, model)
    assert registry.numbers() == []
    assert blobs.objects == {}


def _name_of_no_text(model: Path) -> None:
    (Path(os.fsdecode(os.fsencode(model) + b"/weights-\xff.txt"))).touch()


REFUSED: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "a link": (lambda model: (model / "extra.json").symlink_to("config.json"), r"extra\.json is a link.*cp -rL"),
    "a link to a folder": (lambda model: (model / "extra").symlink_to("/etc"), r"extra is a link"),
    "a link to nothing": (lambda model: (model / "extra").symlink_to("nowhere"), r"extra is a link"),
    "a pipe": (lambda model: os.mkfifo(model / "extra.json"), r"extra\.json is no regular file"),
    "a pickle": (lambda model: (model / "pytorch_model.bin").touch(), r"may be a pickle"),
    "a pickle below": (
        lambda model: ((model / "sub").mkdir(), (model / "sub" / "weights.PT").touch()),
        r"may be a pickle",
    ),
    "a control character": (lambda model: (model / "a\x1b[31m.json").touch(), r"cannot be the path"),
    "a backslash": (lambda model: (model / "a\\b").touch(), r"cannot be the path"),
    "bytes that are no text": (_name_of_no_text, r"cannot be the path"),
    "a broken header": (
        lambda model: (model / "model-2.safetensors").write_bytes(b"\xff" * 100),
        r"not a valid safetensors file",
    ),
    "another format": (lambda model: (model / "model.gguf").write_bytes(b"PK" * 100), r"not a GGUF model"),
}


@pytest.mark.parametrize(("spoil", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_no_version_may_hold_is_refused_with_the_reason(
    blobs: MemoryBlobs, model: Path, spoil: Callable[[Path], object], reason: str
) -> None:
    spoil(model)
    with pytest.raises(ModelFileError, match=reason):
        pushed(blobs, model)
    assert blobs.objects == {}


def test_nothing_to_push_is_refused(blobs: MemoryBlobs, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="Nothing is at"):
        pushed(blobs, tmp_path / "absent")
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    with pytest.raises(ModelFileError, match="no files"):
        pushed(blobs, tmp_path / "empty")
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelFileError, match="pickle"):
        pushed(blobs, tmp_path / "pytorch_model.bin")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="no regular file"):
        pushed(blobs, tmp_path / "pipe")


def test_hidden_entries_of_a_folder_are_left_out_and_named(blobs: MemoryBlobs, registry: Registry, model: Path) -> None:
    (model / ".git").mkdir()
    (model / ".git" / "config.bin").touch()
    (model / ".gitattributes").touch()
    found = pushed(blobs, model)
    assert found.left_out == (".git", ".gitattributes")
    assert set(content_of(registry, 1)) == {"config.json", "model.safetensors"}


def test_a_note_that_is_too_long_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="1001 characters"):
        Description(note="x" * 1001)
