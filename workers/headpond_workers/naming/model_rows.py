"""From a configuration to what stands in `headpond:models` of it: rows with their specs, and the holder."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

from headpond.errors import ModelFileError
from headpond.models import Holder, ModelRow
from headpond.settings import Settings
from headpond.spec import spec_of
from headpond.tables import ModelTable
from headpond_workers.engines.formats.checkpoint_folder import check_adapter, check_checkpoint
from headpond_workers.engines.formats.weights_digest import read_sidecar, remembered_digest_of
from headpond_workers.models.prepare import digest_cache
from headpond_workers.naming.identity import Identity

MOST_FILES = 4096
LONGEST_FOLDER = 300
"""Characters of a folder that are shown to others."""


def holder_of(settings: Settings, identity: Identity) -> Holder:
    """The deployment of a configuration, as others see it."""
    folder = str(settings.folder).encode("utf-8", "backslashreplace").decode()
    return Holder(identity.id, socket.gethostname(), folder[:LONGEST_FOLDER])


def row_of(table: ModelTable, *, storage: bool) -> ModelRow:
    """What a model's table says to the whole Redis. Reads weights, once: their digests are remembered.

    Raises ModelFileError if what decides the model cannot be read.
    """
    spec = spec_of(table, storage=storage, digest_of=digest_of)
    return ModelRow(table.engine, table.max_queued, storage, table.context_tokens, spec)


def unread_row_of(table: ModelTable, *, storage: bool) -> ModelRow:
    """The row of a model whose weights cannot be read here: it has no spec."""
    return ModelRow(table.engine, table.max_queued, storage, table.context_tokens)


def digest_of(path: Path) -> str:
    """What a file holds, or a folder: that of a checkpoint or an adapter by the files that a loader reads, any other
    by all its files. Raises ModelFileError."""
    if not path.is_dir():
        sidecar = read_sidecar(path)
        return _named(sidecar.sha256 if sidecar is not None else _of_file(path))
    if (path / "adapter_config.json").is_file():
        return _named(check_adapter(path, digest_cache=digest_cache()).digest)
    if (path / "config.json").is_file():
        return _named(check_checkpoint(path, digest_cache=digest_cache()).digest)
    try:
        files = sorted(entry for entry in path.rglob("*") if entry.is_file())
    except OSError as error:
        raise ModelFileError(f"Cannot read {path}: {error.strerror}. Check who owns it.") from error
    if len(files) > MOST_FILES:
        raise ModelFileError(f"{path} holds more than {MOST_FILES} files. Give the model a folder of its own.")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(path)}\0{_of_file(file)}\0".encode("utf-8", "surrogateescape"))
    return _named(digest.hexdigest())


def _of_file(path: Path) -> str:
    return remembered_digest_of(path, digest_cache=digest_cache())


def _named(digest: str) -> str:
    return f"sha256:{digest}"
