"""Purges, as one machine follows them: its stored prefixes of a model go, whichever machine's persister cleans storage.

STATE_FOLDER/kv/<model>/purges    what the queue said of its purges when that was last done here
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from headpond_workers.prefixes.folders import make_private
from headpond_workers.prefixes.forgetting import forget_model, forget_stored
from headpond_workers.storage.blobs import Blobs

NOTE = "purges"
MAX_NOTE_CHARS = 200


class PurgedPrefixes:
    """Of all models of one machine."""

    def __init__(self, kv: Path, blobs: Blobs) -> None:
        """kv: `kv_folder` of the state folder."""
        self._kv, self._blobs = kv, blobs

    def follow(self, model: str, marks: str) -> bool:
        """Remove a model's prefixes unless that was done when the queue said the same; whether it was done now.

        marks: what the queue says of its purges; another text after each, and once more when storage is clean of it, so
        that what a worker was writing meanwhile goes, too. Raises OSError, StorageUnavailable; a repeat does the rest.
        """
        if self._noted(model) == marks:
            return False
        self.forget(model)
        self._note(model, marks)
        return True

    def forget(self, model: str) -> None:
        """Remove a model's prefixes here and in storage. Raises OSError, StorageUnavailable."""
        forget_model(self._kv, model)
        forget_stored(self._blobs, model)

    def _noted(self, model: str) -> str:
        try:
            with (self._kv / model / NOTE).open(encoding="utf-8", errors="replace") as file:
                return file.read(MAX_NOTE_CHARS)
        except FileNotFoundError:
            return ""

    def _note(self, model: str, marks: str) -> None:
        folder = self._kv / model
        make_private(folder)
        descriptor, partial = tempfile.mkstemp(prefix=f".{NOTE}-", dir=folder)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(marks)
        os.replace(partial, folder / NOTE)
