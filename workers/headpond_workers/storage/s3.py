"""Blobs on S3-compatible storage, through boto3.

    s3_client    the connection and how it is signed
    s3_bucket    one bucket, and what all requests to it have in common
    s3_failures  which requests are sent again, and what a refusal means to the caller
    s3_reads     whole objects with their checksum, ranges into a buffer
    s3_puts      conditional puts: a 412 is looked into
    s3_uploads   files in parts
    byte_rate    how fast

Each put carries its SHA-256 (the server refuses other bytes), each get is checked against it where the server returns
one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from headpond_workers.storage.blobs import MAX_BLOB_BYTES, Blob
from headpond_workers.storage.byte_rate import Rates, process_rates
from headpond_workers.storage.s3_bucket import S3Bucket
from headpond_workers.storage.s3_client import S3Timeouts
from headpond_workers.storage.s3_puts import S3Puts
from headpond_workers.storage.s3_reads import S3Reads
from headpond_workers.storage.s3_uploads import PartSizes, S3Uploads
from headpond_workers.storage.settings import StorageAddress

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef

LIST_PAGE_KEYS = 1000


class S3Blobs:
    """The port Blobs on one bucket. Thread-safe."""

    def __init__(
        self,
        address: StorageAddress,
        *,
        timeouts: S3Timeouts | None = None,
        parts: PartSizes | None = None,
        rates: Rates | None = None,
    ) -> None:
        """Contacts nobody. Raises ConfigError if the address cannot be one.

        rates: None takes those of the address, which all S3Blobs of the process share.
        """
        if rates is None:
            rates = process_rates(address.upload_bytes_per_s, address.download_bytes_per_s)
        self._bucket = S3Bucket(address, timeouts or S3Timeouts(), rates)
        self._reads = S3Reads(self._bucket)
        self._puts = S3Puts(self._bucket, self._reads)
        self._uploads = S3Uploads(self._bucket, self._reads, self._puts, parts or PartSizes())

    def __repr__(self) -> str:
        return f"S3Blobs({self._bucket.url}, bucket={self._bucket.name})"

    def ensure_bucket(self) -> None:
        """Make the bucket if there is none."""
        self._bucket.ensure()

    def get(self, key: str, *, max_bytes: int = MAX_BLOB_BYTES) -> Blob:
        return self._reads.get(key, max_bytes)

    def read_into(self, key: str, buffer: memoryview, *, offset: int = 0) -> None:
        self._reads.read_into(key, buffer, offset)

    def size_of(self, key: str) -> int | None:
        return self._reads.size_of(key)

    def put_new(self, key: str, body: bytes) -> str:
        return self._puts.put_new(key, body)

    def put_if(self, key: str, body: bytes, *, etag: str) -> str:
        return self._puts.put_if(key, body, etag=etag)

    def put_once(self, key: str, body: bytes, *, sha256: bytes | None = None) -> bool:
        return self._puts.put_once(key, body, sha256)

    def put_file(self, key: str, path: Path) -> None:
        self._uploads.put_file(key, path)

    def abort_uploads(self, prefix: str, *, older_than_s: float) -> int:
        return self._uploads.abort_stale(prefix, older_than_s=older_than_s)

    def list_sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        after = ""
        while True:
            page = self._bucket.calls.run("list", prefix, partial(self._page, prefix, after))
            found = [(entry["Key"], entry["Size"]) for entry in page.get("Contents", ())]
            yield from found
            if not found or not page["IsTruncated"]:
                return
            after = found[-1][0]

    def list_keys(self, prefix: str) -> Iterator[str]:
        return (key for key, _ in self.list_sizes(prefix))

    def delete(self, key: str) -> None:
        bucket = self._bucket
        bucket.calls.run("delete", key, lambda: bucket.client.delete_object(Bucket=bucket.name, Key=key))

    def _page(self, prefix: str, after: str) -> ListObjectsV2OutputTypeDef:
        return self._bucket.client.list_objects_v2(
            Bucket=self._bucket.name, Prefix=prefix, StartAfter=after, MaxKeys=LIST_PAGE_KEYS
        )
