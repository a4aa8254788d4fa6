"""What tests of pushes ask of storage: is every version that is complete there, whole and byte for byte?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from headpond_workers.checkpoints.collection.gc_documents import Condemned, GcState, Round
from headpond_workers.checkpoints.description import Description
from headpond_workers.checkpoints.manifest import MAX_OBJECT_BYTES
from headpond_workers.checkpoints.names import GC_STATE, condemned_key
from headpond_workers.checkpoints.pushes import sending
from headpond_workers.checkpoints.pushes.push_plan import NewObject
from headpond_workers.checkpoints.pushes.pushing import Pushed, push
from headpond_workers.checkpoints.registry import Registry, new_txn, now_ms
from headpond_workers.checkpoints.version_document import VersionState
from headpond_workers.storage.blobs import Blobs

MODEL = "chat"
PLAIN = Description()


def registry_on(blobs: Blobs, model: str = MODEL) -> Registry:
    return Registry(blobs, model, writer="somebody@here")


def pushed(blobs: Blobs, path: Path, **how: object) -> Pushed:
    """A push without anything told beside the files."""
    return push(registry_on(blobs), path, PLAIN, **how)  # type: ignore[arg-type]


def flip_last_bit_of_large_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are objects of their own are read with other bytes than when they were hashed."""
    read = sending._read

    def flipped(new: NewObject) -> bytes:
        body = read(new)
        return body[:-1] + bytes([body[-1] ^ 1]) if len(new.pieces) == 1 else body

    monkeypatch.setattr(sending, "_read", flipped)


def content_of(registry: Registry, number: int) -> dict[str, bytes]:
    """The files of a complete version, by path, put together from its chunks. Every digest is checked on the way."""
    document = registry.complete(number)
    manifest = registry.manifest_of(document)
    bodies = []
    for stored in manifest.objects:
        body = registry.blobs.get(stored.key, max_bytes=MAX_OBJECT_BYTES).body
        assert len(body) == stored.size
        assert stored.key.endswith(hashlib.sha256(body).hexdigest())
        bodies.append(body)
    chunks = []
    for chunk in manifest.chunks:
        content = bodies[chunk.object][chunk.offset : chunk.offset + chunk.size]
        assert hashlib.sha256(content).digest() == chunk.sha256
        chunks.append(content)
    files = {file.path: b"".join(chunks[index] for index in file.chunks) for file in manifest.files}
    assert all(hashlib.sha256(files[file.path]).digest() == file.sha256 for file in manifest.files)
    assert sum(map(len, files.values())) == document.size_bytes
    return files


def on_disk(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {path.name: path.read_bytes()}
    return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}


def check_versions(registry: Registry) -> dict[VersionState, list[int]]:
    """Numbers by state, after checking that they are contiguous and that each complete one is whole."""
    found: dict[VersionState, list[int]] = {}
    numbers = registry.numbers()
    assert numbers == list(range(1, len(numbers) + 1))
    for number in numbers:
        state = registry.read(number).document.state
        found.setdefault(state, []).append(number)
        if state is VersionState.COMPLETE:
            content_of(registry, number)
    return found


def condemn(blobs: Blobs, choose: Callable[[str], bool]) -> None:
    """What a collector does that found nothing leading to these objects: the second half of a collection may follow at
    any time."""
    keys = tuple(key for key in blobs.list_keys("chunks/") if choose(key))
    at = blobs.get(GC_STATE) if blobs.size_of(GC_STATE) is not None else None
    before = None if at is None else GcState.unpack(at.body)
    number, epoch = (1, 1) if before is None else (before.next_round, before.epoch)
    listed = Condemned(txn=new_txn(), round=number, keys=keys, created_ms=now_ms(), writer="a collector")
    blobs.put_new(condemned_key(number), listed.pack())
    rounds = () if before is None else before.rounds
    state = GcState(
        txn=new_txn(),
        epoch=epoch + 1,
        next_round=number + 1,
        rounds=(*rounds, Round(number, condemned_key(number), epoch, now_ms(), now_ms())),
        created_ms=now_ms(),
        writer="a collector",
    )
    if at is None:
        blobs.put_new(GC_STATE, state.pack())
    else:
        blobs.put_if(GC_STATE, state.pack(), etag=at.etag)
