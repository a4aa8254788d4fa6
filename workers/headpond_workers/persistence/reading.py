"""A job as storage holds it, for `headpond result` and `headpond verify` with --from-storage."""

from __future__ import annotations

import os
from pathlib import Path

from headpond.errors import BlobCorrupt, ConfigError, NotStored
from headpond.jobs import JobId, JobState, Result
from headpond.settings import CONFIG_NAME, find_config, load_settings
from headpond.wire import unpack_result
from headpond_workers.persistence.segments import StateStore
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.settings import storage_of


def read_result(job_id: JobId, *, start: Path | None = None) -> Result:
    """The result of an ended job, whether or not Redis still knows it. start: where to look for headpond.toml.

    Raises NotStored, ConfigError, StorageUnavailable, BlobCorrupt.
    """
    found = open_store(job_id.model, config=find_config(start)).find_result(str(job_id))
    if found is None:
        raise NotStored(str(job_id))
    return unpack_result(found[1], durable=True)


def find_job(store: StateStore, job_id: str) -> tuple[bytes, JobState, bytes] | None:
    """The packed request of a job, how it ended, and its packed result, in one reading of the chain.

    None if storage has no such job, or its end is not there yet. Raises StorageUnavailable, BlobCorrupt.
    """
    job = store.find_job(job_id)
    if job is None or job.state is None:
        return None
    if not job.data:
        raise BlobCorrupt(store.head_key, f"its chain holds the end of {job_id}, and not what was asked")
    return job.data, job.state, job.result


def open_store(model: str, *, config: Path | None) -> StateStore:
    """The state of a model in the storage that a configuration names, or that its deployment runs. config: None if
    there is none.

    Raises ConfigError.
    """
    if config is None:
        raise ConfigError("no such file here or above; --from-storage finds the storage through it", where=CONFIG_NAME)
    storage = storage_of(load_settings(config, environment=os.environ, needed=()))
    if storage is None:
        raise ConfigError("names no [storage] endpoint_url, and no deployment runs beside it", where=str(config))
    return StateStore(S3Blobs(storage), model)
