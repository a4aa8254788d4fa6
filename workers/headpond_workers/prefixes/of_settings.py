"""From a model's table to its stored prefixes: which worker has any, and where."""

from __future__ import annotations

import logging
from pathlib import Path

from headpond.errors import ConfigError, EngineUnavailable
from headpond.settings import CONFIG_NAME, Settings
from headpond.tables import KvModel, ModelTable
from headpond_workers.engines.protocol import Capability, Engine, PrefixEngine, RelayEngine
from headpond_workers.prefixes.folders import kv_folder, slot_folder
from headpond_workers.prefixes.stored_prefixes import StoredPrefixes
from headpond_workers.storage.blobs import Blobs
from headpond_workers.storage.settings import Learn, storage_of

logger = logging.getLogger(__name__)


def slot_folder_of(settings: Settings, table: ModelTable, model: str, instance: str) -> Path | None:
    """A folder for the engine of this process; None where nothing is to be kept. Raises EngineUnavailable."""
    if not isinstance(table, KvModel) or table.kv == "off":
        return None
    kv = kv_folder(settings.state_folder)
    try:
        return slot_folder(kv, model, instance)
    except OSError as error:
        raise EngineUnavailable(
            f"Keys and values cannot be kept in {kv}: {error.strerror or error}. Give this user the right to write "
            f'there, or write kv = "off" in [models.{model}].'
        ) from error


def prefixes_of(
    settings: Settings,
    table: ModelTable,
    engine: Engine | RelayEngine,
    model: str,
    instance: str,
    *,
    learn: Learn | None = None,
) -> StoredPrefixes | None:
    """None where kv is off, and for an engine that has no keys and values to give. learn: is told of storage's secrets.

    Contacts nobody. Raises ConfigError, also for kv = "storage" where there is none.
    """
    if not isinstance(table, KvModel) or table.kv == "off":
        return None
    if not isinstance(engine, PrefixEngine) or Capability.KV_PREFIXES not in engine.info.capabilities:
        logger.warning("kv_not_kept model=%s engine=%s", model, engine.info.engine)
        return None
    blobs = _blobs(settings, model, learn) if table.kv == "storage" else None
    kv = kv_folder(settings.state_folder)
    return StoredPrefixes(engine, kv, model=model, instance=instance, table=table, blobs=blobs)


def _blobs(settings: Settings, model: str, learn: Learn | None) -> Blobs:
    address = storage_of(settings, learn=learn)
    if address is None:
        raise ConfigError(
            f'[models.{model}] kv = "storage" needs object storage, and there is none: start the one that comes with '
            'headpond with headpond up, write [storage] endpoint_url = "http://HOST:PORT", or write kv = "local"',
            where=str(settings.file or CONFIG_NAME),
        )
    # boto3 takes a while to import, which no other worker should wait for.
    from headpond_workers.storage.s3 import S3Blobs

    return S3Blobs(address)
