"""Where object storage is, and with which keys: what S3Blobs is made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypedDict

from headpond.errors import ConfigError
from headpond.settings import CONFIG_NAME, RUN_FILE, Addressing, Encryption, Settings, StorageSettings
from headpond.tables import SecretRef

_RUN_KEYS = ("endpoint_url", "bucket", "region", "access_key", "secret_key")
MB = 1_000_000


class _Manner(TypedDict):
    addressing: Addressing
    encryption: Encryption
    kms_key_id: str | None
    upload_bytes_per_s: float | None
    download_bytes_per_s: float | None


@dataclass(frozen=True, slots=True)
class StorageAddress:
    """A bucket and how to reach it. Its repr shows no key.

    endpoint_url: None is Amazon's S3 in `region`. access_key, secret_key: both None leaves it to the AWS SDK's own
    search (instance roles, profiles). configured_in: what names this address, for error messages.
    addressing, encryption, kms_key_id: as in [storage]. upload_bytes_per_s, download_bytes_per_s: of all threads of a
    process together; None: no limit.
    """

    endpoint_url: str | None
    bucket: str
    region: str = "us-east-1"
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    configured_in: str = CONFIG_NAME
    addressing: Addressing = "auto"
    encryption: Encryption = "none"
    kms_key_id: str | None = None
    upload_bytes_per_s: float | None = None
    download_bytes_per_s: float | None = None


Learn = Callable[[str], object]
"""Is told of each secret that is read."""


def configured_storage(settings: Settings, *, learn: Learn | None = None) -> StorageAddress | None:
    """The address in [storage], its secrets resolved; None if it names no endpoint (then a server is embedded).

    Raises ConfigError if a secret cannot be read, or only one of the two is given.
    """
    storage = settings.storage
    where = str(settings.file or CONFIG_NAME)
    if storage.endpoint_url is None:
        return None
    if (storage.access_key is None) != (storage.secret_key is None):
        raise ConfigError("[storage] needs access_key and secret_key, or neither of them", where=where)
    return StorageAddress(
        endpoint_url=storage.endpoint_url,
        bucket=storage.bucket,
        region=storage.region,
        access_key=_secret(storage.access_key, where=f"{where} [storage] access_key", learn=learn),
        secret_key=_secret(storage.secret_key, where=f"{where} [storage] secret_key", learn=learn),
        configured_in=f"{where} [storage] endpoint_url",
        **_manner(storage),
    )


def storage_of(settings: Settings, *, learn: Learn | None = None) -> StorageAddress | None:
    """The configured storage, else the one that `headpond up` runs beside the configuration; None without either.

    Raises ConfigError.
    """
    configured = configured_storage(settings, learn=learn)
    if configured is not None:
        return configured
    running = _run_storage(settings)
    if running is not None and learn is not None:
        for secret in (running.access_key, running.secret_key):
            learn(secret or "")
    return running


def _run_storage(settings: Settings) -> StorageAddress | None:
    run_file = settings.state_folder / RUN_FILE
    try:
        storage = json.loads(run_file.read_text(encoding="utf-8"))["storage"]
        if storage is None:
            return None
        url, bucket, region, access_key, secret_key = (str(storage[name]) for name in _RUN_KEYS)
        return StorageAddress(url, bucket, region, access_key, secret_key, str(run_file), **_manner(settings.storage))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"cannot be used ({error!r}); call: headpond down; headpond up", where=str(run_file)
        ) from error


def _manner(storage: StorageSettings) -> _Manner:
    """How a bucket is used, wherever it is."""
    up, down = storage.upload_mb_per_s, storage.download_mb_per_s
    return {
        "addressing": storage.addressing,
        "encryption": storage.encryption,
        "kms_key_id": storage.kms_key_id,
        "upload_bytes_per_s": None if up is None else up * MB,
        "download_bytes_per_s": None if down is None else down * MB,
    }


def has_storage(settings: Settings) -> bool:
    """Whether there is a storage, without reading its secrets: those are the persister's alone. Raises ConfigError."""
    return settings.storage.endpoint_url is not None or _run_storage(settings) is not None


def _secret(reference: SecretRef | None, *, where: str, learn: Learn | None) -> str | None:
    return None if reference is None else reference.resolve(where=where, learn=learn)
