"""What is live in storage: the mark of a collection. It only reads.

Intents come first, then versions, then their manifests. A push drops its intent once its version is there, so a push
that is missed among the intents is found among the versions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from headpond.errors import BlobCorrupt, BlobMissing, VersionUnusable
from headpond_workers.checkpoints.document_io import checked
from headpond_workers.checkpoints.names import CHUNKS, INTENTS, epoch_of, intent_key
from headpond_workers.checkpoints.parallel import in_parallel
from headpond_workers.checkpoints.pushes.intent import MAX_INTENT_BYTES, Intent
from headpond_workers.checkpoints.registry import Registry, VersionAt
from headpond_workers.checkpoints.version_document import VersionDocument, VersionState
from headpond_workers.storage.blobs import Blobs

MODELS = "models/"
_VERSION = re.compile(r"models/([^/]+)/versions/([0-9]{10})")
_MANIFEST = re.compile(r"models/[^/]+/manifests/[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Mark:
    """live: keys of manifests and of objects that something leads to. headless: pending versions without a manifest,
    whose push was given up before it made them: nothing will complete them."""

    live: frozenset[str] = field(repr=False)
    intents: tuple[Intent, ...] = field(repr=False)
    versions: tuple[VersionAt, ...] = field(repr=False)
    headless: tuple[VersionAt, ...] = ()

    @property
    def has_quarantined(self) -> bool:
        return any(at.document.state is VersionState.QUARANTINED for at in self.versions)


def mark(blobs: Blobs, *, threads: int) -> Mark:
    """Raises BlobCorrupt and UnsupportedSchema for a document that cannot be read: then nothing is known to be dead."""
    intents = read_intents(blobs, threads=threads)
    live = {key for intent in intents for key in intent.objects}
    versions = read_versions(blobs, threads=threads)
    headless = []
    alive = [at for at in versions if at.document.state is not VersionState.DELETED]
    for at, objects in zip(alive, in_parallel(lambda at: _objects(blobs, at), alive, threads=threads), strict=True):
        if objects is None:
            headless.append(at)
            continue
        live.add(at.document.manifest)
        live.update(objects)
    return Mark(frozenset(live), tuple(intents), tuple(versions), tuple(headless))


def read_intents(blobs: Blobs, *, threads: int) -> list[Intent]:
    """All that are there."""
    keys = list(blobs.list_keys(INTENTS))
    return [intent for intent in in_parallel(lambda key: _intent(blobs, key), keys, threads=threads) if intent]


def read_intent(blobs: Blobs, push: str) -> Intent | None:
    """That of one push. None: there is none."""
    return _intent(blobs, intent_key(push))


def read_versions(blobs: Blobs, *, threads: int) -> list[VersionAt]:
    """Of every model, in whatever state."""
    names = [match for key in blobs.list_keys(MODELS) if (match := _VERSION.fullmatch(key))]
    return list(
        in_parallel(lambda match: Registry(blobs, match[1], writer="-").read(int(match[2])), names, threads=threads)
    )


def collectable(blobs: Blobs) -> Iterator[tuple[str, int]]:
    """Everything that a collection may remove if nothing leads to it, with its bytes."""
    for key, size in blobs.list_sizes(CHUNKS):
        if epoch_of(key) is not None:
            yield key, size
    for key, size in blobs.list_sizes(MODELS):
        if _MANIFEST.fullmatch(key):
            yield key, size


def _intent(blobs: Blobs, key: str) -> Intent | None:
    try:
        blob = blobs.get(key, max_bytes=MAX_INTENT_BYTES)
    except BlobMissing:
        return None  # Its push ended since the listing.
    return checked(key, lambda: Intent.unpack(blob.body))


def _objects(blobs: Blobs, at: VersionAt) -> list[str] | None:
    """None: a pending version without a manifest. Raises VersionUnusable if nobody knows any more what it needs."""
    document = at.document
    registry = Registry(blobs, document.model, writer="-")
    try:
        manifest = registry.manifest_of(document)
    except BlobMissing as error:
        if document.state is VersionState.PENDING:
            return None
        if registry.read(document.number).document.state is VersionState.DELETED:
            return []  # Since it was read; another collector was faster.
        raise _unknown(document, "is lost") from error
    except BlobCorrupt as error:
        raise _unknown(document, "is damaged") from error
    return [stored.key for stored in manifest.objects]


def _unknown(document: VersionDocument, what: str) -> VersionUnusable:
    return VersionUnusable(
        f"{document.model}@{document.number}",
        f"its manifest {document.manifest} {what}, so what it needs is not known and nothing is collected. The version "
        f"cannot be used any more; delete it with: headpond models delete {document.model} {document.number}",
    )
