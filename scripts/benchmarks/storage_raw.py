"""The peer of `storage`: boto3 alone, tuned, on the same bucket. What S3 itself takes, without versions."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from child import BenchmarkError

from headpond_workers.supervision.embedded_seaweed import SeaweedProcess

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PART_BYTES = 16 << 20
PARALLEL = 4
HOW = "boto3 alone: 16 MiB parts, 4 at once, payload signing off, CRC32 on"


class RawBucket:
    """One bucket, by boto3."""

    def __init__(self, server: SeaweedProcess) -> None:
        self._bucket = server.bucket
        self._client: S3Client = boto3.session.Session().client(
            "s3",
            endpoint_url=server.url,
            region_name=server.region,
            aws_access_key_id=server.access_key,
            aws_secret_access_key=server.secret_key,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path", "payload_signing_enabled": False},
                max_pool_connections=32,
                proxies={},
            ),
        )
        self._transfer = TransferConfig(
            multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=PARALLEL
        )

    def put_file(self, key: str, path: Path) -> None:
        self._client.upload_file(str(path), self._bucket, key, Config=self._transfer)

    def put(self, key: str, body: bytes, *, etag: str | None) -> str:
        """Replace an object if it is still what was read; etag: None for a new one. Returns its etag."""
        if etag is None:
            return self._client.put_object(Bucket=self._bucket, Key=key, Body=body, IfNoneMatch="*")["ETag"]
        return self._client.put_object(Bucket=self._bucket, Key=key, Body=body, IfMatch=etag)["ETag"]

    def get(self, key: str) -> bytes:
        return self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()

    def read_ranges(self, key: str, size: int) -> None:
        """The whole object into memory, in ranges, nothing checked."""
        buffer = memoryview(bytearray(size))

        def read(at: int) -> None:
            self._read(key, at, buffer[at : at + PART_BYTES])

        _in_parts(size, read)

    def read_to_file(self, key: str, size: int, path: Path) -> None:
        """The whole object into a file, in ranges, nothing checked; on the disk when this returns."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)

            def read(at: int) -> None:
                part = memoryview(bytearray(min(PART_BYTES, size - at)))
                self._read(key, at, part)
                while part:
                    written = os.pwrite(descriptor, part, at)
                    part, at = part[written:], at + written

            _in_parts(size, read)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _read(self, key: str, at: int, buffer: memoryview) -> None:
        last = at + len(buffer) - 1
        with closing(self._client.get_object(Bucket=self._bucket, Key=key, Range=f"bytes={at}-{last}")["Body"]) as body:
            while buffer:
                # Its stubs know files alone; urllib3 fills any buffer.
                count = body.readinto(buffer)  # type: ignore[arg-type]
                if not count:
                    raise BenchmarkError(f"{key} ended {len(buffer)} bytes early.")
                buffer = buffer[count:]


def _in_parts(size: int, read: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(PARALLEL) as pool:
        list(pool.map(read, range(0, size, PART_BYTES)))
