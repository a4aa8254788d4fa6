"""The leases that one process holds, and the thread that keeps them. Rules: Q3, Q8."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from headpond.errors import HeadpondError, RedisUnavailable
from headpond.operations import Lease, LeaseStatus
from headpond.queue import JobQueue

logger = logging.getLogger(__name__)

RENEWALS_PER_LEASE = 3
IDLE_RENEWAL_S = 10.0
"""How often a worker that holds nothing renews its row; its claims say that it lives."""
STOP_WAIT_S = 5.0
"""How long a renewal that is on its way is waited for, where the server does not answer."""


def _always() -> bool:
    return True


@dataclass(slots=True, eq=False)
class HeldLease:
    """One lease in this process. Whoever runs its job looks at `lost` and sets `settled`.

    lost: why this lease may write no more; None while it may. settled: the job was finished or parked by this
    lease. preempted: the job is to be parked for a more urgent one. moving: whether the work goes on; a lease that
    does not move is not renewed.
    """

    lease: Lease
    lost: LeaseStatus | None = None
    settled: bool = False
    preempted: bool = False
    moving: Callable[[], bool] = _always

    @property
    def key(self) -> tuple[str, str]:
        return self.lease.id, self.lease.fence


@dataclass(slots=True)
class HeldLeases:
    """All leases of one consumer, by (id, fence). Thread-safe. slots: how many it holds at most."""

    slots: int
    last_seq: int = 0
    """The last claim whose reply is in the table."""
    claiming: threading.Lock = field(default_factory=threading.Lock)
    """Held from a claim to its reply: two claims under one seq would get the same leases."""
    _held: dict[tuple[str, str], HeldLease] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def free(self) -> int:
        return max(0, self.slots - len(self._held))

    def received(self, seq: int, leases: tuple[Lease, ...], *, over: Sequence[HeldLease] = ()) -> list[HeldLease]:
        """Take in the reply of a claim. over: leases that it settled."""
        new = [HeldLease(lease) for lease in leases]
        with self._changed:
            for held in over:
                self._held.pop(held.key, None)
            for held in new:
                self._held[held.key] = held
            # Last: a renewal that names this seq must name its leases too.
            self.last_seq = seq
            self._changed.notify_all()
        return new

    def __contains__(self, held: HeldLease) -> bool:
        return self._held.get(held.key) is held

    def drop(self, held: HeldLease) -> None:
        with self._changed:
            self._held.pop(held.key, None)
            self._changed.notify_all()

    def all(self) -> list[HeldLease]:
        with self._changed:
            return list(self._held.values())

    def snapshot(self) -> tuple[int, list[HeldLease]]:
        with self._changed:
            return self.last_seq, list(self._held.values())

    def wait_below(self, count: int, timeout_s: float, *, unless: Callable[[], bool] = lambda: False) -> bool:
        """Wait until fewer than `count` leases are held, or `unless` is true when something changes."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._held) < count or unless(), timeout_s)

    def interrupt(self) -> None:
        with self._changed:
            self._changed.notify_all()


class Renewals(threading.Thread):
    """Renews the leases of one consumer three times a lease, and passes on what became of them."""

    def __init__(
        self,
        queue: JobQueue,
        held: HeldLeases,
        *,
        boot: str,
        lease_s: float,
        row: Callable[[], bytes],
        full_version: Callable[[], str],
    ) -> None:
        """full_version: the version that is served, while all slots are taken; else ''."""
        super().__init__(name=f"renewals-{queue.name}", daemon=True)
        self._queue, self._held, self._boot, self._row = queue, held, boot, row
        self._full_version = full_version
        self._interval_s = lease_s / RENEWALS_PER_LEASE
        self._stop = threading.Event()
        self._renewing = threading.Lock()
        self._notices = queue.notices(boot)
        self._said = (0, 0.0)
        """How many leases the last renewal named, and when it was."""

    def run(self) -> None:
        while not self._paused():
            named, at = self._said
            if not named and not len(self._held) and time.monotonic() - at < IDLE_RENEWAL_S:
                continue
            try:
                self.renew()
            except HeadpondError as error:
                # The server is away. Its leases move with it (Q8), so trying again is all there is to do.
                logger.warning("renewal_failed queue=%s error=%s", self._queue.name, error)

    def _paused(self) -> bool:
        """Wait for the next renewal, or for a notice that brings it forward. True once told to stop."""
        until = time.monotonic() + self._interval_s
        while not self._stop.is_set() and (left_s := until - time.monotonic()) > 0:
            if not len(self._held):
                self._stop.wait(left_s)
                continue
            try:
                if self._notices.wait(left_s, unless=self._stop.is_set):
                    break
            except RedisUnavailable as error:
                logger.info("notices_failed queue=%s error=%s", self._queue.name, error)
                self._stop.wait(left_s)
        return self._stop.is_set()

    def renew(self) -> None:
        """One renewal, now; none once told to stop. Raises RedisUnavailable."""
        with self._renewing:
            if not self._stop.is_set():
                self._renew()

    def _renew(self) -> None:
        last_seq, all_held = self._held.snapshot()
        named = [held for held in all_held if held.lost is None and held.moving()]
        pairs = [held.key for held in named]
        answers = self._queue.renew(
            self._boot, last_seq=last_seq, row=self._row(), pairs=pairs, full_version=self._full_version()
        )
        self._said = (len(named), time.monotonic())
        for held, status in zip(named, answers, strict=True):
            held.preempted = held.preempted or status is LeaseStatus.PREEMPT
            if status.over and not held.settled:
                held.lost = status
                logger.info("lease_lost job=%s status=%s", held.lease.id, status.value)
        for held in all_held:
            if held.lost is None and not held.settled and held not in named:
                # It did not move, so it was not named, and the server has taken it back.
                held.lost = LeaseStatus.FENCED
                logger.error("lease_stalled job=%s", held.lease.id)

    def stop(self) -> None:
        """No renewal begins any more, and the one that is on its way has its answer, or has taken too long."""
        self._stop.set()
        self._notices.interrupt()
        # It writes the row of this worker, which whoever leaves takes away.
        if self._renewing.acquire(timeout=STOP_WAIT_S):
            self._renewing.release()
