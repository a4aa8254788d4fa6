"""Files of any size on S3: one put, or an upload of parts that is completed under a condition.

An upload counts for nothing until it is completed, and costs its space until it is completed or aborted. A process
that is killed in between leaves it open: `abort_stale` finds those.

A complete that was refused, or whose reply was lost, is resolved by the object: if it has the file's bytes, the file is
stored, whoever did it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from headpond.errors import BlobCorrupt, BlobError, BlobMissing
from headpond_workers.storage.blobs import MAX_BLOB_BYTES
from headpond_workers.storage.file_parts import FileParts
from headpond_workers.storage.s3_bucket import S3Bucket
from headpond_workers.storage.s3_failures import FAILURES, code_of, is_conflict, status_of
from headpond_workers.storage.s3_puts import S3Puts
from headpond_workers.storage.s3_reads import S3Reads

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, ListMultipartUploadsOutputTypeDef

logger = logging.getLogger(__name__)

MAX_PARTS = 10_000
"""S3's."""
ROUNDS = 3
"""How often a file is sent anew whose upload somebody else ended."""


@dataclass(frozen=True, slots=True)
class PartSizes:
    """single_bytes: a file up to here is one put, with one SHA-256 of the whole, which every `get` compares; so it is
    what a `get` reads by default. part_bytes: of each part but the last; S3 wants 5 MiB or more. parallel: parts on
    their way at a time."""

    single_bytes: int = MAX_BLOB_BYTES
    part_bytes: int = 16 << 20
    parallel: int = 4


class _UploadGone(BlobError):
    """Somebody else completed or aborted the upload."""

    def __init__(self, key: str) -> None:
        super().__init__(key, "its upload was ended by another process; send it again")


