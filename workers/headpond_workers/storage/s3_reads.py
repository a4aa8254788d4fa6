"""Reads of objects on S3: whole with their checksum, or a range of bytes into a buffer.

A stream that was cut is tried again: of a whole object from its start, of a range from where it ended.
"""

from __future__ import annotations

import logging
from contextlib import closing
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError, FlexibleChecksumError, IncompleteReadError

from headpond.errors import BlobCorrupt, BlobError, BlobMissing
from headpond_workers.storage.blobs import Blob, check_size
from headpond_workers.storage.byte_rate import GRAIN_BYTES
from headpond_workers.storage.s3_bucket import S3Bucket
from headpond_workers.storage.s3_failures import status_of

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef, HeadObjectOutputTypeDef

logger = logging.getLogger(__name__)

READ_BYTES = 1 << 20


class S3Reads:
    """Of one bucket."""

    def __init__(self, bucket: S3Bucket) -> None:
        self._bucket = bucket
        self._piece = READ_BYTES if bucket.rates.down is None else GRAIN_BYTES

    def get(self, key: str, max_bytes: int) -> Blob:
        """See Blobs.get."""
        run = self._bucket.calls.run
        try:
            return run("get", key, lambda: self._whole(key, max_bytes))
        except FlexibleChecksumError:
            logger.warning("storage_checksum_failed key=%s", key)
        try:  # Once more: the wire may have damaged it, rather than the disk.
            return run("get", key, lambda: self._whole(key, max_bytes))
        except FlexibleChecksumError as error:
            raise BlobCorrupt(key, "its bytes do not have the SHA-256 that was stored with them") from error

    def head(self, key: str) -> HeadObjectOutputTypeDef:
        """Size, etag and checksum. Raises BlobMissing."""
        bucket = self._bucket
        return bucket.calls.run(
            "head", key, lambda: bucket.client.head_object(Bucket=bucket.name, Key=key, ChecksumMode="ENABLED")
        )

    def size_of(self, key: str) -> int | None:
        try:
            return self.head(key)["ContentLength"]
        except BlobMissing:
            return None

    def read_into(self, key: str, buffer: memoryview, offset: int) -> None:
        """See Blobs.read_into."""
        if not buffer.nbytes:  # A range of no bytes cannot be asked for.
            size = self.head(key)["ContentLength"]
            if size < offset:
                raise BlobCorrupt(key, f"it has {size} bytes; {offset} were wanted")
            return
        read = _RangeRead(self._bucket, key, buffer.cast("B"), offset, self._piece)
        self._bucket.calls.run("read", key, read.once, moved=lambda: read.moved)

    def _whole(self, key: str, max_bytes: int) -> Blob:
        reply = self._bucket.client.get_object(Bucket=self._bucket.name, Key=key, ChecksumMode="ENABLED")
        rate = self._bucket.rates.down
        parts, size = [], 0
        with closing(reply["Body"]) as stream:
            check_size(key, reply.get("ContentLength", 0), max_bytes=max_bytes)
            # Length and checksum are compared at the end of the stream, which is an empty read.
            while part := stream.read(self._piece):
                size += len(part)
                check_size(key, size, max_bytes=max_bytes)
                parts.append(part)
                if rate is not None:
                    rate.take(len(part))
        return Blob(b"".join(parts), reply["ETag"])


class _RangeRead:
    """One range on its way into a buffer. moved: bytes that were received, in all tries."""

    def __init__(self, bucket: S3Bucket, key: str, buffer: memoryview, offset: int, piece: int) -> None:
        self._bucket, self._key, self._buffer, self._offset, self._piece = bucket, key, buffer, offset, piece
        self._filled = 0
        self._etag: str | None = None
        self.moved = 0

    def once(self) -> None:
        """Go on from where the last try ended."""
        reply = self._ask()
        with closing(reply["Body"]) as stream:
            self._check(reply)
            self._etag = reply["ETag"]
            while self._filled < len(self._buffer):
                rest = self._buffer[self._filled : self._filled + self._piece]
                got = stream.readinto(rest)  # type: ignore[arg-type]  # its stubs want a file
                if not got:
                    raise IncompleteReadError(actual_bytes=self._filled, expected_bytes=len(self._buffer))
                self._filled += got
                self.moved += got
                if self._bucket.rates.down is not None:
                    self._bucket.rates.down.take(got)

    @property
    def _first(self) -> int:
        return self._offset + self._filled

    @property
    def _end(self) -> int:
        return self._offset + len(self._buffer)

    def _ask(self) -> GetObjectOutputTypeDef:
        # The rest has to be of the object that the beginning was of.
        same: dict[str, Any] = {} if self._etag is None else {"IfMatch": self._etag}
        try:
            return self._bucket.client.get_object(
                Bucket=self._bucket.name, Key=self._key, Range=f"bytes={self._first}-{self._end - 1}", **same
            )
        except ClientError as error:
            if status_of(error) == 416:
                raise BlobCorrupt(
                    self._key, f"it ends at byte {self._first} or before; {self._end} bytes were wanted"
                ) from error
            if status_of(error) != 412 or not same:
                raise
        self._filled, self._etag = 0, None
        return self._ask()

    def _check(self, reply: GetObjectOutputTypeDef) -> None:
        """Raises unless these are the bytes that were asked for."""
        first, end = self._first, self._end
        if "ContentRange" not in reply:
            if first:
                raise BlobError(self._key, f"the S3 storage at {self._bucket.url} ignores ranges; it cannot be used")
        elif not reply["ContentRange"].startswith(f"bytes {first}-"):
            shown = reply["ContentRange"][:60]
            raise BlobError(self._key, f"bytes {first}-{end - 1} were asked for, {shown!r} were sent")
        length = reply.get("ContentLength", end - first)
        if length < end - first:
            raise BlobCorrupt(self._key, f"it has {first + length} bytes; {end} were wanted")
