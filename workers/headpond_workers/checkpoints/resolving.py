"""From the source of a model's table to the number of a version in storage."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from headpond.errors import BlobCorrupt, ConfigError, VersionMissing
from headpond.settings import CONFIG_NAME, Settings
from headpond.tables import VersionSource
from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.names import alias_key
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.storage.blobs import Blobs
from headpond_workers.storage.settings import Learn, storage_of

if TYPE_CHECKING:
    from headpond_workers.storage.s3 import S3Blobs


def open_storage(settings: Settings, *, learn: Learn | None = None) -> S3Blobs:
    """The storage in which a configuration's versions stand. Contacts nobody.

    learn: is told of each secret. Raises ConfigError, also where there is no storage.
    """
    # boto3 takes a while to import, which no command should wait for that does not need it.
    from headpond_workers.storage.s3 import S3Blobs

    address = storage_of(settings, learn=learn)
    if address is None:
        raise ConfigError(
            "versions of models stand in object storage, and there is none: start the one that comes with headpond "
            'with headpond up, or write [storage] endpoint_url = "http://HOST:PORT"',
            where=str(settings.file or CONFIG_NAME),
        )
    return S3Blobs(address)


def resolve(source: VersionSource, blobs: Blobs) -> int:
    """The number of the version that is meant now. Whether it can be used is not looked at, but that a deletion which
    its alias forbids is undone.

    Raises VersionMissing for an alias that is not there or names nothing yet, with what to do; StorageUnavailable.
    """
    if source.number is not None:
        return source.number
    alias = source.alias or ""
    registry = Registry(blobs, source.name, writer=f"{socket.gethostname()}:{os.getpid()}")
    aliases = Aliases(registry)
    at = aliases.get(alias)
    if at is None:
        raise _missing(source, alias, registry, "there is no such alias")
    document = at.document
    if (document.model, document.alias) != (source.name, alias):
        raise BlobCorrupt(alias_key(source.name, alias), f"it is the alias {document.model}@{document.alias}")
    if not document.to:
        raise _missing(source, alias, registry, "the alias names no version yet")
    return aliases.resolve(alias).number


def _missing(source: VersionSource, alias: str, registry: Registry, what: str) -> VersionMissing:
    numbers = registry.numbers()
    promote = f"headpond models promote {source.name} {numbers[-1] if numbers else 1} --alias {alias}"
    if not numbers:
        push = f"headpond models push {source.name} PATH"
        return VersionMissing(source.version, f"{what}, and no version of it either. Push one: {push}; then: {promote}")
    return VersionMissing(source.version, f"{what}. Let it name a version with: {promote}")
