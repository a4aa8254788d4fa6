"""Keeps a worker from claiming while the server behind its proxy serves nobody, and lets it claim again by itself.

shut ---- a probe succeeds ----> open ---- a job finds the server closed ----> shut
  `-- a probe fails: again, with back-off, forever
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from headpond.errors import ConfigError, HeadpondError, UpstreamClosed
from headpond_workers.engines.protocol import RelayEngine

logger = logging.getLogger(__name__)

FIRST_PROBE_S = 0.5
LONGEST_WAIT_S = 30.0


class UpstreamGate(threading.Thread):
    """Begins shut: the first probe opens it."""

    def __init__(
        self, engine: RelayEngine, *, pause: Callable[[], None], resume: Callable[[], None],
        longest_wait_s: float = LONGEST_WAIT_S,
    ) -> None:  # fmt: skip
        """pause, resume: of the worker's claims."""
        super().__init__(name="upstream-gate", daemon=True)
        self._engine, self._pause, self._resume, self._longest_wait_s = engine, pause, resume, longest_wait_s
        self._changed = threading.Condition()
        self._closed: UpstreamClosed | None = UpstreamClosed("The server behind this model has not been asked yet.")
        self._asked_anew = True
        self._asked = False
        pause()

    @property
    def closed(self) -> UpstreamClosed | None:
        """Why it is shut; None while it is open."""
        return self._closed

    @property
    def asked(self) -> bool:
        """Whether the first probe has been answered, in whatever way."""
        return self._asked

    def shut(self, error: UpstreamClosed) -> None:
        """A job found the server closed."""
        with self._changed:
            if self._closed is None:
                self._pause()
                logger.warning("upstream_closed error=%s", error)
                self._asked_anew = False
            self._closed = error
            self._changed.notify_all()

    def ask_anew(self) -> None:
        """Probe at once, such as after a key was changed."""
        with self._changed:
            self._asked_anew = True
            self._changed.notify_all()

    def run(self) -> None:
        wait_s = FIRST_PROBE_S
        while True:
            with self._changed:
                if self._closed is None:
                    self._changed.wait_for(lambda: self._closed is not None)
                    wait_s = FIRST_PROBE_S
                if self._changed.wait_for(lambda: self._asked_anew, wait_s):
                    self._asked_anew, wait_s = False, FIRST_PROBE_S
            closed = self._probe()
            with self._changed:
                self._asked = True
                if closed is None:
                    self._closed = None
                    self._resume()
                    logger.info("upstream_serves")
                else:
                    if str(closed) != str(self._closed):
                        logger.warning("upstream_closed error=%s", closed)
                    self._closed = closed
                    wait_s = min(self._longest_wait_s, wait_s * 2)

    def _probe(self) -> UpstreamClosed | None:
        try:
            if self._closed is not None and self._closed.needs_operator:
                # A key that was put right in its file is found without a word from anybody.
                self._engine.renew_secrets()
            self._engine.probe()
        except UpstreamClosed as error:
            return error
        except HeadpondError as error:
            return UpstreamClosed(str(error), needs_operator=isinstance(error, ConfigError))
        return None
