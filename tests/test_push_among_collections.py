"""The real push, and between any two of its calls on storage a deletion, whole collections, a wait longer than the
grace. Whatever it says it has pushed is whole, then and after the collections that follow."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.collection.gc import GRACE_MS, Collector
from headpond_workers.checkpoints.delete import delete_version
from headpond_workers.checkpoints.description import Description
from headpond_workers.checkpoints.document_io import now_ms
from headpond_workers.checkpoints.pushes.pushing import push
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.version_document import VersionState
from headpond_workers.storage.blobs import MAX_BLOB_BYTES, Blob
from memory_blobs import MemoryBlobs
from pushed_versions import content_of

FILES = {"weights": b"w" * 9000, "tokenizer": b"t" * 5000, "config": b"c" * 100}


class Interrupted(MemoryBlobs):
    """Before the n-th call of the push something else happens, once."""

    def __init__(self, at: int, happens: Callable[[MemoryBlobs], None]) -> None:
        super().__init__()
        self.calls = 0
        self.on = False
        self._at, self._happens, self._door = at, happens, threading.RLock()

    def _enter(self) -> None:
        with self._door:
            if not self.on:
                return
            self.calls += 1
            if self.calls == self._at:
                self.on = False
                self._happens(self)
                self.on = True

    def get(self, key: str, *, max_bytes: int = MAX_BLOB_BYTES) -> Blob:
        self._enter()
        return super().get(key, max_bytes=max_bytes)

    def put_new(self, key: str, body: bytes) -> str:
        self._enter()
        return super().put_new(key, body)

    def put_if(self, key: str, body: bytes, *, etag: str) -> str:
        self._enter()
        return super().put_if(key, body, etag=etag)

    def size_of(self, key: str) -> int | None:
        self._enter()
        return super().size_of(key)

    def list_sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        self._enter()
        return super().list_sizes(prefix)

    def delete(self, key: str) -> None:
        self._enter()
        super().delete(key)


class Clock:
    def __init__(self) -> None:
        self.ahead_ms = 0

    def __call__(self) -> int:
        return now_ms() + self.ahead_ms


CLOCK = Clock()


def collect(blobs: MemoryBlobs) -> None:
    Collector(blobs, writer="a collector", now_ms=CLOCK, threads=1).collect()


def delete(blobs: MemoryBlobs) -> None:
    delete_version(Aliases(Registry(blobs, "chat", writer="the test")), 1)


def delete_and_condemn(blobs: MemoryBlobs) -> None:
    """Within the grace: the push is not overtaken."""
    delete(blobs)
    collect(blobs)


def delete_and_collect(blobs: MemoryBlobs) -> None:
    """The push sleeps longer than the grace, twice, while its host's clock does not notice."""
    delete(blobs)
    for _ in range(3):
        collect(blobs)
        CLOCK.ahead_ms += GRACE_MS + 1000


def end_a_round(blobs: MemoryBlobs) -> None:
    """What was condemned before the push began is deleted."""
    CLOCK.ahead_ms += GRACE_MS - 60_000
    collect(blobs)


@pytest.mark.parametrize("happens", [delete_and_condemn, delete_and_collect, end_a_round], ids=lambda f: f.__name__)
def test_a_push_that_ends_has_pushed_a_whole_version_whatever_came_between(
    tmp_path: Path, happens: Callable[[MemoryBlobs], None]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name, body in FILES.items():
        (model / name).write_bytes(body)
    for at in range(1, 200):
        CLOCK.ahead_ms = 0
        blobs = Interrupted(at, happens)
        registry = Registry(blobs, "chat", writer="the test")
        (model / "config").write_bytes(b"the first")
        push(registry, model, Description())
        if happens is end_a_round:
            delete_and_condemn(blobs)
            CLOCK.ahead_ms = 120_000
        (model / "config").write_bytes(b"the second")
        blobs.on = True
        done = push(registry, model, Description())
        blobs.on = False
        if blobs.calls < at:
            assert at > 12, "the push makes more calls than that"
            return
        where = f"before call {at}"
        for _ in range(4):
            document = registry.read(done.number).document
            assert document.state is VersionState.COMPLETE, where
            assert content_of(registry, done.number) == {**FILES, "config": b"the second"}, where
            CLOCK.ahead_ms += GRACE_MS + 1000
            collect(blobs)
    pytest.fail("the push never ends")
