"""How commands reach the configured storage."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

import psutil

from headpond.errors import ConfigError
from headpond_workers.cli.config_option import Config, settings_of
from headpond_workers.storage.settings import storage_of

if TYPE_CHECKING:
    from headpond_workers.storage.s3 import S3Blobs


def storage_blobs(config: Config) -> S3Blobs:
    """Contacts nobody. Raises ConfigError if no storage is configured and none runs."""
    # boto3 takes a while to import, which no other command should wait for.
    from headpond_workers.storage.s3 import S3Blobs

    settings = settings_of(config, needed=())
    address = storage_of(settings)
    if address is None:
        raise ConfigError(
            "no storage: give [storage] endpoint_url, or start everything with: headpond up", where=str(settings.file)
        )
    return S3Blobs(address)


def writer_name() -> str:
    """Who is written into documents; no other process ever has this name."""
    return f"{socket.gethostname()}:{os.getpid()}:{time.time_ns()}"


def is_dead(writer: str) -> bool:
    """Whether a process of this host that had such a name is gone. False: it lives, or that cannot be known."""
    host, _, rest = writer.rpartition(":")[0].rpartition(":")
    if host != socket.gethostname() or not rest.isdecimal():
        return False
    return not psutil.pid_exists(int(rest))
