"""Versions of one model on this machine: from its cache, else from storage."""

from __future__ import annotations

import logging
import threading
import time

from headpond.errors import HeadpondError, StorageUnavailable
from headpond_workers.checkpoints.pulls.cache import HeldVersion, VersionCache
from headpond_workers.checkpoints.registry import Registry

logger = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 10.0


class FetchLeft(HeadpondError):
    """The process is to leave, so the rest of a version was not fetched. What came stays in the cache."""


class VersionStore:
    """registry: of the model in storage."""

    def __init__(self, registry: Registry, cache: VersionCache) -> None:
        self._registry, self._cache = registry, cache

    def hold(self, number: int, *, leave: threading.Event) -> HeldVersion:
        """Keep a version on this machine: what of it is not in the cache is fetched and checked. While storage is away
        the cache alone will do, if it has all of it.

        Raises VersionMissing, VersionUnusable (also for a damaged one), ConfigError if the cache is too small,
        ModelFileError if the disk refuses, StorageUnavailable; FetchLeft once `leave` is set.
        """
        name = self._registry.model
        try:
            return self._cache.hold(self._registry, number, _Shown(f"{name}@{number}", leave))
        except StorageUnavailable as error:
            held = self._cache.offline(name, number)
            if held is None:
                raise
            logger.warning("version_taken_from_cache version=%s@%d reason=%s", name, number, error)
            return held


class _Shown:
    """Progress of a fetch, in the log now and then. Ends it once the process is to leave."""

    def __init__(self, version: str, leave: threading.Event) -> None:
        self._version, self._leave = version, leave
        self._next = time.monotonic() + PROGRESS_INTERVAL_S

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._leave.is_set():
            raise FetchLeft(f"{self._version} was not fetched: the process leaves")
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_INTERVAL_S
            logger.info(
                "version_fetched version=%s stage=%s mib=%d of=%d", self._version, stage, done >> 20, total >> 20
            )
