"""Files that storage has already, told by their chunks alone.

Two files of one size whose chunks have the same digests and sizes in the same order are the same file, so its own
digest is what the manifest says: every byte is hashed, but once. Chunks are hashed side by side, as a whole file cannot
be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from headpond_workers.checkpoints.manifest import Manifest
from headpond_workers.checkpoints.parallel import in_parallel
from headpond_workers.checkpoints.pushes.source_files import SourceFile, opened, read_range

HASHERS = 2
READ_BYTES = 1 << 20
"""At a time: what was read is still in the cache of the core that hashes it."""
OnBytes = Callable[[int], None]
"""Is told how many more bytes are done."""


@dataclass(frozen=True, slots=True)
class CutChunk:
    """A chunk as it was cut. sha256: 32 bytes."""

    sha256: bytes
    size: int


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A file of a version. sha256: 32 bytes."""

    size: int
    sha256: bytes
    chunks: tuple[CutChunk, ...] = field(repr=False)


def files_of(manifest: Manifest) -> dict[str, KnownFile]:
    """By path."""
    chunks = [CutChunk(chunk.sha256, chunk.size) for chunk in manifest.chunks]
    return {
        file.path: KnownFile(file.size, file.sha256, tuple(chunks[index] for index in file.chunks))
        for file in manifest.files
    }


def find_same(file: SourceFile, known: Mapping[str, KnownFile], on_bytes: OnBytes) -> KnownFile | None:
    """The file of that path, if this one has its bytes. It ends at the first chunk that differs.

    Raises ModelFileError if the file is no longer what was listed.
    """
    found = known.get(file.path)
    if found is None or found.size != file.size:
        return None
    threads = max(1, min(HASHERS, len(found.chunks)))
    with opened(file) as descriptor:
        comparison = _Comparison(descriptor, file, found.chunks, on_bytes, stride=threads)
        same = list(in_parallel(comparison.run, range(threads), threads=threads))
    return found if all(same) else None


class _Comparison:
    """Of a file with chunks that are known. stride: of how many threads each takes its share."""

    def __init__(
        self, descriptor: int, file: SourceFile, chunks: Sequence[CutChunk], on_bytes: OnBytes, *, stride: int
    ) -> None:
        self._descriptor, self._file, self._chunks, self._on_bytes = descriptor, file, chunks, on_bytes
        self._stride = stride
        self._offsets = [0, *accumulate(chunk.size for chunk in chunks)]
        self._differs = False

    def run(self, first: int) -> bool:
        """Whether all chunks from the `first` on that this thread takes are the same."""
        buffer = memoryview(bytearray(READ_BYTES))
        for number in range(first, len(self._chunks), self._stride):
            if self._differs:
                return False
            chunk = self._chunks[number]
            if self._digest(self._offsets[number], chunk.size, buffer) != chunk.sha256:
                self._differs = True
                return False
            self._on_bytes(chunk.size)
        return True

    def _digest(self, offset: int, size: int, buffer: memoryview) -> bytes:
        digest = hashlib.sha256()
        for at in range(offset, offset + size, READ_BYTES):
            part = buffer[: min(READ_BYTES, offset + size - at)]
            read_range(self._descriptor, part, at, of=self._file)
            digest.update(part)
        return digest.digest()
