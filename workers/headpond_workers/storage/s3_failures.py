"""What a failed S3 request means: whether the same one may succeed later, and what the caller is told.

The SDK never retries: its own retry of a conditional put whose reply was lost gets a 412, which reads as a lost race.
Here a request with an unknown outcome (no reply, 5xx, 409) is sent again with the same bytes and condition; what a
refusal of the second try then means, the caller finds out from the object.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

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
from botocore.httpsession import URLLib3SSLError  # type: ignore[attr-defined]  # its stubs name own classes alone
from botocore.parsers import ResponseParserError

from headpond.errors import BlobError, BlobMissing, ConfigError, HeadpondError, StorageUnavailable
from headpond_workers.storage.s3_client import S3Timeouts

logger = logging.getLogger(__name__)

T = TypeVar("T")
RESENT_CODES = frozenset({"RequestTimeout", "BadDigest", "XAmzContentSHA256Mismatch", "SlowDown", "IncompleteBody"})
"""Refusals that the same request may survive: the bytes came late or damaged, or the server is busy."""
FAILURES = (ClientError, BotoCoreError, ResponseParserError, URLLib3SSLError)
"""The last one is what a stream raises whose TLS broke: the SDK hands it on as it is."""
SLOW_TRIES = 3
"""How many tries may each take longer than the deadline itself without using it up: a silent server ends a try
sooner, so in these bytes went over a slow line, or a limited one."""


class S3Calls:
    """Runs the requests to one bucket. url: scheme, host and port. configured_in: what names the bucket."""

    def __init__(self, *, url: str, bucket: str, configured_in: str, timeouts: S3Timeouts) -> None:
        self._url, self._bucket, self._where = url, bucket, configured_in
        self._timeouts = timeouts

    def run(self, operation: str, key: str, request: Callable[[], T], *, moved: Callable[[], int] | None = None) -> T:
        """Run `request`, again while that may help. Every error that leaves is ours, but FlexibleChecksumError.

        moved: bytes that the tries so far have brought for good. Whenever they are more, the time for tries begins
        anew.
        """
        started = time.monotonic()
        tries = slow_tries = 0
        before = moved() if moved is not None else 0
        while True:
            began = time.monotonic()
            try:
                return request()
            except FlexibleChecksumError:
                raise
            except FAILURES as error:
                reason = transient(error)
                if reason is None:
                    raise self.refusal(operation, key, error) from error
                limit_s = self._timeouts.deadline_s
                if isinstance(error, ConnectionError):
                    limit_s = self._timeouts.unreachable_s
                now = time.monotonic()
                if moved is not None and moved() > before:
                    before, started, tries = moved(), now, 0
                elif now - began > self._timeouts.deadline_s and slow_tries < SLOW_TRIES:
                    slow_tries, started = slow_tries + 1, now
                delay_s = min(1.0, 0.05 * 2**tries) * random.uniform(0.5, 1.0)  # noqa: S311
                tries += 1
                if now + delay_s - started >= limit_s:
                    raise StorageUnavailable(
                        self._url, configured_in=self._where, reason=f"{reason}, {tries} tries"
                    ) from error
                logger.info("storage_retry operation=%s key=%s tries=%d reason=%s", operation, key, tries, reason)
            time.sleep(delay_s)

    def refusal(self, operation: str, key: str, error: Exception) -> HeadpondError:
        """What the caller is told of a failure that no further try will mend."""
        if isinstance(error, NoCredentialsError | PartialCredentialsError):
            return ConfigError(
                f"no keys for the S3 storage at {self._url}: set access_key and secret_key", where=self._where
            )
        if not isinstance(error, ClientError):
            return BlobError(key, f"cannot {operation} it: {type(error).__name__}: {error}")
        code, status = code_of(error), status_of(error)
        if code == "NoSuchBucket":
            return ConfigError(f"the S3 storage at {self._url} has no bucket '{self._bucket}'", where=self._where)
        if status == 404:
            return BlobMissing(key)
        if status in (401, 403):
            return ConfigError(
                f"the S3 storage at {self._url} refused to {operation} in bucket '{self._bucket}' ({code}). Check "
                "access_key, secret_key and their rights, and this machine's clock",
                where=self._where,
            )
        return BlobError(key, f"the S3 storage at {self._url} refused to {operation} it: {status} {code}")


def transient(error: Exception) -> str | None:
    """Why the request got no answer, in short, if the same request may get one later; else None."""
    if isinstance(error, ClientError):
        status, code = status_of(error), code_of(error)
        busy = status >= 500 or status in (408, 429) or code in RESENT_CODES
        # 409: Amazon's word for a conditional put that met another one; who won is not said.
        return f"{status} {code}" if busy or is_conflict(error) else None
    if isinstance(error, ConnectionError):
        return "no connection"
    if isinstance(error, HTTPClientError | IncompleteReadError | ResponseParserError | URLLib3SSLError):
        return "no complete reply"
    return None


def is_conflict(error: ClientError) -> bool:
    """Whether a conditional request met another one just then."""
    return status_of(error) == 409 and code_of(error) in ("ConditionalRequestConflict", "OperationAborted")


def status_of(error: ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def code_of(error: ClientError) -> str:
    """The server's error code, safe to print."""
    code = error.response.get("Error", {}).get("Code", "")
    return "".join(letter for letter in code[:60] if letter.isascii() and letter.isprintable())
