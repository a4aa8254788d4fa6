"""One bucket of S3-compatible storage: its client, and what all requests to it have in common."""

from __future__ import annotations

import io
import logging
from typing import Any

from botocore.exceptions import ClientError

from headpond.errors import BlobMissing
from headpond_workers.storage.byte_rate import ByteRate, Rates
from headpond_workers.storage.s3_client import S3Timeouts, connect, shown_url
from headpond_workers.storage.s3_failures import S3Calls, code_of
from headpond_workers.storage.settings import StorageAddress

logger = logging.getLogger(__name__)


class S3Bucket:
    """client, name: for requests; calls: runs them; rates: what every body keeps to. Thread-safe."""

    def __init__(self, address: StorageAddress, timeouts: S3Timeouts, rates: Rates) -> None:
        """Contacts nobody. Raises ConfigError if the address cannot be one."""
        self.client = connect(address, timeouts)
        self.name, self.rates = address.bucket, rates
        self.url = shown_url(self.client.meta.endpoint_url)
        self.calls = S3Calls(
            url=self.url, bucket=address.bucket, configured_in=address.configured_in, timeouts=timeouts
        )
        self._region = address.region
        self.stored: dict[str, Any] = {"ContentType": "application/octet-stream", **_encryption(address)}
        """What every new object is told, put at once or in parts."""

    def sent(self, body: bytes) -> bytes | PacedBody:
        """The body of one request. Each try makes its own."""
        return body if self.rates.up is None else PacedBody(body, self.rates.up)

    def ensure(self) -> None:
        """Make the bucket if there is none."""
        try:
            self.calls.run("head bucket", "", lambda: self.client.head_bucket(Bucket=self.name))
        except BlobMissing:
            self._make()

    def _make(self) -> None:
        # us-east-1 is the one region that must not be named.
        place: Any = {}
        if self._region != "us-east-1":
            place = {"CreateBucketConfiguration": {"LocationConstraint": self._region}}

        def make() -> None:
            try:
                self.client.create_bucket(Bucket=self.name, **place)
            except ClientError as error:
                if code_of(error) != "BucketAlreadyOwnedByYou":
                    raise
            logger.info("storage_bucket_made bucket=%s", self.name)

        self.calls.run("make bucket", "", make)


class PacedBody(io.BytesIO):
    """A body that goes out as fast as its rate allows: the SDK reads it block by block."""

    def __init__(self, body: bytes, rate: ByteRate) -> None:
        super().__init__(body)
        self._rate = rate

    def read(self, size: int | None = -1, /) -> bytes:
        block = super().read(size)
        self._rate.take(len(block))
        return block


def _encryption(address: StorageAddress) -> dict[str, str]:
    if address.encryption == "sse-s3":
        return {"ServerSideEncryption": "AES256"}
    if address.encryption == "sse-kms":
        key = {"SSEKMSKeyId": address.kms_key_id} if address.kms_key_id is not None else {}
        return {"ServerSideEncryption": "aws:kms", **key}
    return {}
