"""Snapshots of models as they are due, and what goes with them: what retention lets go, the floor, and purges."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from headpond import upkeep
from headpond.queue import JobQueue, Server
from headpond_workers.persistence.history import collect, is_clean, list_unsettled, raise_floor
from headpond_workers.persistence.items import Item
from headpond_workers.persistence.journal_id import JOURNAL_START, JournalId
from headpond_workers.persistence.retention import StoragePolicy, storage_policy
from headpond_workers.persistence.segments import StateStore
from headpond_workers.persistence.snapshots import is_due, make_snapshot
from headpond_workers.storage.blobs import Blobs

logger = logging.getLogger(__name__)

COLLECT_EVERY_S = 600.0
LEAST_ROUND_S = 60.0
MOST_ROUND_S = 6 * 3600.0
ROUNDS_A_RETENTION = 10
"""A round reads all of a model's state, so there are few: what is kept for a day goes at most a tenth of it later."""


class Housekeeping:
    """Of all models that one process persists; one call at a time for each model.

    Raises CommitLost, BlobCorrupt, StorageUnavailable, RedisUnavailable, MalformedDocument. Whatever was begun may be
    left as it is: the next call goes on.
    """

    def __init__(
        self,
        server: Server,
        blobs: Blobs,
        *,
        writer: str,
        history_s: float,
        forget: Callable[[str], object] = lambda model: None,
        follow: Callable[[str, str], object] = lambda model, marks: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """history_s: how far back a restore can go. forget: removes what else there is of a model's prompts, before its
        storage is called clean; it may be called again. follow: the same on each machine, told what the queue says of
        its purges; it may be told again. clock: seconds."""
        self._server, self._blobs, self._writer, self._clock = server, blobs, writer, clock
        self._history_ms = round(history_s * 1000)
        self._forget, self._follow = forget, follow
        self._followed: dict[str, str] = {}
        self._rounds: dict[str, float] = {}
        self._collected: dict[str, float] = {}

    def is_wanted(self, queue: JobQueue) -> bool:
        """Whether there is something to do whatever stands in the journal: a purge, or a round of retention."""
        meta = queue.meta()
        followed = self._followed.get(queue.name, "") == purge_marks(meta)
        return purge_to_do(meta) > JOURNAL_START or not followed or self._is_round_due(queue)

    def renew(self, model: str) -> None:
        """Make a snapshot of one model if that is due or wanted, and remove what it makes superfluous."""
        queue, store = self._server.queue(model, storage=True), StateStore(self._blobs, model)
        meta = queue.meta()
        self._follow_purges(model, purge_marks(meta))
        at = store.read_head()
        if at is None or meta.get("state") != "open" or meta.get("lineage") != at.head.lineage:
            # What storage holds is another history, or a restore reads it.
            return
        purged = purge_to_do(meta)
        if purged > at.head.watermark:
            # Its entry is not committed yet, and the snapshot would hold what is to go.
            purged = JOURNAL_START
        round_due = self._is_round_due(queue)
        if not (is_due(at.head) or purged > JOURNAL_START or round_due):
            return
        collects = purged > JOURNAL_START or round_due or self._age(self._collected, model) >= COLLECT_EVERY_S
        listed = list_unsettled(store) if collects else None
        at = make_snapshot(store, at, writer=self._writer, keep=self._keep(queue) if round_due else None)
        if round_due:
            self._rounds[model] = self._clock()
        if listed is None:
            return
        at = raise_floor(store, at, history_ms=self._history_ms, purged=purged, writer=self._writer)
        collect(store, at, listed)
        self._collected[model] = self._clock()
        if purged > JOURNAL_START and is_clean(store, at, purged):
            self._forget(model)
            queue.run(upkeep.mark_clean(inc=int(meta["inc"]), through=str(purged)))
            logger.info("storage_clean model=%s through=%s", model, purged)

    def _follow_purges(self, model: str, marks: str) -> None:
        """Whoever cleans storage, and whether or not there is something to clean."""
        if self._followed.get(model, "") != marks:
            self._follow(model, marks)
            self._followed[model] = marks

    def _keep(self, queue: JobQueue) -> Callable[[Item], bool]:
        policy, now_ms = self._policy(queue), queue.server.now_ms()
        return lambda item: policy.keeps(item, now_ms=now_ms)

    def _policy(self, queue: JobQueue) -> StoragePolicy:
        return storage_policy(queue.meta(), queue.tenant_retention())

    def _is_round_due(self, queue: JobQueue) -> bool:
        shortest_ms = self._policy(queue).shortest_ms
        if shortest_ms is None:
            return False
        every_s = min(MOST_ROUND_S, max(LEAST_ROUND_S, shortest_ms / 1000 / ROUNDS_A_RETENTION))
        return self._age(self._rounds, queue.name) >= every_s

    def _age(self, times: dict[str, float], model: str) -> float:
        """Seconds since that time; since the first look for what never was."""
        return self._clock() - times.setdefault(model, self._clock())


def purge_marks(meta: Mapping[str, str]) -> str:
    """Another text after each purge, and once more when storage is clean of it; empty before the first."""
    return f"{meta.get('purged', '')} {meta.get('clean', '')}".strip()


def purge_to_do(meta: Mapping[str, str]) -> JournalId:
    """The last drop of a purge that storage is not clean of; JOURNAL_START without one. Raises MalformedDocument."""
    purged, clean = (JournalId.parse(meta[name]) if name in meta else JOURNAL_START for name in ("purged", "clean"))
    return purged if purged > clean else JOURNAL_START
