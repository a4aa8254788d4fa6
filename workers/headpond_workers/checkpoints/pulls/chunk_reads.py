"""How the bytes of a version are read from storage: neighbours in an object in one request, each chunk checked against
its SHA-256."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from headpond.errors import BlobCorrupt, BlobMissing
from headpond_workers.checkpoints.manifest import Manifest, StoredChunk
from headpond_workers.storage.blobs import Blobs

logger = logging.getLogger(__name__)

CONNECTIONS = 4
"""Reads at once: more gain nothing, in what was measured with objects of 16 MiB."""
MOST_GAP_BYTES = 256 << 10
"""Reading so many bytes that nobody wants costs less than another request."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk in its place. file: index in the manifest. at: of its first byte in the file."""

    file: int
    at: int
    chunk: StoredChunk


@dataclass(frozen=True, slots=True)
class ChunkRead:
    """One request: a range of one object, and the chunks that lie in it, in the order in which they were asked for.

    object: index in the manifest. offset, size: of the range, in bytes; no more than an object has.
    """

    object: int
    offset: int
    size: int
    pieces: tuple[Piece, ...]

    def part(self, buffer: memoryview, piece: Piece) -> memoryview:
        """The bytes of one chunk in what was read."""
        start = piece.chunk.offset - self.offset
        return buffer[start : start + piece.chunk.size]


class ChunkDamaged(Exception):
    """A chunk that is not in storage as it should be, twice. No HeadpondError: whoever reads makes one of it."""


def reads_in_order(manifest: Manifest) -> Iterator[ChunkRead]:
    """All of a version, file by file, for whoever wants the bytes of each in their order. A chunk that stands in it
    twice is read twice."""
    yield from _runs(_pieces(manifest))


def reads_by_object(manifest: Manifest) -> Iterator[ChunkRead]:
    """All of a version in the fewest requests: of a pack whose chunks lie apart in the files, one. A chunk that stands
    in the version twice is read once, for both places."""
    of_object: dict[int, list[Piece]] = {}
    for piece in _pieces(manifest):
        of_object.setdefault(piece.chunk.object, []).append(piece)
    for pieces in of_object.values():
        pieces.sort(key=lambda piece: piece.chunk.offset)
        yield from _runs(pieces)


def read_checked(blobs: Blobs, manifest: Manifest, read: ChunkRead, buffer: memoryview) -> None:
    """Fill `buffer`, which is of the read's size. What is wrong is read once more: the wire may be to blame.

    Raises ChunkDamaged with words, StorageUnavailable.
    """
    key = manifest.objects[read.object].key
    for last in (False, True):
        damage = _damage(blobs, key, read, buffer)
        if damage is None:
            return
        logger.warning("chunk_damaged model=%s object=%s again=%s reason=%s", manifest.model, key, not last, damage)
    raise ChunkDamaged(damage)


def _damage(blobs: Blobs, key: str, read: ChunkRead, buffer: memoryview) -> str | None:
    try:
        blobs.read_into(key, buffer, offset=read.offset)
    except (BlobMissing, BlobCorrupt) as error:
        return str(error)
    for piece in read.pieces:
        chunk = piece.chunk
        if hashlib.sha256(read.part(buffer, piece)).digest() != chunk.sha256:
            where = f"{chunk.size} bytes at {chunk.offset}"
            return f"{key}: the chunk {chunk.sha256.hex()[:16]} ({where}) is damaged: its SHA-256 is another"
    return None


def _pieces(manifest: Manifest) -> Iterator[Piece]:
    for index, file in enumerate(manifest.files):
        at = 0
        for number in file.chunks:
            chunk = manifest.chunks[number]
            yield Piece(index, at, chunk)
            at += chunk.size


def _runs(pieces: Iterable[Piece]) -> Iterator[ChunkRead]:
    """Pieces that follow each other in one object, near enough, become one read."""
    run: list[Piece] = []
    end = 0  # of the bytes that the run covers: its last chunk need not reach the furthest
    for piece in pieces:
        chunk = piece.chunk
        if run:
            last = run[-1].chunk
            if chunk.object != last.object or not last.offset <= chunk.offset <= end + MOST_GAP_BYTES:
                yield _read(run, end)
                run, end = [], 0
        run.append(piece)
        end = max(end, chunk.offset + chunk.size)
    if run:
        yield _read(run, end)


def _read(run: list[Piece], end: int) -> ChunkRead:
    first = run[0].chunk
    return ChunkRead(first.object, first.offset, end - first.offset, tuple(run))
