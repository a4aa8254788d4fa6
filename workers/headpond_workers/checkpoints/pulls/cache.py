"""The versions that this machine keeps: pulled once, checked, shared by all its processes, bounded.

    FOLDER/                  $HEADPOND_CACHE/versions, else ~/.cache/headpond/versions; 0700
      <digest>/              see `cache_entry`
      locks/<digest>.use     held (flock) shared by each process that uses the version or makes it, alone by whoever
                             removes it
      locks/<digest>.make    held alone by the one process that pulls it
      locks/room             held alone while room is made and claimed

A process that pulls holds the version as it will use it, so nobody removes it before it is used. Whoever is killed
lets go of its locks at once, and leaves at most a half-made entry, which the next one goes on with.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

from headpond.errors import ConfigError, ModelFileError, VersionMissing, VersionUnusable
from headpond.settings import Settings
from headpond_workers.checkpoints.manifest import Manifest
from headpond_workers.checkpoints.pulls.cache_entry import CacheEntry, entries_of, sweep
from headpond_workers.checkpoints.pulls.cache_lock import CacheLock, Hold
from headpond_workers.checkpoints.pulls.fetching import Progress, disk_error, fetch
from headpond_workers.checkpoints.quarantine import sound_manifest
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.version_document import VersionDocument
from headpond_workers.models.prepare import cache_folder, digest_cache

logger = logging.getLogger(__name__)

BYTES_PER_GB = 1_000_000_000
WAITING = "waiting for another process that pulls it"
LOCKS = "locks"
_STORAGE_DIGITS = 16


class HeldVersion:
    """A version that stays on this machine until it is released, or this process ends.

    path: its one GGUF file, or its only file, else its folder. Nothing there may be changed.
    """

    def __init__(
        self, entry: CacheEntry, lock: CacheLock, document: VersionDocument, manifest: Manifest, path: Path
    ) -> None:
        self._entry, self._lock = entry, lock
        self.document, self.manifest, self.path = document, manifest, path

    def release(self) -> None:
        """Let the version go when room is needed. A repeat does nothing."""
        self._entry.touch()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class VersionCache:
    """Safe to use from any number of processes, and from threads."""

    def __init__(self, folder: Path, max_bytes: int | None, *, storage: str, digests: Path | None = None) -> None:
        """folder: made if need be. max_bytes: of all versions together; None: no bound. storage: which one the numbers
        are of, in words. digests: where engines look for those of weight files; None: the usual place."""
        self._folder, self._max_bytes = folder, max_bytes
        self._storage = hashlib.sha256(storage.encode("utf-8", "surrogateescape")).hexdigest()[:_STORAGE_DIGITS]
        self._digests = digests or digest_cache()

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The one that all deployments of this user on this machine share."""
        storage = settings.storage
        # An embedded server may come back on another port: it is told by its folder.
        where = storage.endpoint_url or f"embedded:{settings.state_folder.resolve()}"
        max_bytes = None if storage.cache_gb is None else int(storage.cache_gb * BYTES_PER_GB)
        return cls(cache_folder() / "versions", max_bytes, storage=f"{where} {storage.bucket}")

    def hold(self, registry: Registry, number: int, progress: Progress) -> HeldVersion:
        """A version, pulled if it is not here yet, and kept here until it is released.

        progress: may raise to end the waiting, as for a process that is told to leave. Raises VersionMissing,
        VersionUnusable (also for one that turns out to be damaged), ConfigError where the cache is too small,
        ModelFileError if the disk refuses, StorageUnavailable, with which `offline` may help.
        """
        version = f"{registry.model}@{number}"
        try:
            self._open()
            document, manifest = self._documents(registry, number)
            self._check_size(version, manifest)
            entry = CacheEntry(self._folder, document.model_digest)
            lock = CacheLock.take(self._lock_of(entry, "use"), Hold.SHARED, waiting=lambda: progress(WAITING, 0, 0))
            try:
                if not entry.is_sound():
                    self._make(entry, registry, document, manifest, progress)
                return self._held(entry, lock, document, manifest)
            except BaseException:
                lock.release()
                raise
        except OSError as error:
            raise disk_error(error, f"keep {version} in", self._folder) from error

    def offline(self, model: str, number: int) -> HeldVersion | None:
        """A version that is here, without a word to storage; None if it is not. Whether it was quarantined since is
        not known. Raises ModelFileError if the disk refuses."""
        try:
            self._open()
            for entry in entries_of(self._folder):
                lock = CacheLock.take_now(self._lock_of(entry, "use"), Hold.SHARED)
                if lock is None:
                    continue  # somebody removes it
                try:
                    known = entry.named(self._storage, model, number)
                    if known is not None and entry.is_sound():
                        return self._held(entry, lock, *known)
                except BaseException:
                    lock.release()
                    raise
                lock.release()
        except OSError as error:
            raise disk_error(error, f"look for {model}@{number} in", self._folder) from error
        return None

    def _documents(self, registry: Registry, number: int) -> tuple[VersionDocument, Manifest]:
        """As storage has them; a manifest that is here is not read again."""
        try:
            document = registry.complete(number)
            known = CacheEntry(self._folder, document.model_digest).named(self._storage, registry.model, number)
            if known is not None and known[0].manifest_digest == document.manifest_digest:
                return document, known[1]
            return document, sound_manifest(registry, document)
        except (VersionMissing, VersionUnusable):
            # Not from here either while storage is away.
            self._forget(registry.model, number, besides=None)
            raise

    def _held(self, entry: CacheEntry, lock: CacheLock, document: VersionDocument, manifest: Manifest) -> HeldVersion:
        entry.touch()
        entry.note_name(self._storage, document, manifest)
        self._forget(document.model, document.number, besides=entry)
        entry.tell_engines(digest_cache=self._digests, source=f"s3:{document.model}@{document.number}")
        return HeldVersion(entry, lock, document, manifest, entry.usable_path(manifest))

    def _make(
        self,
        entry: CacheEntry,
        registry: Registry,
        document: VersionDocument,
        manifest: Manifest,
        progress: Progress,
    ) -> None:
        """Called while the version is held, so that nobody removes it."""
        with CacheLock.take(self._lock_of(entry, "make"), Hold.ALONE, waiting=lambda: progress(WAITING, 0, 0)):
            if entry.is_sound():
                return  # another process has made it meanwhile
            with CacheLock.take(self._folder / LOCKS / "room", Hold.ALONE, waiting=lambda: progress(WAITING, 0, 0)):
                sweep(self._folder)
                self._make_room(entry, manifest.size_bytes)
                files = entry.begin(manifest.size_bytes)
            fetch(registry, document, manifest, files, progress=progress)
            entry.complete(manifest)
            logger.info("version_cached version=%s@%d bytes=%d", document.model, document.number, manifest.size_bytes)

    def _make_room(self, wanted: CacheEntry, needed_bytes: int) -> None:
        """Remove versions that nobody uses, the one whose use is longest ago first, until there is room."""
        if self._max_bytes is None:
            return
        others = [entry for entry in entries_of(self._folder) if entry.model_digest != wanted.model_digest]
        sizes = {entry.model_digest: entry.size_bytes() for entry in others}
        for entry in others:
            if sum(sizes.values()) + needed_bytes <= self._max_bytes:
                return
            lock = CacheLock.take_now(self._lock_of(entry, "use"), Hold.ALONE)
            if lock is None:
                continue
            with lock:
                entry.remove(digest_cache=self._digests)
            logger.info("version_evicted digest=%s bytes=%d", entry.model_digest, sizes.pop(entry.model_digest))
        if (used := sum(sizes.values())) + needed_bytes > self._max_bytes:
            raise ConfigError(
                f"the cache may hold {_gb(self._max_bytes)}, of which versions in use take {_gb(used)}, and "
                f"{_gb(needed_bytes)} are needed. Raise it, or stop models that are not needed",
                where="[storage] cache_gb",
            )

    def _check_size(self, version: str, manifest: Manifest) -> None:
        if self._max_bytes is not None and manifest.size_bytes > self._max_bytes:
            raise ConfigError(
                f"{version} has {_gb(manifest.size_bytes)}, and the cache of this machine may hold "
                f"{_gb(self._max_bytes)}. Raise it above the size of the version",
                where="[storage] cache_gb",
            )

    def _forget(self, model: str, number: int, *, besides: CacheEntry | None) -> None:
        """No other entry is this number: it was of a storage that is gone, or the version cannot be used any more."""
        for entry in entries_of(self._folder):
            if besides is None or entry.model_digest != besides.model_digest:
                entry.forget_name(self._storage, model, number)

    def _open(self) -> None:
        """Raises ModelFileError for a folder in which others could put weights of their own."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._folder / LOCKS).mkdir(mode=0o700, exist_ok=True)
            found = self._folder.stat()
        except OSError as error:
            raise disk_error(error, "keep versions in", self._folder) from error
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ModelFileError(
                f"Versions are not kept in {self._folder}: others than this user may write there. Take their right "
                "away, or name another folder in HEADPOND_CACHE."
            )

    def _lock_of(self, entry: CacheEntry, what: str) -> Path:
        return self._folder / LOCKS / f"{entry.model_digest}.{what}"


def _gb(count: int) -> str:
    return f"{count / BYTES_PER_GB:.3g} GB"
