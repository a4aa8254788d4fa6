"""What the commands of versions share: whose versions, in which storage, and by whom."""

from __future__ import annotations

import getpass
import os
import socket
from pathlib import Path

from headpond.errors import InvalidRequest
from headpond.jobs import check_model_name
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.cli.storage_blobs import storage_blobs


def registry_of(model: str, config: Path | None) -> Registry:
    """The versions of a model in the configured storage. Raises ConfigError, InvalidRequest."""
    return Registry(storage_blobs(config), check_model_name(model), writer=who())


def who() -> str:
    """By whom a command is run, for people: user@host."""
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
