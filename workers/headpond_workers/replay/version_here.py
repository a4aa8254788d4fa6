"""The table of a model whose source is a version in storage, with the version on this machine."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import replace

from headpond.errors import StorageUnavailable
from headpond.settings import Settings
from headpond.tables import ModelTable, VersionedModel
from headpond.tables.version_source import VERSION_NUMBER
from headpond_workers.checkpoints.pulls.cache import HeldVersion, VersionCache
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.resolving import open_storage, resolve
from headpond_workers.redaction import Secrets

logger = logging.getLogger(__name__)


def table_here(settings: Settings, model: str, version: str, secrets: Secrets) -> tuple[ModelTable, HeldVersion | None]:
    """The table to load, and the version that stays on this machine until it is released; None for another source.

    version: the one that made the tokens of a job, such as `3`; it is taken where the model follows an alias. Raises
    ConfigError, VersionError, ModelFileError, StorageUnavailable.
    """
    table = settings.model(model)
    source = table.version_source
    if source is None or not isinstance(table, VersionedModel):
        return table, None
    if source.alias is not None and VERSION_NUMBER.fullmatch(version):
        source = replace(source, alias=None, number=int(version))
    blobs = open_storage(settings, learn=secrets.learn)
    registry = Registry(blobs, source.name, writer=f"{socket.gethostname()}:{os.getpid()}")
    cache = VersionCache.of(settings)
    try:
        held = cache.hold(registry, resolve(source, blobs), _silent)
    except StorageUnavailable:
        here = None if source.number is None else cache.offline(source.name, source.number)
        if here is None:
            raise
        held = here
    logger.info("version_held version=%s@%d path=%s", source.name, held.document.number, held.path)
    return table.loaded_from(held.path), held


def _silent(stage: str, done: int, total: int) -> None:
    """The parent shows what is loaded, and has no bar for what is pulled."""
