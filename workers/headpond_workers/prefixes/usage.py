"""What stored prefixes take, on this machine and in storage, and what they were good for here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from headpond_workers.prefixes.counts import Counts, counts_in
from headpond_workers.prefixes.document import ROOT
from headpond_workers.prefixes.folders import OUTBOX, fingerprint_folders, models_in, prefixes_in
from headpond_workers.storage.blobs import Blobs


@dataclass(frozen=True, slots=True)
class LocalUse:
    """Of one model on this machine. waiting: files that are still to be uploaded."""

    files: int
    bytes: int
    waiting: int
    counts: Counts

    def as_json(self) -> dict[str, object]:
        return {"files": self.files, "bytes": self.bytes, "waiting": self.waiting, **asdict(self.counts)}


@dataclass(frozen=True, slots=True)
class StoredUse:
    """Of one model in storage, by a listing. prefixes: documents. bytes: of all objects."""

    prefixes: int
    bytes: int


def local_use(kv: Path) -> dict[str, LocalUse]:
    """By model. Raises OSError."""
    found = {}
    for model in models_in(kv):
        folders = fingerprint_folders(kv, model)
        files = [each for folder in folders for each in prefixes_in(folder)]
        found[model] = LocalUse(
            files=len(files),
            bytes=sum(each.size_bytes for each in files),
            waiting=sum(len(prefixes_in(folder / OUTBOX)) for folder in folders),
            counts=sum(map(counts_in, folders), Counts()),
        )
    return found


def stored_use(blobs: Blobs) -> dict[str, StoredUse]:
    """By model. Raises StorageUnavailable."""
    found: dict[str, StoredUse] = {}
    for key, size in blobs.list_sizes(ROOT):
        model, *rest = key.removeprefix(ROOT).split("/")
        before = found.get(model, StoredUse(0, 0))
        found[model] = StoredUse(before.prefixes + (rest[1:2] == ["prefixes"]), before.bytes + size)
    return found
