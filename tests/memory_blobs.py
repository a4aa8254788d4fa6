"""Blobs in memory, and a wrapper that fails the way networks and processes do."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import TypeVar

from headpond.errors import BlobChanged, BlobCorrupt, BlobMismatch, BlobMissing, StorageUnavailable
from headpond_workers.storage.blobs import MAX_BLOB_BYTES, Blob, Blobs, check_size
from headpond_workers.storage.file_parts import FileParts

T = TypeVar("T")


class MemoryBlobs:
    """The port Blobs in a dict. Its etags are MD5, as those of S3 are: equal bodies have equal etags."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def get(self, key: str, *, max_bytes: int = MAX_BLOB_BYTES) -> Blob:
        with self._lock:
            if key not in self.objects:
                raise BlobMissing(key)
            body = self.objects[key]
        check_size(key, len(body), max_bytes=max_bytes)
        return Blob(body, _etag(body))

    def put_new(self, key: str, body: bytes) -> str:
        with self._lock:
            if self.objects.setdefault(key, body) != body:
                raise BlobChanged(key)
        return _etag(body)

    def put_if(self, key: str, body: bytes, *, etag: str) -> str:
        with self._lock:
            found = self.objects.get(key)
            if found is None or (_etag(found) != etag and found != body):
                raise BlobChanged(key)
            self.objects[key] = body
        return _etag(body)

    def put_once(self, key: str, body: bytes, *, sha256: bytes | None = None) -> bool:
        there = key in self.objects
        if sha256 is not None and hashlib.sha256(body).digest() != sha256:
            raise BlobMismatch(key)
        try:
            self.put_new(key, body)
        except BlobChanged as error:
            raise BlobCorrupt(key, "it holds other content than its name says") from error
        return not there

    def read_into(self, key: str, buffer: memoryview, *, offset: int = 0) -> None:
        body = self.get(key, max_bytes=sys.maxsize).body
        end = offset + buffer.nbytes
        if len(body) < end:
            raise BlobCorrupt(key, f"it has {len(body)} bytes; {end} were wanted")
        buffer.cast("B")[:] = body[offset:end]

    def size_of(self, key: str) -> int | None:
        with self._lock:
            body = self.objects.get(key)
        return None if body is None else len(body)

    def put_file(self, key: str, path: Path) -> None:
        with FileParts(path, part_bytes=1 << 20, max_parts=10_000) as file:
            self.put_once(key, file.whole())

    def abort_uploads(self, prefix: str, *, older_than_s: float) -> int:
        return 0

    def list_sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        with self._lock:
            sizes = sorted((key, len(body)) for key, body in self.objects.items() if key.startswith(prefix))
        yield from sizes

    def list_keys(self, prefix: str) -> Iterator[str]:
        return (key for key, _ in self.list_sizes(prefix))

    def delete(self, key: str) -> None:
        with self._lock:
            self.objects.pop(key, None)


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'


class Fault(Enum):
    """What happens to one put."""

    NEVER_STORED = "the request is lost"
    REPLY_LOST = "it is stored, and the caller is not told"
    STORED_LATE = "it is on its way, and arrives at release()"


class FaultyBlobs:
    """Blobs whose next put to a key can be made to fail with an unknown outcome."""

    def __init__(self, inner: Blobs) -> None:
        self._inner = inner
        self._armed: dict[str, Fault] = {}
        self._late: list[Callable[[], object]] = []

    def fail_next_put(self, fault: Fault, *, key_part: str) -> None:
        self._armed[key_part] = fault

    def disarm(self) -> None:
        self._armed.clear()

    def release(self) -> None:
        """Let the late puts arrive. Nobody waits for their answers any more."""
        late, self._late = self._late, []
        for put in late:
            try:
                put()
            except (BlobChanged, BlobCorrupt):
                continue

    def get(self, key: str, *, max_bytes: int = MAX_BLOB_BYTES) -> Blob:
        return self._inner.get(key, max_bytes=max_bytes)

    def put_new(self, key: str, body: bytes) -> str:
        return self._put(key, lambda: self._inner.put_new(key, body))

    def put_if(self, key: str, body: bytes, *, etag: str) -> str:
        return self._put(key, lambda: self._inner.put_if(key, body, etag=etag))

    def put_once(self, key: str, body: bytes, *, sha256: bytes | None = None) -> bool:
        return self._put(key, lambda: self._inner.put_once(key, body, sha256=sha256))

    def read_into(self, key: str, buffer: memoryview, *, offset: int = 0) -> None:
        self._inner.read_into(key, buffer, offset=offset)

    def size_of(self, key: str) -> int | None:
        return self._inner.size_of(key)

    def put_file(self, key: str, path: Path) -> None:
        self._put(key, lambda: self._inner.put_file(key, path))

    def abort_uploads(self, prefix: str, *, older_than_s: float) -> int:
        return self._inner.abort_uploads(prefix, older_than_s=older_than_s)

    def list_sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        return self._inner.list_sizes(prefix)

    def list_keys(self, prefix: str) -> Iterator[str]:
        return self._inner.list_keys(prefix)

    def delete(self, key: str) -> None:
        self._inner.delete(key)

    def _put(self, key: str, put: Callable[[], T]) -> T:
        part = next((part for part in self._armed if part in key), None)
        if part is None:
            return put()
        fault = self._armed.pop(part)
        if fault is Fault.REPLY_LOST:
            put()
        elif fault is Fault.STORED_LATE:
            self._late.append(put)
        raise StorageUnavailable("http://memory", configured_in="the test", reason=fault.value)
