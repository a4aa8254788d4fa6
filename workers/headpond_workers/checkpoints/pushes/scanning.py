"""The digests of files and of their chunks, in one pass over the bytes.

What the newest version has already is told by its chunks (`known_files`). Of any other file one thread reads, one
hashes it as a whole, one its chunks: hashlib lets go of the interpreter, so two cores are busy. Memory is that of three
buffers, however large the files are.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

from headpond.errors import ModelFileError
from headpond_workers.checkpoints.manifest import MAX_CHUNK_BYTES, MAX_CHUNKS, digest_of_files
from headpond_workers.checkpoints.pushes.cuts import content_cuts, known_cuts
from headpond_workers.checkpoints.pushes.known_files import CutChunk, KnownFile, OnBytes, find_same
from headpond_workers.checkpoints.pushes.source_files import Source, SourceFile, opened, read_range

BUFFER_BYTES = MAX_CHUNK_BYTES
BUFFERS = 3
"""One is read into while the two before it are hashed."""


@dataclass(frozen=True, slots=True)
class ScannedFile:
    """A file with its digest (32 bytes) and its chunks, in order."""

    source: SourceFile
    sha256: bytes
    chunks: tuple[CutChunk, ...] = field(repr=False)


def digest_of(files: Sequence[ScannedFile]) -> str:
    """The digest of a version with these files, 64 hex digits."""
    return digest_of_files((file.source.path, file.source.size, file.sha256) for file in files)


def scan(source: Source, on_bytes: OnBytes, *, known: Mapping[str, KnownFile]) -> list[ScannedFile]:
    """Cut and hash every file. Raises ModelFileError for one that is refused, or changes meanwhile.

    known: files of a version, by path. What has the same bytes is cut as it was then, and each byte is hashed once.
    """
    # All headers first: what is refused is told before minutes of hashing.
    cuts = [known_cuts(file.at, file.size) for file in source.files]
    with _Lanes() as lanes:
        hashed = [_hash(lanes, file, sizes, known, on_bytes) for file, sizes in zip(source.files, cuts, strict=True)]
        files = [each.result() for each in hashed]
    count = sum(len(file.chunks) for file in files)
    if count > MAX_CHUNKS:
        raise ModelFileError(f"{source.root} is cut into {count} chunks; a version has at most {MAX_CHUNKS}.")
    return files


def _hash(
    lanes: _Lanes, file: SourceFile, cuts: list[int] | None, known: Mapping[str, KnownFile], on_bytes: OnBytes
) -> _Hashing | _Same:
    told = _Beyond(on_bytes)
    same = find_same(file, known, told.first)
    return _read(lanes, file, cuts, told.again) if same is None else _Same(file, same)


class _Beyond:
    """Progress of a file that may be read from its start once more: no byte counts twice."""

    def __init__(self, on_bytes: OnBytes) -> None:
        self._on_bytes, self._told, self._lock = on_bytes, 0, threading.Lock()

    def first(self, count: int) -> None:
        with self._lock:
            self._told += count
        self._on_bytes(count)

    def again(self, count: int) -> None:
        counted = min(count, self._told)
        self._told -= counted
        if count > counted:
            self._on_bytes(count - counted)


@dataclass(frozen=True, slots=True)
class _Same:
    """A file that is known."""

    file: SourceFile
    known: KnownFile

    def result(self) -> ScannedFile:
        return ScannedFile(self.file, self.known.sha256, self.known.chunks)


@dataclass(slots=True)
class _Hashing:
    """A file that was read, and what is still hashed of it."""

    file: SourceFile
    whole: Any
    waited: list[Future[None]] = field(default_factory=list)
    chunks: list[Future[list[CutChunk]]] = field(default_factory=list)

    def result(self) -> ScannedFile:
        for update in self.waited:
            update.result()
        chunks = tuple(chunk for part in self.chunks for chunk in part.result())
        return ScannedFile(self.file, self.whole.digest(), chunks)


class _Buffer:
    def __init__(self) -> None:
        self.view = memoryview(bytearray(BUFFER_BYTES))
        self.users: list[Future[Any]] = []


class _Lanes:
    """Two threads that hash, and the buffers that they hash from."""

    def __init__(self) -> None:
        self._files = ThreadPoolExecutor(1, "hash-files")
        self._chunks = ThreadPoolExecutor(1, "hash-chunks")
        self._ring = cycle([_Buffer() for _ in range(BUFFERS)])

    def __enter__(self) -> _Lanes:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._files, self._chunks):
            pool.shutdown(cancel_futures=True)

    def free(self) -> _Buffer:
        """The next buffer, once nobody hashes from it any more."""
        buffer = next(self._ring)
        for user in buffer.users:
            user.result()
        buffer.users.clear()
        return buffer

    def hash(self, buffer: _Buffer, sizes: list[int], of: _Hashing) -> None:
        """Hash the first bytes of a buffer: as part of a file, and as chunks of these sizes."""
        content = buffer.view[: sum(sizes)]
        update = self._files.submit(of.whole.update, content)
        chunks = self._chunks.submit(_hash_chunks, content, sizes)
        buffer.users += [update, chunks]
        # One thread runs them in order: once the last has run, all have.
        of.waited[:] = [update]
        of.chunks.append(chunks)


def _read(lanes: _Lanes, file: SourceFile, cuts: list[int] | None, on_bytes: OnBytes) -> _Hashing:
    hashing = _Hashing(file, hashlib.sha256())
    with opened(file) as descriptor:
        if cuts is None:
            _read_by_content(lanes, hashing, descriptor, on_bytes)
        else:
            at = 0
            for sizes in _buffersful(cuts):
                buffer, length = lanes.free(), sum(sizes)
                read_range(descriptor, buffer.view[:length], at, of=file)
                lanes.hash(buffer, sizes, hashing)
                at += length
                on_bytes(length)
    return hashing


def _read_by_content(lanes: _Lanes, hashing: _Hashing, descriptor: int, on_bytes: OnBytes) -> None:
    file, at, rest = hashing.file, 0, memoryview(b"")
    while at < file.size or rest:
        buffer, kept = lanes.free(), len(rest)
        buffer.view[:kept] = rest
        length = min(BUFFER_BYTES - kept, file.size - at)
        read_range(descriptor, buffer.view[kept : kept + length], at, of=file)
        at += length
        content = buffer.view[: kept + length]
        sizes = content_cuts(content, last=at == file.size)
        lanes.hash(buffer, sizes, hashing)
        rest = content[sum(sizes) :]
        on_bytes(length)


def _buffersful(cuts: list[int]) -> Iterator[list[int]]:
    """Neighbouring chunks, as many as one buffer holds."""
    sizes: list[int] = []
    total = 0
    for size in cuts:
        if total + size > BUFFER_BYTES:
            yield sizes
            sizes, total = [], 0
        sizes.append(size)
        total += size
    if sizes:
        yield sizes


def _hash_chunks(content: memoryview, sizes: list[int]) -> list[CutChunk]:
    found, at = [], 0
    for size in sizes:
        found.append(CutChunk(hashlib.sha256(content[at : at + size]).digest(), size))
        at += size
    return found
