"""A Redis that lost its data: one model's state comes back from storage (Q2, S8)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from headpond.errors import CommitLost, RestoreRefused, ServerWentBack
from headpond.queue import JobQueue
from headpond.restoring import Condition, begin_restore, end_restore
from headpond_workers.persistence.restoring.fair_queue import as_queue_has_it
from headpond_workers.persistence.restoring.filling import Filling
from headpond_workers.persistence.restoring.tally import Tally
from headpond_workers.persistence.segments import HeadAt, StateStore
from headpond_workers.persistence.snapshots import make_snapshot
from headpond_workers.persistence.state_point import StatePoint

logger = logging.getLogger(__name__)

TRIES = 5
"""Of a step that another writer, or a restart of the server, came between."""
OnItems = Callable[[int], None]
"""Told how many items are in by now."""


@dataclass(frozen=True, slots=True)
class Restored:
    """as_of_ms: Redis's time up to which all that was acknowledged is back. met_ms: when the empty Redis was first
    used: what was acknowledged between the two, by the Redis that was lost, is lost. fork: the state is an older one
    than the newest, and the history goes on from there."""

    model: str
    lineage: str
    seq: int
    as_of_ms: int
    met_ms: int
    fork: bool
    tally: Tally

    @property
    def lost_ms(self) -> int:
        """How long the interval is of which changes may be lost."""
        return max(0, self.met_ms - self.as_of_ms)


@dataclass(slots=True)
class Restoration:
    """Restores one model. until_ms: up to which time; None for all. Killed anywhere, the same goes on where it was."""

    queue: JobQueue
    store: StateStore
    until_ms: int | None
    writer: str
    on_items: OnItems = lambda _: None

    def preview(self) -> Restored:
        """What `run` would bring back. Changes nothing. Raises what it raises."""
        at = self._head()
        met_ms = self._check(at)
        point = self._point(at)
        filling = Filling(self.queue, 0, beside=False, on_jobs=self.on_items)
        filling.count(point.items())
        return self._restored(at, point, met_ms, filling.tally)

    def run(self) -> Restored:
        """Raises RestoreRefused, HistoryTooShort, BlobCorrupt, RedisUnavailable, StorageUnavailable."""
        at = self._head()
        met_ms = self._check(at)
        self._point(at)
        at = self._fence(at)
        point = self._point(at)
        last: ServerWentBack | None = None
        for _ in range(TRIES):
            try:
                tally = self._fill(at, point, met_ms)
            except ServerWentBack as error:
                last = error
                continue
            logger.info("restored model=%s seq=%d jobs=%d", self.queue.name, point.seq, tally.jobs)
            return self._restored(at, point, met_ms, tally)
        raise last or ServerWentBack("restore")

    def _fill(self, at: HeadAt, point: StatePoint, met_ms: int) -> Tally:
        began = self.queue.run(
            begin_restore(
                lineage=at.head.lineage, what=self._what(at, point, met_ms), least_inc=at.head.inc,
                fair=as_queue_has_it(point.fair),
            )
        )  # fmt: skip
        self._check_begun(began, at, point)
        filling = Filling(self.queue, began.inc, beside=False, on_jobs=self.on_items)
        filling.put(point.items())
        filling.rejournal()
        # Before anybody works: else what comes next would follow the state that was given up.
        self._commit(point, inc=began.inc)
        ended = self.queue.run(end_restore(lineage=at.head.lineage, inc=began.inc))
        if ended.state != "open":
            raise ServerWentBack("restore")
        return filling.tally

    def _commit(self, point: StatePoint, *, inc: int) -> None:
        """The head leads to what was restored, and knows the incarnation of the Redis that has it now."""
        at = self._head()
        at = self.store.swap(at, replace(at.head, inc=max(at.head.inc, inc)), writer=self.writer)
        is_fork = point.seq < at.head.seq
        if is_fork or at.head.snapshot_seq < at.head.seq:
            now_ms = self.queue.server.now_ms() if is_fork else 0
            make_snapshot(self.store, at, writer=self.writer, until_ms=self.until_ms, now_ms=now_ms)

    def _head(self) -> HeadAt:
        at = self.store.read_head()
        if at is None:
            raise RestoreRefused(self.queue.name, "storage holds no state of it. Check [storage], and the model's name")
        return at

    def _check(self, at: HeadAt) -> int:
        """Refuse a queue that holds a history of its own. Returns when this Redis was first used for it, ms."""
        meta = self.queue.meta()
        state, lineage = meta.get("state", ""), meta.get("lineage", "")
        if state == "restoring":
            return int(meta.get("restoring", "0").rpartition(" ")[2])
        if state == "closed" and not lineage:
            return int(meta.get("inc", "0"))
        raise RestoreRefused(self.queue.name, _why_not(state, ours=lineage, theirs=at.head.lineage))

    def _point(self, at: HeadAt) -> StatePoint:
        point = self.store.state(at.head, until_ms=self.until_ms)
        if point.seq == 0:
            when = "by then" if self.until_ms is not None else "yet"
            raise RestoreRefused(self.queue.name, f"nothing of it was committed {when}")
        return point

    def _fence(self, at: HeadAt) -> HeadAt:
        """From now on nobody commits what the lost Redis had: its incarnation is below that of the head."""
        for _ in range(TRIES):
            try:
                return self.store.swap(at, replace(at.head, inc=at.head.inc + 1), writer=self.writer)
            except CommitLost:
                at = self._head()
        raise CommitLost(self.store.head_key)

    def _what(self, at: HeadAt, point: StatePoint, met_ms: int) -> str:
        """What is restored, in words that a restore which goes on finds in Redis."""
        until = "-" if self.until_ms is None else str(self.until_ms)
        return f"{at.head.lineage} {point.seq} {until} {met_ms}"

    def _check_begun(self, began: Condition, at: HeadAt, point: StatePoint) -> None:
        if began.state != "restoring":
            raise RestoreRefused(self.queue.name, _why_not(began.state, ours=began.lineage, theirs=at.head.lineage))
        lineage, seq, until, _ = began.restoring.split(" ")
        mine = (at.head.lineage, str(point.seq), "-" if self.until_ms is None else str(self.until_ms))
        if (lineage, seq, until) != mine:
            how = "without --at" if until == "-" else f"with --at {int(until) / 1000:.3f}"
            raise RestoreRefused(
                self.queue.name,
                f"another restore of it has begun, {how}, of state {seq}, and this would be of state {point.seq}. Let "
                "that one end, with the same command; or remove what this Redis holds of the model, and begin anew",
            )

    def _restored(self, at: HeadAt, point: StatePoint, met_ms: int, tally: Tally) -> Restored:
        return Restored(
            self.queue.name, at.head.lineage, point.seq, point.as_of_ms, met_ms,
            fork=self.until_ms is not None and point.seq < at.head.seq, tally=tally,
        )  # fmt: skip


def _why_not(state: str, *, ours: str, theirs: str) -> str:
    if ours and ours != theirs:
        return (
            f"this Redis holds a history of its own (lineage {ours}), and storage another one ({theirs}). Point "
            "[storage] at the bucket of this Redis, or remove what this Redis holds of the model"
        )
    if state in ("open", "reconciling"):
        return (
            f"its queue is {state}: this Redis has not lost it. To go back to an earlier state, stop its workers and "
            "producers, remove what this Redis holds of it, and restore with --at"
        )
    return "this Redis holds its history, and its persister opens the queue once storage answers"
