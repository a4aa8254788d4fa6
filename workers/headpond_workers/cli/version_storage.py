"""What the commands of versions share: whose versions, in which storage, and by which name."""

from __future__ import annotations

import getpass
import os
import socket
from pathlib import Path

from headpond.errors import ConfigError, InvalidRequest
from headpond.jobs import check_model_name
from headpond.settings import CONFIG_NAME, Settings, find_config, load_settings
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.persistence.s3 import S3Blobs
from headpond_workers.persistence.storage_settings import storage_of


def settings_for(model: str, config: Path | None) -> Settings:
    """The configuration, in which only this model's table need be right. Raises ConfigError, InvalidRequest."""
    check_model_name(model)
    file = config or find_config()
    if file is None:
        raise ConfigError(
            f"there is no {CONFIG_NAME} here or in a folder above; write one with [storage], or name one with --config",
            where=str(Path.cwd()),
        )
    return load_settings(file, environment=os.environ, needed=[model])


def registry_of(settings: Settings, model: str) -> Registry:
    """The versions of a model in the configured storage, else in that of the running deployment. Raises ConfigError."""
    return Registry(blobs_of(settings), model, writer=who())


def blobs_of(settings: Settings) -> S3Blobs:
    """The storage itself. Contacts nobody. Raises ConfigError."""
    address = storage_of(settings)
    if address is None:
        raise ConfigError(
            "there is no storage: [storage] names no endpoint_url, and none runs beside it. Start one with: headpond up",
            where=str(settings.file or CONFIG_NAME),
        )
    return S3Blobs(address)


def who() -> str:
    """Who a command is run by, for people: user@host."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container without a name for its user
        user = str(os.geteuid())
    return f"{user}@{socket.gethostname()}"[:512]


def split_version(text: str) -> tuple[str, str]:
    """Model and version (a number or an alias; empty for none) of `chat@3`, `chat@prod` or `chat`."""
    model, at, version = text.partition("@")
    check_model_name(model)
    if at and not version:
        raise InvalidRequest(f"'{text[:100]}' names no version. Write {model}@3 or {model}@prod.", field="version")
    return model, version
