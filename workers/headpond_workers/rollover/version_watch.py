"""Asks about twice a second what a worker is to serve, and fetches what it is to change to while it serves."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from headpond.errors import ConfigError, HeadpondError, ServiceUnavailable
from headpond.switching import Serve
from headpond_workers.checkpoints.pulls.cache import HeldVersion
from headpond_workers.rollover.serving_version import ServingVersion

logger = logging.getLogger(__name__)

ASK_INTERVAL_S = 0.5
FETCHED_INTERVAL_S = 0.1
"""How often it is looked whether a fetch is over."""
FETCH_RETRY_S = 5.0


class VersionWatch(threading.Thread):
    """Of one worker that follows an alias. wanted: the version that it is to change to now, whose files are on this
    machine; '' for none. While Redis is away all stays as it is."""

    def __init__(
        self, serving: ServingVersion, *, busy: Callable[[], int], own_lane: Callable[[bool], None],
        on_wanted: Callable[[], None],
    ) -> None:  # fmt: skip
        """busy: leases held. own_lane: told whether to claim the jobs of the own version alone. on_wanted: called when
        `wanted` is set."""
        super().__init__(name="version-watch", daemon=True)
        self._serving, self._busy, self._own_lane, self._on_wanted = serving, busy, own_lane, on_wanted
        self._stop = threading.Event()
        self._fetch: _Fetch | None = None
        self._fault = ""
        self.wanted = ""

    def run(self) -> None:
        while self._pause():
            try:
                self.look()
                self._fault = ""
            except HeadpondError as error:
                # What it serves is served on. A fault that lasts is told once.
                if type(error).__name__ != self._fault:
                    self._fault = type(error).__name__
                    logger.warning("version_not_asked version=%s error=%s", self._serving.version, error)

    def look(self) -> None:
        """One question, and what follows of its answer. Raises RedisUnavailable and what reading the alias raises."""
        found = self._serving.ask(self._busy())
        self._own_lane(found.serve is Serve.OWN_LANE)
        if not found.move or found.version in ("", self._serving.version):
            self.wanted = ""
            return
        fetch = self._fetch
        if fetch is None or fetch.version != found.version or fetch.over:
            fetch = self._fetch = _Fetch(self._serving, found.version)
            fetch.start()
            logger.info("version_changes version=%s to=%s", self._serving.version, found.version)
        if fetch.failure:
            self._serving.give_up(fetch.version, fetch.failure)
        self.wanted = found.version if fetch.held is not None else ""
        if self.wanted:
            self._on_wanted()

    def _pause(self) -> bool:
        """Until the next question, or until what is fetched is there. False once it is to ask no more."""
        until = time.monotonic() + ASK_INTERVAL_S
        while not self._stop.is_set() and (left_s := until - time.monotonic()) > 0:
            fetching = self._fetch is not None and not self.wanted
            self._stop.wait(min(left_s, FETCHED_INTERVAL_S) if fetching else left_s)
            if fetching and self._fetch is not None and self._fetch.held is not None:
                break
        return not self._stop.is_set()

    def stop(self) -> None:
        """Ask no more."""
        self._stop.set()


class _Fetch(threading.Thread):
    """Brings one version into the cache, so that a worker that stops serving has only to load. held: it is there, and
    stays while this process lives. failure: why it can never be."""

    def __init__(self, serving: ServingVersion, version: str) -> None:
        super().__init__(name=f"fetch-{version}", daemon=True)
        self._serving, self.version = serving, version
        self.held: HeldVersion | None = None
        self.failure = ""
        self._failed_at: float | None = None

    @property
    def over(self) -> bool:
        """It failed a while ago, for a reason that passes."""
        return self._failed_at is not None and time.monotonic() - self._failed_at >= FETCH_RETRY_S

    def run(self) -> None:
        try:
            self.held = self._serving.fetch(self.version)
        except (ServiceUnavailable, ConfigError) as error:
            # Storage is away, or the cache of this machine is too small: no fault of the version.
            logger.warning("version_not_fetched version=%s error=%s", self.version, error)
        except HeadpondError as error:
            self.failure = str(error)
        finally:
            self._failed_at = None if self.held is not None else time.monotonic()
