"""What storage has of a model before a push: its versions, and where chunks of theirs stand that may be used again."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, field

from headpond.errors import BlobCorrupt, BlobMissing
from headpond_workers.checkpoints.collection.gc_state import FIRST_EPOCH, GcStore
from headpond_workers.checkpoints.manifest import Manifest
from headpond_workers.checkpoints.names import GC_STATE
from headpond_workers.checkpoints.parallel import THREADS, in_parallel
from headpond_workers.checkpoints.pushes.known_files import KnownFile, files_of
from headpond_workers.checkpoints.registry import Registry, VersionAt
from headpond_workers.checkpoints.version_document import VersionDocument, VersionState

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Collected:
    """What `gc/state` says to a push. txn: of the state; empty if there is none. condemned: keys that no plan uses."""

    txn: str = ""
    epoch: int = FIRST_EPOCH
    condemned: frozenset[str] = field(default=frozenset(), repr=False)


@dataclass(frozen=True, slots=True)
class Versions:
    """The versions of a model that could be read, by number. unreadable: the errors of the others."""

    all: tuple[VersionAt, ...] = field(repr=False)
    unreadable: tuple[BlobCorrupt, ...] = ()

    def of(self, state: VersionState) -> list[VersionDocument]:
        """Those in one state, the newest first."""
        return [at.document for at in reversed(self.all) if at.document.state is state]

    @property
    def newest(self) -> VersionDocument | None:
        """The newest complete one."""
        return next(iter(self.of(VersionState.COMPLETE)), None)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk stands: in which object, of how many bytes, from which byte on."""

    key: str
    object_size: int
    offset: int


@dataclass(frozen=True, slots=True)
class StoredChunks:
    """places: by SHA-256 (32 bytes) of the chunk. doubtful: objects of quarantined versions; some are damaged."""

    places: dict[bytes, Place] = field(repr=False)
    doubtful: frozenset[str] = field(repr=False)


def read_collected(registry: Registry) -> Collected:
    """Read this before the versions: what a round took away in between is then told by the txn, which is another."""
    store = GcStore(registry.blobs, writer=registry.writer)
    seen = ""
    while (at := store.read()) is not None:
        try:
            lists = [store.condemned(each) for each in at.state.rounds]
        except BlobMissing as error:
            if at.state.txn == seen:
                raise BlobCorrupt(error.key, f"it is gone, and {GC_STATE} names it") from error
            seen = at.state.txn  # a round ended just now, and its list with it
            continue
        return Collected(at.state.txn, at.state.epoch, frozenset(key for keys in lists for key in keys))
    return Collected()


def read_gc_txn(registry: Registry) -> str:
    """As in `Collected`."""
    at = GcStore(registry.blobs, writer=registry.writer).read()
    return "" if at is None else at.state.txn


def read_versions(registry: Registry) -> Versions:
    """A document that is damaged stands in nobody's way."""
    found = in_parallel(lambda number: _read(registry, number), registry.numbers(), threads=THREADS)
    read: list[VersionAt] = []
    unreadable: list[BlobCorrupt] = []
    for at in found:
        if isinstance(at, BlobCorrupt):
            unreadable.append(at)
        else:
            read.append(at)
    return Versions(tuple(read), tuple(unreadable))


def _read(registry: Registry, number: int) -> VersionAt | BlobCorrupt:
    try:
        return registry.read(number)
    except BlobCorrupt as error:
        logger.warning("version_unreadable model=%s number=%d error=%s", registry.model, number, error)
        return error


def find_chunks(registry: Registry, versions: Versions, wanted: Collection[bytes], gc: Collected) -> StoredChunks:
    """Where complete versions have the wanted chunks (SHA-256, 32 bytes), in objects that nothing speaks against."""
    doubtful = {
        stored.key
        for document in versions.of(VersionState.QUARANTINED)
        if (manifest := _manifest(registry, document)) is not None
        for stored in manifest.objects
    }
    left = set(wanted)
    places: dict[bytes, Place] = {}
    for document in versions.of(VersionState.COMPLETE):
        manifest = _manifest(registry, document) if left else None
        if manifest is None:
            continue
        unusable = [stored.key in gc.condemned or stored.key in doubtful for stored in manifest.objects]
        for chunk in manifest.chunks:
            if chunk.sha256 in left and not unusable[chunk.object]:
                stored = manifest.objects[chunk.object]
                places[chunk.sha256] = Place(stored.key, stored.size, chunk.offset)
                left.discard(chunk.sha256)
    return StoredChunks(places, frozenset(doubtful))


def newest_files(registry: Registry) -> dict[str, KnownFile]:
    """Files of the newest complete version, by path; none if there is none, or its documents cannot be read."""
    for number in reversed(registry.numbers()):
        at = _read(registry, number)
        if isinstance(at, VersionAt) and at.document.state is VersionState.COMPLETE:
            manifest = _manifest(registry, at.document)
            return {} if manifest is None else files_of(manifest)
    return {}


def _manifest(registry: Registry, document: VersionDocument) -> Manifest | None:
    """None for one that is damaged or gone: then its chunks are sent anew."""
    try:
        return registry.manifest_of(document)
    except (BlobCorrupt, BlobMissing) as error:
        logger.warning("manifest_unreadable model=%s number=%d error=%s", registry.model, document.number, error)
        return None
