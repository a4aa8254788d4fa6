"""Numbers of versions: taken one after the other by any number of pushes, and completed by whoever took them."""

from __future__ import annotations

import logging
from collections.abc import Callable

from headpond.errors import BlobChanged, PushOvertaken, StorageUnavailable, VersionMissing
from headpond_workers.checkpoints.names import intent_key, version_key
from headpond_workers.checkpoints.registry import Registry, VersionAt
from headpond_workers.checkpoints.version_document import VersionDocument, VersionState

logger = logging.getLogger(__name__)
TRIES = 3
"""Of a write whose outcome is unknown, after all that the storage port tried."""
NOBODY_COMPLETES = "its push took so long that a collector dropped its intent"


def take_number(registry: Registry, draft: Callable[[int], VersionDocument]) -> VersionAt:
    """Create the version document of a push under the first free number. draft: the document with a given number.

    Whose a number is that is taken is told by the txn of its push, so a reply that was lost takes no second one.
    """
    number = max(registry.numbers(), default=0) + 1
    tries = 0
    while True:
        document = draft(number)
        try:
            etag = registry.blobs.put_new(version_key(registry.model, number), document.pack())
            return VersionAt(document, etag)
        except BlobChanged:
            found = registry.read(number)
        except StorageUnavailable:
            tries += 1
            if tries >= TRIES:
                raise
            seen = _read_or_none(registry, number)
            if seen is None:
                continue  # the same body again: if the first arrives late, it is the same document
            found = seen
        if found.document.push == document.push:
            return found
        number += 1


def complete(registry: Registry, at: VersionAt) -> VersionAt:
    """Make a pending version complete, if the intent of its push is still there; then it is acknowledged.

    Safe for any number of processes at once. Raises PushOvertaken, having made the version `deleted`, if a collector
    took the push for dead.
    """
    tries = 0
    while at.document.state is VersionState.PENDING:
        alive = registry.blobs.size_of(intent_key(at.document.push)) is not None
        wanted = VersionState.COMPLETE if alive else VersionState.DELETED
        try:
            at = registry.swap(at, wanted, reason="" if alive else NOBODY_COMPLETES)
        except BlobChanged:
            at = registry.read(at.document.number)
        except StorageUnavailable:
            tries += 1
            if tries >= TRIES:
                raise
            at = registry.read(at.document.number)
    if at.document.state is VersionState.DELETED:
        raise PushOvertaken(intent_key(at.document.push))
    return at


def _read_or_none(registry: Registry, number: int) -> VersionAt | None:
    try:
        return registry.read(number)
    except VersionMissing:
        return None