class S3Uploads:
    """To one bucket."""

    def __init__(self, bucket: S3Bucket, reads: S3Reads, puts: S3Puts, sizes: PartSizes) -> None:
        self._bucket, self._reads, self._puts, self._sizes = bucket, reads, puts, sizes

    def put_file(self, key: str, path: Path) -> None:
        """See Blobs.put_file."""
        with FileParts(path, part_bytes=self._sizes.part_bytes, max_parts=MAX_PARTS) as file:
            if file.size <= self._sizes.single_bytes:
                self._puts.put_once(key, file.whole())
                return
            for left in reversed(range(ROUNDS)):
                if self._holds(key, file):
                    return
                try:
                    self._upload(key, file)
                except _UploadGone:
                    if not left:
                        raise
                    logger.warning("storage_upload_gone key=%s", key)
                else:
                    return

    def abort_stale(self, prefix: str, *, older_than_s: float) -> int:
        """See Blobs.abort_uploads."""
        aborted = 0
        for key, upload_id in list(self._stale(prefix, older_than_s)):
            self._bucket.calls.run("abort an upload of", key, partial(self._abort, key, upload_id))
            logger.info("storage_upload_aborted key=%s", key)
            aborted += 1
        return aborted

    def _upload(self, key: str, file: FileParts) -> None:
        bucket = self._bucket
        created = bucket.calls.run(
            "begin an upload of",
            key,
            lambda: bucket.client.create_multipart_upload(
                Bucket=bucket.name, Key=key, ChecksumAlgorithm="SHA256", **bucket.stored
            ),
        )
        upload_id = created["UploadId"]
        try:
            stored = self._complete(key, upload_id, self._send(key, upload_id, file))
        except BaseException:
            self._give_up(key, upload_id)
            raise
        if not stored:
            self._give_up(key, upload_id)  # a refused complete leaves it open
            if not self._holds(key, file):
                raise _UploadGone(key)

    def _send(self, key: str, upload_id: str, file: FileParts) -> list[CompletedPartTypeDef]:
        with ThreadPoolExecutor(self._sizes.parallel, thread_name_prefix="upload") as pool:
            sent = [pool.submit(self._send_part, key, upload_id, file, number) for number in range(file.count)]
            try:
                return [part.result() for part in sent]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise  # after those that are on their way, so that none arrives at an upload that was given up

    def _send_part(self, key: str, upload_id: str, file: FileParts, number: int) -> CompletedPartTypeDef:
        bucket, body = self._bucket, file.part(number)
        digest = file.checksum(number)

        def put() -> CompletedPartTypeDef:
            try:
                reply = bucket.client.upload_part(
                    Bucket=bucket.name,
                    Key=key,
                    UploadId=upload_id,
                    PartNumber=number + 1,
                    Body=bucket.sent(body),
                    ChecksumSHA256=digest,
                )
            except ClientError as error:
                if code_of(error) == "NoSuchUpload":
                    raise _UploadGone(key) from error
                raise
            return {"PartNumber": number + 1, "ETag": reply["ETag"], "ChecksumSHA256": digest}

        return bucket.calls.run("put a part of", key, put)

    def _complete(self, key: str, upload_id: str, parts: list[CompletedPartTypeDef]) -> bool:
        """False: the object has to say what came of it."""
        bucket = self._bucket

        def complete() -> bool:
            try:
                bucket.client.complete_multipart_upload(
                    Bucket=bucket.name,
                    Key=key,
                    UploadId=upload_id,
                    MultipartUpload={"Parts": parts},
                    IfNoneMatch="*",
                )
            except ClientError as error:
                # A conflict ends the upload, unlike a put: it would have to be sent anew.
                if status_of(error) == 412 or code_of(error) == "NoSuchUpload" or is_conflict(error):
                    return False
                raise
            return True

        return bucket.calls.run("complete", key, complete)

    def _holds(self, key: str, file: FileParts) -> bool:
        """Whether the file is stored. Raises BlobCorrupt if something else is."""
        try:
            head = self._reads.head(key)
            if head["ContentLength"] == file.size:
                checksum = head.get("ChecksumSHA256", "")
                # Another cut has another checksum, and some servers have none: then the bytes decide.
                if checksum.endswith(f"-{file.count}") and checksum == file.checksum_of_all():
                    return True
                if self._equal(key, file):
                    return True
        except BlobMissing:
            return False
        raise BlobCorrupt(key, "it holds other content than its name says")

    def _equal(self, key: str, file: FileParts) -> bool:
        buffer = memoryview(bytearray(min(file.part_bytes, file.size)))
        for number in range(file.count):
            body = file.part(number)
            found = buffer[: len(body)]
            self._reads.read_into(key, found, number * file.part_bytes)
            if found != body:
                return False
        return True

    def _give_up(self, key: str, upload_id: str) -> None:
        """Abort at once or not at all: the caller waits for another error already."""
        try:
            self._abort(key, upload_id)
        except FAILURES as error:
            logger.warning("storage_upload_left_open key=%s reason=%s", key, type(error).__name__)

    def _abort(self, key: str, upload_id: str) -> None:
        try:
            self._bucket.client.abort_multipart_upload(Bucket=self._bucket.name, Key=key, UploadId=upload_id)
        except ClientError as error:
            if code_of(error) != "NoSuchUpload":
                raise

    def _stale(self, prefix: str, older_than_s: float) -> Iterator[tuple[str, str]]:
        bucket = self._bucket
        after: dict[str, Any] = {}
        while True:
            page = bucket.calls.run("list uploads of", prefix, partial(self._uploads, prefix, after))
            # Both times are of the server's clock, where it says what that is.
            said = page["ResponseMetadata"]["HTTPHeaders"].get("date")
            now = parsedate_to_datetime(said) if said else datetime.now(UTC)
            for upload in page.get("Uploads", ()):
                if upload["Initiated"] <= now - timedelta(seconds=older_than_s):
                    yield upload["Key"], upload["UploadId"]
            if not page.get("IsTruncated") or not page.get("NextKeyMarker"):
                return
            after = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page.get("NextUploadIdMarker", "")}

    def _uploads(self, prefix: str, after: dict[str, Any]) -> ListMultipartUploadsOutputTypeDef:
        return self._bucket.client.list_multipart_uploads(Bucket=self._bucket.name, Prefix=prefix, **after)
