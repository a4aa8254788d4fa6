"""The port to object storage: whole objects by key, and conditional puts that decide every race.

The rules that each implementation keeps, and tests/test_blobs.py checks on each:

- A put stores the whole body or nothing, and a get returns a whole body that passed its checksum.
- Of any number of writers that put_new one key, or put_if one etag, exactly one wins; the others get BlobChanged.
- A put whose reply was lost is resolved before the call returns, by sending it again under the same condition;
  BlobChanged therefore means that somebody else's body is there. To tell its own body from an equal one, the
  caller makes the bodies of put_new and put_if unique: each holds a random txn. Equal bodies would also have
  equal etags on most servers, and a compare-and-swap would take one for the other.
- StorageUnavailable from a put is an unknown outcome: the body may be there, or may still come to be. Whoever
  goes on reads the object again and swaps from what it finds; what comes late then fails its condition.
- A put_if that was stored, lost its reply and was then replaced by another writer is reported as BlobChanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from headpond.errors import BlobCorrupt

MAX_BLOB_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Blob:
    """One object as it was read. etag: opaque; names this very body in put_if."""

    body: bytes = field(repr=False)
    etag: str


class Blobs(Protocol):
    """Objects of one bucket. Safe to share between threads. Any call may raise StorageUnavailable."""

    def get(self, key: str, *, max_bytes: int = MAX_BLOB_BYTES) -> Blob:
        """The object at `key`, no more than max_bytes of which are read.

        Raises BlobMissing; BlobCorrupt if it fails its checksum or is longer.
        """
        ...

    def put_new(self, key: str, body: bytes) -> str:
        """Store `body` if nothing is at `key`; return its etag. Raises BlobChanged. Bodies are unique."""
        ...

    def put_if(self, key: str, body: bytes, *, etag: str) -> str:
        """Replace what was read with `etag`; return the new etag. Raises BlobChanged, also if the object is gone.
        Bodies are unique."""
        ...

    def put_once(self, key: str, body: bytes, *, sha256: bytes | None = None) -> bool:
        """Store immutable content under a key that names it; a repeat changes nothing. Returns whether this call stored
        it: False if it was there, maybe by an earlier try of this call whose reply was lost.

        sha256: of the body (32 bytes), by whoever hashed it before; it is not hashed again, and storage refuses another
        body: BlobMismatch, if the content that was hashed is not there already. Raises BlobCorrupt if the object at
        `key` has other content.
        """
        ...

    def read_into(self, key: str, buffer: memoryview, *, offset: int = 0) -> None:
        """Fill `buffer` (writable, contiguous) with the bytes of the object from `offset` on. No checksum of storage is
        compared: whoever reads part of an object knows what should be there, and checks it.

        Raises BlobMissing; BlobCorrupt if the object ends before.
        """
        ...

    def size_of(self, key: str) -> int | None:
        """Bytes of the object; None if there is none."""
        ...

    def put_file(self, key: str, path: Path) -> None:
        """`put_once` of a file of any size, in parts where it is large; parts of an upload that fails are given up.

        Raises BlobCorrupt if the object at `key` has other content, ModelFileError if the file cannot be read.
        """
        ...

    def abort_uploads(self, prefix: str, *, older_than_s: float) -> int:
        """Give up what processes that were killed left of their `put_file` to keys that start with `prefix`; how many
        there were. One that is only slow begins anew, so older_than_s should be longer than any upload takes."""
        ...

    def list_sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """As `list_keys`, each with its bytes."""
        ...

    def list_keys(self, prefix: str) -> Iterator[str]:
        """Keys that start with `prefix`, sorted. For people and tools: what a chain of documents does not name
        does not count, whatever a listing says."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; no error if there is none."""
        ...


def check_size(key: str, size: int, *, max_bytes: int) -> None:
    """Raises BlobCorrupt if an object is longer than its reader allows."""
    if size > max_bytes:
        raise BlobCorrupt(key, f"{size} bytes; at most {max_bytes} are read")
