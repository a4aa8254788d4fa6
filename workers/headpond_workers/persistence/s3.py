"""Blobs on S3-compatible storage, through boto3.

The SDK never retries: its own retry of a conditional put whose reply was lost gets a 412, which reads as a lost
race. Here a put with an unknown outcome (no reply, 5xx, 409) is sent again with the same bytes and condition, and
on a 412 the object decides: if its SHA-256 is that of the body, an earlier try was stored. A proxy on the way may
repeat a request as well, so every 412 is looked into, not only one after a try of our own.

Each put carries its SHA-256 (the server refuses other bytes), each get is checked against it where the server
returns one. An object is one request and stands in memory whole.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.parsers import ResponseParserError

from headpond.errors import (
    BlobChanged,
    BlobCorrupt,
    BlobError,
    BlobMissing,
    ConfigError,
    HeadpondError,
    StorageUnavailable,
)
from headpond_workers.persistence.blobs import MAX_BLOB_BYTES, Blob, check_size
from headpond_workers.persistence.s3_client import S3Timeouts, connect, shown_url
from headpond_workers.persistence.storage_settings import StorageAddress

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef

logger = logging.getLogger(__name__)

T = TypeVar("T")
CONTENT_TYPE = "application/octet-stream"
READ_BYTES = 1 << 20
LIST_PAGE_KEYS = 1000
RESENT_CODES = frozenset({"RequestTimeout", "BadDigest", "XAmzContentSHA256Mismatch", "SlowDown", "IncompleteBody"})
"""Refusals that the same request may survive: the bytes came late or damaged, or the server is busy."""
FAILURES = (ClientError, BotoCoreError, ResponseParserError)


class S3Blobs:
    """The port Blobs on one bucket. Thread-safe."""

    def __init__(self, address: StorageAddress, *, timeouts: S3Timeouts | None = None) -> None:
        """Contacts nobody. Raises ConfigError if the address cannot be one."""
        self._address = address
        self._bucket = address.bucket
        self._timeouts = timeouts or S3Timeouts()
        self._client = connect(address, self._timeouts)
        self._url = shown_url(self._client.meta.endpoint_url)

    def __repr__(self) -> str:
        return f"S3Blobs({self._url}, bucket={self._bucket})"

    def ensure_bucket(self) -> None:
        """Make the bucket if there is none."""
        try:
            self._call("head bucket", "", lambda: self._client.head_bucket(Bucket=self._bucket))
        except BlobMissing:
            self._make_bucket()

    def get(self, key: str, *, max_bytes: int = MAX_BLOB_BYTES) -> Blob:
        try:
            return self._call("get", key, lambda: self._read(key, max_bytes))
        except FlexibleChecksumError:
            logger.warning("storage_checksum_failed key=%s", key)
        try:  # Once more: the wire may have damaged it, rather than the disk.
            return self._call("get", key, lambda: self._read(key, max_bytes))
        except FlexibleChecksumError as error:
            raise BlobCorrupt(key, "its bytes do not have the SHA-256 that was stored with them") from error

    def put_new(self, key: str, body: bytes) -> str:
        return self._put(key, body, {"IfNoneMatch": "*"})

    def put_if(self, key: str, body: bytes, *, etag: str) -> str:
        return self._put(key, body, {"IfMatch": etag})

    def put_once(self, key: str, body: bytes) -> None:
        try:
            self._put(key, body, {"IfNoneMatch": "*"})
        except BlobChanged as error:
            raise BlobCorrupt(key, "it holds other content than its name says") from error

    def list_keys(self, prefix: str) -> Iterator[str]:
        after = ""
        while True:
            page = self._call("list", prefix, partial(self._page, prefix, after))
            keys = [entry["Key"] for entry in page.get("Contents", ())]
            yield from keys
            if not keys or not page["IsTruncated"]:
                return
            after = keys[-1]

    def delete(self, key: str) -> None:
        self._call("delete", key, lambda: self._client.delete_object(Bucket=self._bucket, Key=key))

    def _read(self, key: str, max_bytes: int) -> Blob:
        reply = self._client.get_object(Bucket=self._bucket, Key=key, ChecksumMode="ENABLED")
        parts, size = [], 0
        with closing(reply["Body"]) as stream:
            check_size(key, reply.get("ContentLength", 0), max_bytes=max_bytes)
            # Length and checksum are compared at the end of the stream, which is an empty read.
            while part := stream.read(READ_BYTES):
                size += len(part)
                check_size(key, size, max_bytes=max_bytes)
                parts.append(part)
        return Blob(b"".join(parts), reply["ETag"])

    def _put(self, key: str, body: bytes, condition: dict[str, Any]) -> str:
        digest = _sha256(body)

        def put() -> str:
            try:
                reply = self._client.put_object(
                    Bucket=self._bucket,
                    Key=key,
                    Body=body,
                    ChecksumSHA256=digest,
                    ContentType=CONTENT_TYPE,
                    **condition,
                )
            except ClientError as error:
                # 404 to an If-Match: the object is gone. Some servers say 412 to that too.
                gone = "IfMatch" in condition and _code(error) in ("NoSuchKey", "404")
                if _status(error) != 412 and not gone:
                    raise
                etag = self._etag_of_own(key, body, digest)
                if etag is None:
                    raise BlobChanged(key) from error
                logger.info("storage_put_resolved key=%s outcome=stored_before", key)
                return etag
            return reply["ETag"]

        return self._call("put", key, put)

    def _etag_of_own(self, key: str, body: bytes, digest: str) -> str | None:
        """The etag of the object at `key` if it is `body`; None if it is another, or gone."""
        try:
            reply = self._call(
                "head",
                key,
                lambda: self._client.head_object(Bucket=self._bucket, Key=key, ChecksumMode="ENABLED"),
            )
            if reply["ContentLength"] != len(body):
                return None
            if "ChecksumSHA256" in reply:
                return reply["ETag"] if reply["ChecksumSHA256"] == digest else None
            found = self.get(key, max_bytes=len(body))
        except (BlobMissing, BlobCorrupt):
            return None
        return found.etag if found.body == body else None

    def _page(self, prefix: str, after: str) -> ListObjectsV2OutputTypeDef:
        return self._client.list_objects_v2(
            Bucket=self._bucket, Prefix=prefix, StartAfter=after, MaxKeys=LIST_PAGE_KEYS
        )

    def _make_bucket(self) -> None:
        region = self._address.region
        # us-east-1 is the one region that must not be named.
        place: Any = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}

        def make() -> None:
            try:
                self._client.create_bucket(Bucket=self._bucket, **place)
            except ClientError as error:
                if _code(error) != "BucketAlreadyOwnedByYou":
                    raise
            logger.info("storage_bucket_made bucket=%s", self._bucket)

        self._call("make bucket", "", make)

    def _call(self, operation: str, key: str, request: Callable[[], T]) -> T:
        """Run `request`, again while that may help. Every error that leaves is ours, but FlexibleChecksumError."""
        started = time.monotonic()
        tries = 0
        while True:
            try:
                return request()
            except FlexibleChecksumError:
                raise
            except FAILURES as error:
                reason = _transient(error)
                if reason is None:
                    raise self._refusal(operation, key, error) from error
                limit_s = self._timeouts.deadline_s
                if isinstance(error, ConnectionError):
                    limit_s = self._timeouts.unreachable_s
                delay_s = min(1.0, 0.05 * 2**tries) * random.uniform(0.5, 1.0)  # noqa: S311
                tries += 1
                if time.monotonic() + delay_s - started >= limit_s:
                    raise StorageUnavailable(
                        self._url, configured_in=self._address.configured_in, reason=f"{reason}, {tries} tries"
                    ) from error
                logger.info("storage_retry operation=%s key=%s tries=%d reason=%s", operation, key, tries, reason)
            time.sleep(delay_s)

    def _refusal(self, operation: str, key: str, error: Exception) -> HeadpondError:
        where = self._address.configured_in
        if isinstance(error, NoCredentialsError | PartialCredentialsError):
            return ConfigError(f"no keys for the S3 storage at {self._url}: set access_key and secret_key", where=where)
        if not isinstance(error, ClientError):
            return BlobError(key, f"cannot {operation} it: {type(error).__name__}: {error}")
        code, status = _code(error), _status(error)
        if code == "NoSuchBucket":
            return ConfigError(f"the S3 storage at {self._url} has no bucket '{self._bucket}'", where=where)
        if status == 404:
            return BlobMissing(key)
        if status in (401, 403):
            return ConfigError(
                f"the S3 storage at {self._url} refused to {operation} in bucket '{self._bucket}' ({code}). Check "
                "access_key, secret_key and their rights, and this machine's clock",
                where=where,
            )
        return BlobError(key, f"the S3 storage at {self._url} refused to {operation} it: {status} {code}")


def _sha256(body: bytes) -> str:
    return base64.b64encode(hashlib.sha256(body).digest()).decode()


def _transient(error: Exception) -> str | None:
    """Why the request got no answer, in short, if the same request may get one later; else None."""
    if isinstance(error, ClientError):
        status, code = _status(error), _code(error)
        busy = status >= 500 or status in (408, 429) or code in RESENT_CODES
        # 409: Amazon's word for a conditional put that met another one; who won is not said.
        conflict = status == 409 and code in ("ConditionalRequestConflict", "OperationAborted")
        return f"{status} {code}" if busy or conflict else None
    if isinstance(error, ConnectionError):
        return "no connection"
    if isinstance(error, HTTPClientError | IncompleteReadError | ResponseParserError):
        return "no complete reply"
    return None


def _status(error: ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _code(error: ClientError) -> str:
    """The server's error code, safe to print."""
    code = error.response.get("Error", {}).get("Code", "")
    return "".join(letter for letter in code[:60] if letter.isascii() and letter.isprintable())
