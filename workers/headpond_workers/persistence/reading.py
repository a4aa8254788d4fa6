"""A job's result as storage holds it, for `headpond result JOB --from-storage`."""

from __future__ import annotations

import os
from pathlib import Path

from headpond.errors import ConfigError, NotStored
from headpond.jobs import JobId, Result
from headpond.settings import CONFIG_NAME, find_config, load_settings
from headpond.wire import unpack_result
from headpond_workers.persistence.s3 import S3Blobs
from headpond_workers.persistence.segments import StateStore
from headpond_workers.persistence.storage_settings import storage_of


def read_result(job_id: JobId, *, start: Path | None = None) -> Result:
    """The result of an ended job, whether or not Redis still knows it. start: where to look for headpond.toml.

    Raises NotStored, ConfigError, StorageUnavailable, BlobCorrupt.
    """
    file = find_config(start)
    if file is None:
        raise ConfigError("no such file here or above; --from-storage finds the storage through it", where=CONFIG_NAME)
    storage = storage_of(load_settings(file, environment=os.environ, needed=()))
    if storage is None:
        raise ConfigError("names no [storage] endpoint_url, and no deployment runs beside it", where=str(file))
    found = StateStore(S3Blobs(storage), job_id.model).find_result(str(job_id))
    if found is None:
        raise NotStored(str(job_id))
    return unpack_result(found[1], durable=True)
