"""Brings the append-only file of an embedded Valkey to the disk, each second, from another process than the server.

The server itself is told never to sync (`appendfsync no`), so that it writes each change before its reply, and a kill
of it loses nothing that was acknowledged. With `appendfsync everysec` it would put off writing while its own sync
runs, for up to two seconds: on a slow disk a kill then loses what was acknowledged meanwhile (shown by scripts/chaos).
What is written is with the kernel; this is what a loss of power leaves.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
AOF_FOLDER = "appendonlydir"
"""Below the server's folder; Valkey's own name for it."""


class AofSync(threading.Thread):
    """Syncs the files below one server's folder until it is told to stop."""

    def __init__(self, server_folder: Path) -> None:
        super().__init__(name="aof-sync", daemon=True)
        self._folder = server_folder / AOF_FOLDER
        self._leave = threading.Event()
        self._synced: dict[str, int] = {}
        """Bytes of each file that are on disk, by name."""

    def run(self) -> None:
        while not self._leave.wait(INTERVAL_S):
            try:
                self.sync()
            except OSError as error:
                # A disk that is full or gone: the server says so to whoever writes; here it is tried again.
                logger.warning("aof_sync_failed folder=%s error=%s", self._folder, error)

    def sync(self) -> int:
        """Have all that the server has written so far on disk; return how many bytes were not yet.

        Raises OSError if the disk does not take them.
        """
        new = 0
        sizes: dict[str, int] = {}
        for path in sorted(self._folder.glob("*")) if self._folder.is_dir() else ():
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue  # the server has just replaced it by a rewritten one
            try:
                size = os.fstat(descriptor).st_size
                if size != self._synced.get(path.name):
                    os.fdatasync(descriptor)
                    new += max(0, size - self._synced.get(path.name, 0))
                sizes[path.name] = size
            finally:
                os.close(descriptor)
        if sizes.keys() != self._synced.keys() and self._folder.is_dir():
            self._sync_names()
        self._synced = sizes
        return new

    def _sync_names(self) -> None:
        """Which files there are: a new one's name is data of its folder."""
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def stop(self) -> None:
        self._leave.set()
