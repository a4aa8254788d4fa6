"""The versions of one model in storage: found by number, read with their manifests, moved from state to state."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from headpond.errors import (
    BlobChanged,
    BlobCorrupt,
    BlobMissing,
    MalformedDocument,
    UnsupportedSchema,
    VersionMissing,
    VersionUnusable,
)
from headpond_workers.checkpoints.manifest import MAX_MANIFEST_BYTES, Manifest
from headpond_workers.checkpoints.names import version_key, versions_prefix
from headpond_workers.checkpoints.version_document import (
    MAX_NOTE_CHARS,
    MAX_VERSION_BYTES,
    VersionDocument,
    VersionState,
)
from headpond_workers.persistence.blobs import Blobs

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class VersionAt:
    """A version document as it was read. etag: names this very body in a swap."""

    document: VersionDocument
    etag: str


class Registry:
    """Of one model. writer: who is written into documents. Any call may raise StorageUnavailable.

    A document that cannot be read is BlobCorrupt with its key; one of a newer release UnsupportedSchema.
    """

    def __init__(self, blobs: Blobs, model: str, *, writer: str) -> None:
        self.blobs, self.model, self.writer = blobs, model, writer

    def numbers(self) -> list[int]:
        """Every number that was given, rising."""
        prefix = versions_prefix(self.model)
        return sorted(int(key[len(prefix) :]) for key in self.blobs.list_keys(prefix) if key[len(prefix) :].isdigit())

    def all(self) -> Iterator[VersionAt]:
        """Every version in whatever state, by number."""
        for number in self.numbers():
            yield self.read(number)

    def read(self, number: int) -> VersionAt:
        """Raises VersionMissing."""
        key = version_key(self.model, number)
        try:
            blob = self.blobs.get(key, max_bytes=MAX_VERSION_BYTES)
        except BlobMissing as error:
            raise VersionMissing(
                f"{self.model}@{number}",
                f"there is no such version. List them with: headpond models versions {self.model}",
            ) from error
        document = checked(key, lambda: VersionDocument.unpack(blob.body))
        if (document.model, document.number) != (self.model, number):
            raise BlobCorrupt(key, f"it is of {document.model}@{document.number}")
        return VersionAt(document, blob.etag)

    def complete(self, number: int) -> VersionDocument:
        """A version that can be used. Raises VersionMissing, VersionUnusable."""
        document = self.read(number).document
        if document.state is not VersionState.COMPLETE:
            reason = f": {document.reason}" if document.reason else ""
            raise VersionUnusable(f"{self.model}@{number}", f"the version is {document.state}{reason}")
        return document

    def manifest_of(self, document: VersionDocument) -> Manifest:
        """Raises BlobCorrupt, also if it is not the manifest that the version was made with."""
        blob = self.blobs.get(document.manifest, max_bytes=MAX_MANIFEST_BYTES)
        if hashlib.sha256(blob.body).digest() != document.manifest_digest:
            raise BlobCorrupt(document.manifest, f"it is not the manifest of {self.model}@{document.number}")
        manifest = checked(document.manifest, lambda: Manifest.unpack(blob.body))
        if manifest.model_digest != document.model_digest:
            raise BlobCorrupt(document.manifest, f"its files are not those of {self.model}@{document.number}")
        return manifest

    def swap(self, at: VersionAt, state: VersionState, *, reason: str = "") -> VersionAt:
        """Move a version to another state. Raises BlobChanged if it is no longer what was read.

        reason: why, cut to what a document holds.
        """
        document = replace(
            at.document,
            state=state,
            reason=reason[:MAX_NOTE_CHARS],
            txn=new_txn(),
            created_ms=now_ms(),
            writer=self.writer,
        )
        key = version_key(self.model, document.number)
        return VersionAt(document, self.blobs.put_if(key, document.pack(), etag=at.etag))

    def quarantine(self, number: int, *, reason: str) -> None:
        """A complete version is never loaded again; one in any other state stays as it is."""
        while (at := self.read(number)).document.state is VersionState.COMPLETE:
            try:
                self.swap(at, VersionState.QUARANTINED, reason=reason)
            except BlobChanged:
                continue


def new_txn() -> str:
    return secrets.token_hex(16)


def now_ms() -> int:
    return int(time.time() * 1000)


def checked(key: str, unpack: Callable[[], T]) -> T:
    """What `unpack` makes of an object. Raises BlobCorrupt with its key for what is no such document."""
    try:
        return unpack()
    except UnsupportedSchema:
        raise
    except MalformedDocument as error:
        raise BlobCorrupt(key, str(error)) from error
