"""Storage that says of each change that it made what it was: so a run knows after which one a process was killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from headpond_workers.storage.blobs import MAX_BLOB_BYTES, Blob, Blobs

FAMILIES = {
    "chunks": "chunk", "intents": "intent", "manifests": "manifest", "versions": "version", "aliases": "alias",
    "gc": "gc", "condemned": "condemned",
}  # fmt: skip


class TellingBlobs:
    """The port Blobs on another one. told: called after each change, with its kind, such as `new version`."""

    def __init__(self, blobs: Blobs, told: Callable[[str], None]) -> None:
        self._blobs, self._told = blobs, told

    def get(self, key: str, *, max_bytes: int = MAX_BLOB_BYTES) -> Blob:
        return self._blobs.get(key, max_bytes=max_bytes)

    def put_new(self, key: str, body: bytes) -> str:
        etag = self._blobs.put_new(key, body)
        self._told(f"new {family_of(key)}")
        return etag

    def put_if(self, key: str, body: bytes, *, etag: str) -> str:
        swapped = self._blobs.put_if(key, body, etag=etag)
        self._told(f"swapped {family_of(key)}")
        return swapped

    def put_once(self, key: str, body: bytes, *, sha256: bytes | None = None) -> bool:
        stored = self._blobs.put_once(key, body, sha256=sha256)
        self._told(f"new {family_of(key)}")
        return stored

    def read_into(self, key: str, buffer: memoryview, *, offset: int = 0) -> None:
        self._blobs.read_into(key, buffer, offset=offset)

    def size_of(self, key: str) -> int | None:
        return self._blobs.size_of(key)

    def put_file(self, key: str, path: Path) -> None:
        self._blobs.put_file(key, path)
        self._told(f"new {family_of(key)}")

    def abort_uploads(self, prefix: str, *, older_than_s: float) -> int:
        return self._blobs.abort_uploads(prefix, older_than_s=older_than_s)

    def list_sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        return self._blobs.list_sizes(prefix)

    def list_keys(self, prefix: str) -> Iterator[str]:
        return self._blobs.list_keys(prefix)

    def delete(self, key: str) -> None:
        self._blobs.delete(key)
        self._told(f"deleted {family_of(key)}")


def family_of(key: str) -> str:
    """Of which kind an object is, by the folder that is nearest to it."""
    return next((FAMILIES[part] for part in reversed(key.split("/")[:-1]) if part in FAMILIES), "object")
