"""Removing stored prefixes for good: there are prompts in them. For `purge`, and for models that are gone."""

from __future__ import annotations

import shutil
from pathlib import Path

from headpond_workers.prefixes.document import model_root
from headpond_workers.prefixes.folders import OUTBOX, fingerprint_folders, partials_in, prefixes_in
from headpond_workers.storage.blobs import Blobs


def forget_model(kv: Path, model: str, fingerprint: str | None = None) -> int:
    """Remove a model's prefixes from this machine, those of one fingerprint or of all; how many.

    Workers may be running: what they load just now is not found again, and a copy that they are writing just now is
    removed by a second call.

    kv: `kv_folder` of the state folder. Raises OSError.
    """
    removed = 0
    for folder in fingerprint_folders(kv, model):
        if fingerprint is not None and folder.name != fingerprint:
            continue
        # First what the persister would still upload.
        for found in (*prefixes_in(folder / OUTBOX), *partials_in(folder)):
            found.path.unlink(missing_ok=True)
        for found in prefixes_in(folder):
            found.path.unlink(missing_ok=True)
            removed += 1
        shutil.rmtree(folder, ignore_errors=True)
    return removed


def forget_stored(blobs: Blobs, model: str, fingerprint: str | None = None) -> int:
    """Remove a model's prefixes from storage; how many objects. Documents go first, so that nobody is led to data that
    is gone. After `forget_model` on each machine, whose persister may be uploading.

    Raises StorageUnavailable; a repeat does the rest.
    """
    keys = list(blobs.list_keys(model_root(model, fingerprint)))
    for key in sorted(keys, key=lambda key: "/data/" in key):
        blobs.delete(key)
    return len(keys)
