"""Conditional puts on S3, and what a refusal means.

A proxy on the way may repeat a request as well, so every 412 is looked into, not only one after a try of our own: if
the object has the SHA-256 of the body, an earlier try was stored.

Who puts a body that was hashed before gives its SHA-256, and the body is not hashed here: the server does that, and
refuses another body. Only then is it looked whether the body is to blame, or its way.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from headpond.errors import BlobChanged, BlobCorrupt, BlobMismatch, BlobMissing
from headpond_workers.storage.s3_bucket import S3Bucket
from headpond_workers.storage.s3_failures import code_of, status_of
from headpond_workers.storage.s3_reads import S3Reads

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Stored:
    """The object that is there now. by_this_try: it was not there before this request."""

    etag: str
    by_this_try: bool


class S3Puts:
    """To one bucket. Each put carries its SHA-256: the server refuses other bytes."""

    def __init__(self, bucket: S3Bucket, reads: S3Reads) -> None:
        self._bucket, self._reads = bucket, reads

    def put_new(self, key: str, body: bytes) -> str:
        return self._put(key, body, _digest_of(body), {"IfNoneMatch": "*"}).etag

    def put_if(self, key: str, body: bytes, *, etag: str) -> str:
        return self._put(key, body, _digest_of(body), {"IfMatch": etag}).etag

    def put_once(self, key: str, body: bytes, sha256: bytes | None = None) -> bool:
        """See Blobs.put_once."""
        try:
            return self._put(key, body, sha256 or _digest_of(body), {"IfNoneMatch": "*"}).by_this_try
        except BlobChanged as error:
            raise BlobCorrupt(key, "it holds other content than its name says") from error

    def _put(self, key: str, body: bytes, sha256: bytes, condition: dict[str, Any]) -> _Stored:
        bucket, digest = self._bucket, base64.b64encode(sha256).decode()

        def put() -> _Stored:
            try:
                reply = bucket.client.put_object(
                    Bucket=bucket.name,
                    Key=key,
                    Body=bucket.sent(body),
                    ChecksumSHA256=digest,
                    **bucket.stored,
                    **condition,
                )
            except ClientError as error:
                # 404 to an If-Match: the object is gone. Some servers say 412 to that too.
                gone = "IfMatch" in condition and code_of(error) in ("NoSuchKey", "404")
                if status_of(error) == 400 and _digest_of(body) != sha256:
                    raise BlobMismatch(key) from error
                if status_of(error) != 412 and not gone:
                    raise
                etag = self._etag_of_own(key, body, digest)
                if etag is None:
                    raise BlobChanged(key) from error
                logger.info("storage_put_resolved key=%s outcome=stored_before", key)
                return _Stored(etag, by_this_try=False)
            return _Stored(reply["ETag"], by_this_try=True)

        return bucket.calls.run("put", key, put)

    def _etag_of_own(self, key: str, body: bytes, digest: str) -> str | None:
        """The etag of the object at `key` if it is `body`; None if it is another, or gone."""
        try:
            reply = self._reads.head(key)
            if reply["ContentLength"] != len(body):
                return None
            if "ChecksumSHA256" in reply:
                return reply["ETag"] if reply["ChecksumSHA256"] == digest else None
            found = self._reads.get(key, len(body))
        except (BlobMissing, BlobCorrupt):
            return None
        return found.etag if found.body == body else None


def _digest_of(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()
