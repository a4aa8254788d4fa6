"""What versions of models take in storage, and what of it can be collected. It only reads."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from headpond.errors import BlobCorrupt, BlobMissing
from headpond_workers.checkpoints.collection.gc_documents import Round
from headpond_workers.checkpoints.collection.gc_mark import collectable, mark
from headpond_workers.checkpoints.collection.gc_state import FIRST_EPOCH, GcStore
from headpond_workers.checkpoints.names import epoch_of
from headpond_workers.checkpoints.parallel import THREADS
from headpond_workers.checkpoints.version_document import VersionState
from headpond_workers.storage.blobs import Blobs


@dataclass(frozen=True, slots=True)
class Amount:
    objects: int
    bytes: int


@dataclass(frozen=True, slots=True)
class StorageStatus:
    """stored: objects that hold chunks. manifests: beside them. needed: those of `stored` that versions or pushes under
    way lead to. versions: how many in which state. version_bytes: of the files of all versions
    that are not deleted. condemned:
    waits for the end of its round. unreferenced: what a collection would condemn now."""

    stored: Amount
    manifests: Amount
    needed: Amount
    versions: dict[str, int]
    version_bytes: int
    intents: int
    epoch: int
    holder: str
    rounds: tuple[Round, ...]
    condemned: Amount
    unreferenced: Amount

    @property
    def dedup_ratio(self) -> float | None:
        """Bytes of the files of versions for each byte that is stored and needed; None without any."""
        return self.version_bytes / self.needed.bytes if self.needed.bytes else None


def storage_status(blobs: Blobs, *, writer: str, threads: int = THREADS) -> StorageStatus:
    """Raises BlobCorrupt, UnsupportedSchema and VersionUnusable for what cannot be read."""
    store = GcStore(blobs, writer=writer)
    at = store.read()
    rounds = at.state.rounds if at is not None else ()
    known = mark(blobs, threads=threads)
    sizes = dict(collectable(blobs))
    listed: set[str] = set()
    for round_ in rounds:
        try:
            listed.update(store.condemned(round_))
        except (BlobMissing, BlobCorrupt):
            continue  # The next collection condemns anew what it named.
    dead = [key for key in sizes if key not in known.live]
    chunks = [key for key in sizes if epoch_of(key) is not None]

    def amount(keys: list[str]) -> Amount:
        return Amount(len(keys), sum(sizes[key] for key in keys))

    documents = [version.document for version in known.versions]
    return StorageStatus(
        stored=amount(chunks),
        manifests=amount([key for key in sizes if epoch_of(key) is None]),
        needed=amount([key for key in chunks if key in known.live]),
        versions=dict(Counter(document.state.value for document in documents)),
        version_bytes=sum(d.size_bytes for d in documents if d.state is not VersionState.DELETED),
        intents=len(known.intents),
        epoch=at.state.epoch if at is not None else FIRST_EPOCH,
        holder=at.state.holder if at is not None else "",
        rounds=rounds,
        condemned=amount([key for key in dead if key in listed]),
        unreferenced=amount([key for key in dead if key not in listed]),
    )
