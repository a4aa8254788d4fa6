"""Where object storage is, and with which keys: what S3Blobs is made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from headpond.errors import ConfigError
from headpond.settings import CONFIG_NAME, RUN_FILE, Settings
from headpond.tables import SecretRef

_RUN_KEYS = ("endpoint_url", "bucket", "region", "access_key", "secret_key")


@dataclass(frozen=True, slots=True)
class StorageAddress:
    """A bucket and how to reach it. Its repr shows no key.

    endpoint_url: None is Amazon's S3 in `region`. access_key, secret_key: both None leaves it to the AWS SDK's own
    search (instance roles, profiles). configured_in: what names this address, for error messages.
    """

    endpoint_url: str | None
    bucket: str
    region: str = "us-east-1"
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    configured_in: str = CONFIG_NAME


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
        return StorageAddress(**{name: str(storage[name]) for name in _RUN_KEYS}, configured_in=str(run_file))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"cannot be used ({error!r}); call: headpond down; headpond up", where=str(run_file)
        ) from error


def has_storage(settings: Settings) -> bool:
    """Whether there is a storage, without reading its secrets: those are the persister's alone. Raises ConfigError."""
    return settings.storage.endpoint_url is not None or _run_storage(settings) is not None


def _secret(reference: SecretRef | None, *, where: str, learn: Learn | None) -> str | None:
    return None if reference is None else reference.resolve(where=where, learn=learn)
