"""Which chunk of a push is taken from where, and which objects are put. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from headpond_workers.checkpoints.manifest import (
    MAX_OBJECT_BYTES,
    SMALL_CHUNK_BYTES,
    StoredChunk,
    StoredFile,
    StoredObject,
)
from headpond_workers.checkpoints.pushes.scanning import ScannedFile
from headpond_workers.checkpoints.pushes.source_files import SourceFile
from headpond_workers.checkpoints.pushes.stored_chunks import Place


@dataclass(frozen=True, slots=True)
class Piece:
    """A new chunk, and where a file has it. sha256: 32 bytes. offset: of its first byte in the file."""

    sha256: bytes
    size: int
    file: SourceFile = field(repr=False)
    offset: int


@dataclass(frozen=True, slots=True)
class NewObject:
    """What is to be put: one chunk, or a pack of small ones one behind the other."""

    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        return sum(piece.size for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class NamedObject:
    """sha256: 64 hex digits, of the object."""

    key: str
    sha256: str
    content: NewObject

    @property
    def size(self) -> int:
        return self.content.size


@dataclass(frozen=True, slots=True)
class Layout:
    """What a manifest says of chunks and files."""

    objects: tuple[StoredObject, ...] = field(repr=False)
    chunks: tuple[StoredChunk, ...] = field(repr=False)
    files: tuple[StoredFile, ...] = field(repr=False)


def new_objects(files: Sequence[ScannedFile], places: Mapping[bytes, Place]) -> list[NewObject]:
    """The objects with each chunk that has no place yet, once, in the order of the files.

    A chunk of SMALL_CHUNK_BYTES or more is one of its own; smaller ones fill packs of up to MAX_OBJECT_BYTES.
    """
    made: list[NewObject] = []
    pack: list[Piece] = []
    packed = 0
    seen: set[bytes] = set()
    for file in files:
        offset = 0
        for chunk in file.chunks:
            piece = Piece(chunk.sha256, chunk.size, file.source, offset)
            offset += chunk.size
            if chunk.sha256 in places or chunk.sha256 in seen:
                continue
            seen.add(chunk.sha256)
            if chunk.size >= SMALL_CHUNK_BYTES:
                made.append(NewObject((piece,)))
                continue
            if packed + chunk.size > MAX_OBJECT_BYTES:
                made.append(NewObject(tuple(pack)))
                pack, packed = [], 0
            pack.append(piece)
            packed += chunk.size
    if pack:
        made.append(NewObject(tuple(pack)))
    return made


def lay_out(files: Sequence[ScannedFile], places: Mapping[bytes, Place], new: Sequence[NamedObject]) -> Layout:
    """Every chunk of the files, each once, in objects that are there and objects that are to be put."""
    where = dict(places)
    for put in new:
        offset = 0
        for piece in put.content.pieces:
            where[piece.sha256] = Place(put.key, put.size, offset)
            offset += piece.size
    objects: dict[str, int] = {}
    sizes: list[int] = []
    chunk_of: dict[bytes, int] = {}
    chunks: list[StoredChunk] = []

    def index_of(sha256: bytes, size: int) -> int:
        if sha256 not in chunk_of:
            place = where[sha256]
            if place.key not in objects:
                objects[place.key] = len(sizes)
                sizes.append(place.object_size)
            chunk_of[sha256] = len(chunks)
            chunks.append(StoredChunk(sha256, size, objects[place.key], place.offset))
        return chunk_of[sha256]

    stored = tuple(
        StoredFile(
            file.source.path,
            file.source.size,
            file.sha256,
            tuple(index_of(chunk.sha256, chunk.size) for chunk in file.chunks),
        )
        for file in files
    )
    return Layout(tuple(map(StoredObject, objects, sizes)), tuple(chunks), stored)
