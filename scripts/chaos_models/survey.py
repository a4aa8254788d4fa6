"""Reads all of storage: each document, and each byte of each version, by the page on the format alone.

It uses the classes of the documents, and nothing of what pushes, pulls, verifies and collects.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from found import AliasFound, Hashes, MoveFound, Survey, VersionFound
from weights import MODELS

from headpond.errors import BlobError, BlobMissing, MalformedDocument, VersionMissing
from headpond_workers.checkpoints.alias_document import MAX_ALIAS_BYTES, AliasDocument
from headpond_workers.checkpoints.collection.gc_documents import MAX_GC_BYTES, GcState
from headpond_workers.checkpoints.manifest import MAX_OBJECT_BYTES, Manifest, StoredFile
from headpond_workers.checkpoints.names import CHUNKS, GC_STATE, INTENTS, aliases_prefix
from headpond_workers.checkpoints.pushes.intent import MAX_INTENT_BYTES, Intent
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.version_document import VersionDocument, VersionState
from headpond_workers.storage.blobs import Blobs

T = TypeVar("T")
WRITER = "scripts/chaos models"


def take_survey(blobs: Blobs, models: Sequence[str] = MODELS) -> Survey:
    """Only while no other process writes. Raises StorageUnavailable."""
    return _Surveyor(blobs, models).survey()


class _Surveyor:
    def __init__(self, blobs: Blobs, models: Sequence[str]) -> None:
        self._blobs, self._models = blobs, models
        self._unreadable: list[str] = []
        self._needed: set[str] = set()
        self._objects: dict[str, bytes] = {}
        """Each is read once."""

    def survey(self) -> Survey:
        versions = [
            found for model in self._models for found in self._versions(Registry(self._blobs, model, writer=WRITER))
        ]
        aliases = [found for model in self._models for found in self._aliases(model)]
        intents = list(self._blobs.list_keys(INTENTS))
        promised: set[str] = set()
        for key in intents:
            if (intent := self._document(key, Intent.unpack, max_bytes=MAX_INTENT_BYTES)) is not None:
                promised.update(intent.objects)
        manifests = {key for model in self._models for key in self._blobs.list_keys(f"models/{model}/manifests/")}
        return Survey(
            versions=tuple(versions),
            aliases=tuple(aliases),
            intents=tuple(key.removeprefix(INTENTS) for key in intents),
            rounds=self._rounds(),
            stored=frozenset(manifests | set(self._blobs.list_keys(CHUNKS))),
            needed=frozenset(self._needed),
            reachable=frozenset(self._needed | promised),
            unreadable=tuple(self._unreadable),
            bytes_read=sum(map(len, self._objects.values())),
        )

    def _versions(self, registry: Registry) -> Iterator[VersionFound]:
        for number in registry.numbers():
            try:
                document = registry.read(number).document
            except (BlobError, MalformedDocument, VersionMissing) as error:
                self._unreadable.append(f"{registry.model}@{number}: {error}")
                continue
            yield self._version(registry, document)

    def _version(self, registry: Registry, document: VersionDocument) -> VersionFound:
        seen = VersionFound(document.model, document.number, document.state.value, document.note)
        if document.state is VersionState.DELETED:
            return seen
        self._needed.add(document.manifest)
        try:
            manifest = registry.manifest_of(document)
            self._needed.update(stored.key for stored in manifest.objects)
            return replace(seen, files=self._hashes(manifest))
        except (BlobError, MalformedDocument) as error:
            return replace(seen, broken=str(error))

    def _hashes(self, manifest: Manifest) -> Hashes:
        """Of files that are put together from the objects. Raises BlobMissing, BlobCorrupt."""
        return tuple((file.path, file.size, self._sha256(manifest, file)) for file in manifest.files)

    def _sha256(self, manifest: Manifest, file: StoredFile) -> str:
        digest = hashlib.sha256()
        for index in file.chunks:
            chunk = manifest.chunks[index]
            key = manifest.objects[chunk.object].key
            if key not in self._objects:
                self._objects[key] = self._blobs.get(key, max_bytes=MAX_OBJECT_BYTES).body
            digest.update(self._objects[key][chunk.offset : chunk.offset + chunk.size])
        return digest.hexdigest()

    def _aliases(self, model: str) -> Iterator[AliasFound]:
        for key in self._blobs.list_keys(aliases_prefix(model)):
            document = self._document(key, AliasDocument.unpack, max_bytes=MAX_ALIAS_BYTES)
            if document is not None:
                moves = tuple(MoveFound(move.seq, move.left, move.to) for move in document.history)
                yield AliasFound(model, document.alias, document.to, document.previous, document.seq, moves)

    def _rounds(self) -> tuple[int, ...]:
        state = self._document(GC_STATE, GcState.unpack, max_bytes=MAX_GC_BYTES, may_miss=True)
        return () if state is None else tuple(one.number for one in state.rounds)

    def _document(self, key: str, unpack: Callable[[bytes], T], *, max_bytes: int, may_miss: bool = False) -> T | None:
        try:
            return unpack(self._blobs.get(key, max_bytes=max_bytes).body)
        except BlobMissing as error:
            if not may_miss:
                self._unreadable.append(str(error))
        except (BlobError, MalformedDocument) as error:
            self._unreadable.append(f"{key}: {error}")
        return None
