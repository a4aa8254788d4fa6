"""The boto3 client of object storage.

Never the CRT client (`preferred_transfer_client`): it fails with custom endpoints.

The body of a put is not hashed for the signature (`payload_signing_enabled`), over http as over https. Its SHA-256 goes
along as `x-amz-checksum-sha256`, a header that is signed: whoever changes the body on its way would have to sign anew,
and hashing it once more would tell the server nothing new. Given beforehand, it also keeps the SDK from sending the
checksum behind the body over https (`aws-chunked`), which not every server reads. What https adds: nobody can read
along, and nobody can change a body that goes to a server which takes the header and does not look at it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from headpond.errors import ConfigError
from headpond_workers.storage.settings import StorageAddress

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True, slots=True)
class S3Timeouts:
    """connect_s: of one try to connect. unreachable_s: no try begins later than this after the first while nothing
    listens; with connect_s it bounds the time until StorageUnavailable. read_s: the longest silence within a reply.
    deadline_s: the same as unreachable_s, for a server that answers with errors or not in time."""

    connect_s: float = 2.0
    unreachable_s: float = 2.5
    read_s: float = 10.0
    deadline_s: float = 30.0


def connect(address: StorageAddress, timeouts: S3Timeouts) -> S3Client:
    """A client that never retries. Contacts nobody. Raises ConfigError if the address cannot be one."""
    host = _host(address)
    amazon = host is None or host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
    style = address.addressing
    if style == "auto":
        # Other servers seldom have a host name for each bucket. The SDK's own "auto" is the path for any endpoint.
        style = "virtual" if amazon else "path"
    try:
        return boto3.session.Session().client(
            "s3",
            endpoint_url=address.endpoint_url,
            region_name=address.region,
            aws_access_key_id=address.access_key,
            aws_secret_access_key=address.secret_key,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": style, "payload_signing_enabled": False},
                retries={"total_max_attempts": 1, "mode": "standard"},
                connect_timeout=timeouts.connect_s,
                read_timeout=timeouts.read_s,
                tcp_keepalive=True,
                max_pool_connections=32,
                # Each put names its checksum and each get asks for it; no second one is wanted.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                # This machine itself is never behind the proxy of the environment.
                proxies={} if host in ("localhost", "127.0.0.1", "::1") else None,
            ),
        )
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(f"[storage] makes no S3 client: {error}", where=address.configured_in) from error


def _host(address: StorageAddress) -> str | None:
    if address.endpoint_url is None:
        return None
    try:
        parts = urlsplit(address.endpoint_url)
        host = parts.hostname
    except ValueError as error:
        raise ConfigError(f"endpoint_url is not a URL: {error}", where=address.configured_in) from error
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(
            "endpoint_url must be http://HOST:PORT or https://HOST, without a bucket", where=address.configured_in
        )
    if parts.username or parts.password:
        raise ConfigError(
            'endpoint_url holds a password. Use access_key and secret_key = {env = "NAME"} or {file = "PATH"}',
            where=address.configured_in,
        )
    return host


def shown_url(url: str) -> str:
    """Scheme, host and port."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
