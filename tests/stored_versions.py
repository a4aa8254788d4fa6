"""Versions put into storage document by document, for tests of those who read them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from headpond_workers.checkpoints.alias_document import AliasDocument, Trial
from headpond_workers.checkpoints.manifest import Manifest, StoredChunk, StoredFile, StoredObject
from headpond_workers.checkpoints.names import alias_key, chunk_key, manifest_key, version_key
from headpond_workers.checkpoints.registry import Registry, new_txn, now_ms
from headpond_workers.checkpoints.version_document import VersionDocument, VersionState
from headpond_workers.storage.blobs import Blobs

CHUNK_BYTES = 64 << 10
PACK_BYTES = 1 << 20


@dataclass(frozen=True)
class StoredVersion:
    """What was put. files: by path."""

    registry: Registry
    document: VersionDocument
    manifest: Manifest
    files: Mapping[str, bytes]

    @property
    def number(self) -> int:
        return self.document.number

    def key_of(self, path: str, index: int = 0) -> str:
        """Of the object that holds one chunk of a file."""
        (file,) = (file for file in self.manifest.files if file.path == path)
        return self.manifest.objects[self.manifest.chunks[file.chunks[index]].object].key


def bytes_of(seed: str, size: int) -> bytes:
    """The same for the same seed, and not compressible."""
    return hashlib.shake_128(seed.encode()).digest(size)


def put_version(
    blobs: Blobs,
    model: str,
    files: Mapping[str, bytes],
    *,
    number: int = 1,
    chunk_bytes: int = CHUNK_BYTES,
    pack_bytes: int = PACK_BYTES,
    state: VersionState = VersionState.COMPLETE,
) -> StoredVersion:
    """Cut files into chunks of one size, pack them in order, and write the documents. Nothing is put twice."""
    where: dict[bytes, int] = {}
    chunks: list[StoredChunk] = []
    packs: list[bytearray] = []
    stored: list[StoredFile] = []
    for path in sorted(files):
        indices = []
        for at in range(0, len(files[path]), chunk_bytes):
            part = files[path][at : at + chunk_bytes]
            sha256 = hashlib.sha256(part).digest()
            if sha256 not in where:
                if not packs or len(packs[-1]) + len(part) > pack_bytes:
                    packs.append(bytearray())
                where[sha256] = len(chunks)
                chunks.append(StoredChunk(sha256, len(part), len(packs) - 1, len(packs[-1])))
                packs[-1] += part
            indices.append(where[sha256])
        stored.append(StoredFile(path, len(files[path]), hashlib.sha256(files[path]).digest(), tuple(indices)))
    keys = [chunk_key(1, hashlib.sha256(pack).hexdigest()) for pack in packs]
    for key, pack in zip(keys, packs, strict=True):
        blobs.put_once(key, bytes(pack))
    manifest = Manifest(
        txn=new_txn(), created_ms=now_ms(), writer="the test", model=model,
        objects=tuple(StoredObject(key, len(pack)) for key, pack in zip(keys, packs, strict=True)),
        chunks=tuple(chunks), files=tuple(stored), engine="scripted", parent=number - 1,
    )  # fmt: skip
    return put_documents(blobs, manifest, files, number=number, state=state)


def put_documents(
    blobs: Blobs, manifest: Manifest, files: Mapping[str, bytes], *, number: int, state: VersionState
) -> StoredVersion:
    push, body = new_txn(), manifest.pack()
    key = manifest_key(manifest.model, push)
    blobs.put_once(key, body)
    document = VersionDocument(
        txn=new_txn(), created_ms=now_ms(), writer="the test", model=manifest.model, number=number, state=state,
        push=push, manifest=key, manifest_digest=hashlib.sha256(body).digest(), model_digest=manifest.model_digest,
        size_bytes=manifest.size_bytes, files=len(manifest.files), engine=manifest.engine, parent=number - 1,
    )  # fmt: skip
    blobs.put_new(version_key(manifest.model, number), document.pack())
    return StoredVersion(Registry(blobs, manifest.model, writer="the test"), document, manifest, files)


def put_alias(blobs: Blobs, model: str, alias: str, to: int, *, trial: int = 0) -> None:
    """trial: a version that is tried with a share of the jobs; 0 for none."""
    document = AliasDocument(
        txn=new_txn(), created_ms=now_ms(), writer="the test", model=model, alias=alias, to=to, previous=0, seq=1,
        trial=Trial(trial, 100, now_ms()) if trial else None,
    )  # fmt: skip
    blobs.put_new(alias_key(model, alias), document.pack())
