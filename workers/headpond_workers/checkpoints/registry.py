"""The versions of one model in storage: found by number, read with their manifests, moved from state to state."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

from headpond.errors import (
    BlobChanged,
    BlobCorrupt,
    BlobMissing,
    ConfigError,
    UnsupportedSchema,
    VersionMissing,
    VersionUnusable,
)
from headpond_workers.checkpoints.collection.gc_state import GcStore
from headpond_workers.checkpoints.document_io import checked, new_txn, now_ms
from headpond_workers.checkpoints.manifest import MAX_MANIFEST_BYTES, Manifest
from headpond_workers.checkpoints.names import version_key, versions_prefix
from headpond_workers.checkpoints.version_document import (
    MAX_NOTE_CHARS,
    MAX_VERSION_BYTES,
    VersionDocument,
    VersionState,
)
from headpond_workers.storage.blobs import Blobs

logger = logging.getLogger(__name__)

__all__ = ["Registry", "VersionAt", "checked", "new_txn", "now_ms"]


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

    def undo_deletion(self, at: VersionAt) -> VersionAt:
        """What is `deleting` becomes again what it was: quarantined if it has a reason, else complete. Only for a
        version that an alias names: it cannot be deleted. Raises BlobChanged."""
        before = VersionState.QUARANTINED if at.document.reason else VersionState.COMPLETE
        return self.swap(at, before, reason=at.document.reason)

    def quarantine(self, number: int, *, reason: str) -> bool:
        """A complete version is never loaded again; one in any other state stays as it is. Returns whether it was this
        call that quarantined it. reason: not empty.

        The epoch is raised first: a push of the same content would else find the damaged object there already, by the
        name that it is looking for. Where that cannot be done, for want of rights
        to `gc/state` say, the next collection does it.
        """
        raised = False
        while (at := self.read(number)).document.state is VersionState.COMPLETE:
            if not raised:
                raised = True
                try:
                    GcStore(self.blobs, writer=self.writer).raise_epoch()
                except (ConfigError, BlobCorrupt, UnsupportedSchema) as error:
                    logger.warning("epoch_not_raised model=%s version=%d error=%s", self.model, number, error)
            try:
                self.swap(at, VersionState.QUARANTINED, reason=reason or "damaged")
                return True
            except BlobChanged:
                continue
        return False
