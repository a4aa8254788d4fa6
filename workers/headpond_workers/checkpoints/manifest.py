"""The document `headpond/manifest`: which files a version has, and where their chunks stand. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from headpond.errors import MalformedDocument, ModelFileError
from headpond_workers.checkpoints.names import check_path
from headpond_workers.storage.sealed import MAX_TEXT, Fields, check_common, check_counts, check_texts, require, seal

SCHEMA = "headpond/manifest"
VERSION = 1
MAX_MANIFEST_BYTES = 64 << 20
MAX_CHUNK_BYTES = 16 << 20
MAX_OBJECT_BYTES = 16 << 20
SMALL_CHUNK_BYTES = 4 << 20
"""A smaller chunk goes into a pack."""
MAX_FILES = 1 << 16
MAX_CHUNKS = 1 << 21
MAX_PARAMETERS = 256
_HEX = re.compile(r"[0-9a-f]{64}")
SHA256_BYTES = 32


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """sha256: 32 bytes, of the chunk. object: index of its object in the manifest. offset: of its first byte there."""

    sha256: bytes
    size: int
    object: int
    offset: int


@dataclass(frozen=True, slots=True)
class StoredFile:
    """path: relative, see `names.check_path`. sha256: 32 bytes. chunks: indices in the manifest; their sizes add up to
    `size`."""

    path: str
    size: int
    sha256: bytes
    chunks: tuple[int, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class StoredObject:
    key: str
    size: int


@dataclass(frozen=True, slots=True)
class AdapterNote:
    """An adapter that belongs to a version. digest: of its weights."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Whatever it says of offsets and sizes fits together: who follows it reads inside its objects, and no more than
    its files have. Raises MalformedDocument otherwise. parent: number of a version; 0 for none."""

    txn: str
    created_ms: int
    writer: str
    model: str
    objects: tuple[StoredObject, ...] = field(repr=False)
    chunks: tuple[StoredChunk, ...] = field(repr=False)
    files: tuple[StoredFile, ...] = field(repr=False)
    engine: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    adapters: tuple[AdapterNote, ...] = ()
    parent: int = 0

    def __post_init__(self) -> None:
        check_common(SCHEMA, self.txn, self.created_ms, self.writer)
        check_texts(SCHEMA, model=self.model)
        check_counts(SCHEMA, parent=self.parent)
        require(0 < len(self.files) <= MAX_FILES, SCHEMA, f"{len(self.files)} files")
        require(len(self.chunks) <= MAX_CHUNKS, SCHEMA, f"{len(self.chunks)} chunks")
        require(len(self.parameters) <= MAX_PARAMETERS, SCHEMA, f"{len(self.parameters)} parameters")
        for stored in self.objects:
            require(0 < stored.size <= MAX_OBJECT_BYTES, SCHEMA, f"an object of {stored.size} bytes")
            check_texts(SCHEMA, key=stored.key)
        require(len({o.key for o in self.objects}) == len(self.objects), SCHEMA, "an object is named twice")
        for chunk in self.chunks:
            self._check_chunk(chunk)
        for file in self.files:
            self._check_file(file)
        paths = [file.path for file in self.files]
        require(paths == sorted(set(paths)), SCHEMA, "its files are not in order, each once")
        folders = {path[:at] for path in paths for at in range(len(path)) if path[at] == "/"}
        require(folders.isdisjoint(paths), SCHEMA, "a file stands where a folder is")
        for name, value in self.parameters.items():
            require(0 < len(name) <= MAX_TEXT and len(value) <= 4096, SCHEMA, f"the parameter {name[:60]!r}")
        for adapter in self.adapters:
            check_texts(SCHEMA, adapter=adapter.name, adapter_digest=adapter.digest)

    def _check_chunk(self, chunk: StoredChunk) -> None:
        require(len(chunk.sha256) == SHA256_BYTES, SCHEMA, "a chunk has no SHA-256")
        require(0 <= chunk.object < len(self.objects), SCHEMA, f"a chunk of the object {chunk.object}")
        end = chunk.offset + chunk.size
        fits = chunk.offset >= 0 and 0 < chunk.size <= MAX_CHUNK_BYTES and end <= self.objects[chunk.object].size
        require(fits, SCHEMA, f"a chunk at {chunk.offset}, {chunk.size} bytes, lies outside its object")

    def _check_file(self, file: StoredFile) -> None:
        try:
            check_path(file.path)
        except ModelFileError as error:
            raise MalformedDocument(SCHEMA, str(error)) from error
        require(len(file.sha256) == SHA256_BYTES, SCHEMA, f"{file.path!r} has no SHA-256")
        inside = all(0 <= index < len(self.chunks) for index in file.chunks)
        require(inside, SCHEMA, f"{file.path!r} has a chunk that is not there")
        total = sum(self.chunks[index].size for index in file.chunks)
        require(total == file.size, SCHEMA, f"the chunks of {file.path!r} have {total} bytes, not {file.size}")

    @property
    def model_digest(self) -> str:
        """64 hex digits: of its files alone, however they are cut and wherever they stand."""
        return digest_of_files((file.path, file.size, file.sha256) for file in self.files)

    @property
    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(file.size for file in self.files)

    def pack(self) -> bytes:
        return seal(
            SCHEMA,
            VERSION,
            {
                "txn": self.txn,
                "created_ms": self.created_ms,
                "writer": self.writer,
                "model": self.model,
                "model_digest": self.model_digest,
                "objects": [stored.key for stored in self.objects],
                "sizes": [stored.size for stored in self.objects],
                "chunks": [
                    {"sha256": c.sha256, "size": c.size, "object": c.object, "offset": c.offset} for c in self.chunks
                ],
                "files": [
                    {"path": f.path, "size": f.size, "sha256": f.sha256, "chunks": list(f.chunks)} for f in self.files
                ],
                "engine": self.engine,
                "parameters": dict(self.parameters),
                "adapters": [{"name": a.name, "digest": a.digest} for a in self.adapters],
                "parent": self.parent,
            },
            max_bytes=MAX_MANIFEST_BYTES,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Raises MalformedDocument, UnsupportedSchema."""
        fields = Fields.unseal(data, schema=SCHEMA, v=VERSION, max_bytes=MAX_MANIFEST_BYTES)
        keys, sizes = fields.take_list("objects", str), fields.take_list("sizes", int)
        require(len(keys) == len(sizes), SCHEMA, f"{len(keys)} objects have {len(sizes)} sizes")
        parameters = fields.take("parameters", dict)
        texts = all(type(name) is str and type(value) is str for name, value in parameters.items())
        require(texts, SCHEMA, "a parameter is no text")
        found = cls(
            txn=fields.take("txn", str),
            created_ms=fields.take("created_ms", int),
            writer=fields.take("writer", str),
            model=fields.take("model", str),
            objects=tuple(map(StoredObject, keys, sizes)),
            chunks=tuple(
                StoredChunk(c.take("sha256", bytes), c.take("size", int), c.take("object", int), c.take("offset", int))
                for c in fields.take_maps("chunks")
            ),
            files=tuple(
                StoredFile(
                    f.take("path", str), f.take("size", int), f.take("sha256", bytes), tuple(f.take_list("chunks", int))
                )
                for f in fields.take_maps("files")
            ),
            engine=fields.take_optional("engine", str),
            parameters=parameters,
            adapters=tuple(
                AdapterNote(a.take("name", str), a.take("digest", str)) for a in fields.take_maps("adapters")
            ),
            parent=fields.take("parent", int),
        )
        require(fields.take("model_digest", str) == found.model_digest, SCHEMA, "its digest is not that of its files")
        return found


def digest_of_files(files: Iterable[tuple[str, int, bytes]]) -> str:
    """The digest of a version, 64 hex digits. files: path, size in bytes, SHA-256 (32 bytes) of each."""
    lines = sorted(f"{path}\0{size}\0{sha256.hex()}\n" for path, size, sha256 in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def is_digest(text: str) -> bool:
    return _HEX.fullmatch(text) is not None
