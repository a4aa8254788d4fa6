"""Every byte of one version read from storage and checked, and nothing kept of it."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from headpond.errors import VersionUnusable
from headpond_workers.checkpoints.manifest import Manifest
from headpond_workers.checkpoints.pulls.chunk_reads import (
    CONNECTIONS,
    ChunkDamaged,
    ChunkRead,
    read_checked,
    reads_in_order,
)
from headpond_workers.checkpoints.pulls.fetching import Progress
from headpond_workers.checkpoints.quarantine import quarantined, sound_manifest
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.version_document import VersionDocument
from headpond_workers.storage.blobs import Blobs

VERIFYING = "verifying"
MOST_DAMAGE = 20
"""So many damaged places are named; there may be more."""


@dataclass(frozen=True, slots=True)
class Verified:
    """damage: in words, each damaged place, at most MOST_DAMAGE; empty for a version that is as it was pushed. error:
    what to raise then."""

    document: VersionDocument
    chunks: int
    bytes: int
    damage: tuple[str, ...] = ()
    error: VersionUnusable | None = None


def verify(registry: Registry, number: int, *, progress: Progress) -> Verified:
    """Read and check every chunk of a complete version, and the digest of each file from its chunks, in order.

    Damage quarantines the version; the others of its chunks are checked all the same. Raises VersionMissing,
    VersionUnusable for a version that is not complete or has no sound manifest, StorageUnavailable.
    """
    document = registry.complete(number)
    manifest = sound_manifest(registry, document)
    damage = damage_of(registry.blobs, manifest, progress=progress)
    error = quarantined(registry, number, "; ".join(damage)) if damage else None
    return Verified(document, len(manifest.chunks), manifest.size_bytes, damage, error)


def damage_of(blobs: Blobs, manifest: Manifest, *, progress: Progress) -> tuple[str, ...]:
    """What is wrong with the objects that a manifest names, at most MOST_DAMAGE places. Raises StorageUnavailable."""
    total, done = manifest.size_bytes, 0
    found: list[str] = []
    digests = _FileDigests(manifest)
    progress(VERIFYING, 0, total)
    for read, body in _bodies(blobs, manifest):
        if isinstance(body, ChunkDamaged):
            found.append(str(body))
        found += digests.take(read, None if isinstance(body, ChunkDamaged) else memoryview(body))
        done += sum(piece.chunk.size for piece in read.pieces)
        progress(VERIFYING, done, total)
        if len(found) >= MOST_DAMAGE:
            return tuple(found[:MOST_DAMAGE])
    found += digests.rest()
    return tuple(found[:MOST_DAMAGE])


class _FileDigests:
    """SHA-256 of each file in turn, from pieces that come in order. A file of which a piece is missing has none."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._file = 0
        self._digest = hashlib.sha256()
        self._whole = True

    def take(self, read: ChunkRead, body: memoryview | None) -> Iterator[str]:
        """Yields what is wrong with files that are complete by now. body: None for a damaged one."""
        for piece in read.pieces:
            yield from self._end_before(piece.file)
            if body is None:
                self._whole = False
            else:
                self._digest.update(read.part(body, piece))

    def rest(self) -> Iterator[str]:
        yield from self._end_before(len(self._manifest.files))

    def _end_before(self, file: int) -> Iterator[str]:
        while self._file < file:
            ended = self._manifest.files[self._file]
            if self._whole and self._digest.digest() != ended.sha256:
                yield f"the file {ended.path!r} has another SHA-256 than its manifest says, though its chunks are right"
            self._file, self._digest, self._whole = self._file + 1, hashlib.sha256(), True


def _bodies(blobs: Blobs, manifest: Manifest) -> Iterator[tuple[ChunkRead, bytearray | ChunkDamaged]]:
    """All reads, in order, a few ahead of who takes them."""

    def bring(read: ChunkRead) -> bytearray | ChunkDamaged:
        body = bytearray(read.size)
        try:
            read_checked(blobs, manifest, read, memoryview(body))
        except ChunkDamaged as error:
            return error
        return body

    reads = reads_in_order(manifest)
    with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="verify") as pool:
        ahead: deque[tuple[ChunkRead, Future[bytearray | ChunkDamaged]]] = deque()
        try:
            while True:
                ahead += [(read, pool.submit(bring, read)) for read in islice(reads, CONNECTIONS + 1 - len(ahead))]
                if not ahead:
                    return
                read, coming = ahead.popleft()
                yield read, coming.result()
        finally:
            for _, coming in ahead:
                coming.cancel()
