"""The prefixes of one fingerprint on this machine, shared by its workers and bounded.

Files are written under another name and renamed, and removed as a whole, so any number of processes may work in the
folder, and each may be killed anywhere. There is no index on the disk: each process makes its own from the files.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from headpond.errors import PrefixRefused
from headpond_workers.engines.prefix_header import read_head
from headpond_workers.prefixes.blocks import block_hashes
from headpond_workers.prefixes.folders import (
    OUTBOX,
    SUFFIX,
    fingerprint_folders,
    is_fingerprint,
    make_private,
    partials_in,
    prefixes_in,
)
from headpond_workers.prefixes.index import Found, PrefixIndex

logger = logging.getLogger(__name__)

ABANDONED_S = 3600.0
"""A file that is not whole after so long is nobody's any more."""
_LOCK = "room.lock"


class LocalPrefixes:
    """Thread-safe. Raises OSError where the disk refuses."""

    def __init__(self, kv: Path, model: str, fingerprint: str, *, max_bytes: int) -> None:
        """max_bytes: of all prefixes of the model together."""
        if not is_fingerprint(fingerprint):
            raise ValueError(f"{fingerprint[:80]!r} is no fingerprint")
        self._kv, self._model, self._max_bytes = kv, model, max_bytes
        self.fingerprint = fingerprint
        self.folder = kv / model / fingerprint
        self._index = PrefixIndex()

    def find(self, hashes: Sequence[bytes]) -> Found | None:
        """The longest stored beginning of a prompt. hashes: `block_hashes` of it."""
        self._look()
        return self._index.find(hashes)

    def path(self, name: str) -> Path:
        """Where a prefix stands, or will; its folder is there."""
        make_private(self.folder)
        return self.folder / f"{name}{SUFFIX}"

    def use(self, name: str) -> None:
        """Count it as just used: it is the last one to be removed."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.path(name))

    def remove(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    def send(self, name: str) -> None:
        """Have the persister of this host upload it. Of those that wait the oldest make room, within the bound."""
        outbox = self.folder / OUTBOX
        make_private(outbox)
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            os.link(self.path(name), outbox / f"{name}{SUFFIX}", follow_symlinks=False)
        waiting = sorted(prefixes_in(outbox), key=lambda found: found.used_ns)
        total = sum(found.size_bytes for found in waiting)
        while waiting and total > self._max_bytes:
            oldest = waiting.pop(0)
            oldest.path.unlink(missing_ok=True)
            total -= oldest.size_bytes
            logger.warning("kv_prefix_not_uploaded model=%s bytes=%d why=full", self._model, oldest.size_bytes)

    def make_room(self) -> None:
        """Remove what was used longest ago, of all fingerprints of the model, until the bound holds; and what killed
        writers left."""
        with self._alone() as alone:
            if not alone:
                return  # another worker does
            now_ns = time.time_ns()
            found = []
            for folder in fingerprint_folders(self._kv, self._model):
                found += prefixes_in(folder)
                for partial in partials_in(folder):
                    if now_ns - partial.used_ns > ABANDONED_S * 1e9:
                        partial.path.unlink(missing_ok=True)
            found.sort(key=lambda each: each.used_ns)
            total = sum(each.size_bytes for each in found)
            for each in found:
                if total <= self._max_bytes:
                    return
                each.path.unlink(missing_ok=True)
                total -= each.size_bytes
                logger.info("kv_prefix_evicted model=%s bytes=%d", self._model, each.size_bytes)

    def _look(self) -> None:
        """Take over what others wrote and removed."""
        present = {found.path.stem: found for found in prefixes_in(self.folder)}
        self._index.keep(present.keys())
        for name in present.keys() - self._index.names():
            try:
                head = read_head(present[name].path)
            except PrefixRefused as error:
                if present[name].path.exists():
                    logger.warning("kv_prefix_refused error=%s", error)
                    self.remove(name)
                continue
            # Of another fingerprint it has no hash in common with any prompt, and is never chosen.
            self._index.put(name, block_hashes(head.fingerprint, head.ids), present[name].size_bytes)

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        descriptor = os.open(
            self._kv / self._model / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(descriptor)
