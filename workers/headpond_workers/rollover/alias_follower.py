"""Keeps every queue's copy of its alias up to date: looks every 2 s, for the models of all deployments on a Redis.

So a promotion ends that was killed between storage and queue, a queue whose server lost its data hears of its alias
again, also of another alias that the model follows from now on, and an alias leaves a version that did not load while
storage was away. Trials that decide by themselves are looked at too, every 5 s.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable

from headpond.errors import HeadpondError, VersionMissing
from headpond.queue import Server
from headpond.switching import Switch
from headpond.tables import VersionSource
from headpond_workers.checkpoints.alias_document import AliasDocument
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.rollover.alias_copy import copy_alias, is_copied, is_foreign, replace_copy
from headpond_workers.rollover.alias_store import AliasStore
from headpond_workers.rollover.followed_models import followed
from headpond_workers.rollover.trial_watch import INTERVAL_S as TRIAL_INTERVAL_S
from headpond_workers.rollover.trial_watch import TrialWatch
from headpond_workers.storage.blobs import Blobs

logger = logging.getLogger(__name__)

INTERVAL_S = 2.0


class AliasFollower(threading.Thread):
    """A thread of its own: storage that is away answers after seconds, and queues must not wait for it."""

    def __init__(self, server: Server, blobs: Blobs, *, writer: str) -> None:
        super().__init__(name="alias-follower", daemon=True)
        self._server, self._blobs, self._writer = server, blobs, writer
        self._trials = TrialWatch(server, blobs, writer=writer)
        self._stop = threading.Event()
        self._faults: dict[str, str] = {}

    def run(self) -> None:
        looked = time.monotonic()
        while not self._stop.wait(INTERVAL_S):
            self.look()
            if time.monotonic() - looked >= TRIAL_INTERVAL_S:
                looked = time.monotonic()
                self._look_at_trials()

    def stop(self) -> None:
        self._stop.set()

    def look(self) -> None:
        """Once through all models. One model's trouble is no other's: it is logged, and looked at again."""
        try:
            sources = followed(self._server.models())
        except HeadpondError as error:
            self._tell("", error)
            return
        self._tell("", None)
        for model, source in sources.items():
            try:
                self._follow(model, source)
                self._tell(model, None)
            except VersionMissing:
                # Nothing was promoted yet; its workers say so.
                self._tell(model, None)
            except HeadpondError as error:
                self._tell(model, error)

    def _look_at_trials(self) -> None:
        try:
            self._trials.tick()
        except HeadpondError as error:
            self._tell("trials of all models", error)
        else:
            self._tell("trials of all models", None)

    def _follow(self, model: str, source: VersionSource) -> None:
        queue = self._server.queue(model, storage=True)
        store = AliasStore(source, Registry(self._blobs, source.name, writer=self._writer), who=self._writer)
        # In this order: see `is_foreign`.
        switch = queue.read_switch()
        alias = store.get()
        if is_foreign(switch, alias):
            logger.warning(
                "alias_copy_replaced model=%s alias=%s to=%d seq=%d", model, source.version, alias.to, alias.seq
            )
            replace_copy(queue, alias)
            switch = queue.read_switch()
        elif not is_copied(switch, alias):
            logger.info("alias_copied model=%s alias=%s to=%d seq=%d", model, source.version, alias.to, alias.seq)
            copy_alias(queue, alias)
            switch = queue.read_switch()
        for version in refused_by(switch, alias):
            reason = switch.refused[version] if switch is not None else ""
            logger.error(
                "alias_moved_back model=%s alias=%s version=%s reason=%s",
                model, source.version, version, " ".join(reason.split()),
            )  # fmt: skip
            copy_alias(queue, store.leave_version(int(version), reason=reason))

    def _tell(self, model: str, error: HeadpondError | None) -> None:
        """Log a fault once for as long as it lasts."""
        fault = "" if error is None else f"{type(error).__name__}: {error}"
        if fault and self._faults.get(model) != fault:
            logger.warning("alias_not_followed model=%s error=%s", model, fault)
        self._faults[model] = fault


def refused_by(switch: Switch | None, alias: AliasDocument) -> Iterable[str]:
    """Versions that the alias names, or tries, although they did not load; a target only if there is another one."""
    if switch is None or switch.seq != alias.seq:
        return
    target, trial = switch.target, switch.trial
    if target in switch.refused and alias.previous and switch.previous not in switch.refused:
        yield target
    elif trial and trial in switch.refused:
        yield trial
