"""Brings what an embedded SeaweedFS has acknowledged to the disk: it syncs nothing for a put itself.

A kill of it loses nothing, for what it wrote is with the kernel; a loss of power would. So a commit counts, and the
journal is trimmed, once the file system that holds its objects is synced.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from headpond.errors import StorageUnavailable


class StorageSync:
    """Syncs the file system that holds one folder. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        """folder: of the objects of an embedded SeaweedFS on this machine."""
        self._folder = folder

    def __call__(self) -> None:
        """Return once all that was written there before the call is on disk.

        Raises StorageUnavailable if the disk does not take it, or the folder is not there.
        """
        try:
            descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                _sync_file_system(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StorageUnavailable(
                str(self._folder),
                configured_in="the embedded SeaweedFS of this deployment",
                reason=f"its file system cannot be synced: {error.strerror or error}",
            ) from error


def _sync_file_system(descriptor: int) -> None:
    """syncfs(2), which the standard library lacks. Where a system has none, all file systems are synced."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "syncfs"):
        os.sync()
        return
    if library.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
