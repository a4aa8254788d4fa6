"""HeadpondBroker: dramatiq's Broker over JobQueue. Actors, middleware, composition and Worker stay dramatiq's.

Any actor can use it. An actor named `generate` runs jobs: it ends or parks its job itself, and an
acknowledgement of a job that has not ended parks it (Q10). For other actors the acknowledgement is the end.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import dramatiq
from dramatiq.errors import QueueJoinTimeout, QueueNotFound
from ulid import ULID

from headpond.consumer import HeadpondConsumer, closed
from headpond.errors import RedisUnavailable
from headpond.held import HeldLease, HeldLeases, Renewals
from headpond.operations import OWN_LANE, Entry, Submitted
from headpond.queue import JobQueue, Server
from headpond.submission import GENERATE
from headpond.wire import Call, pack_checked

logger = logging.getLogger(__name__)


def _no_row() -> bytes:
    return b""


class _ShutdownSignal(dramatiq.Middleware):
    """Tells consumers that their Worker is going, so that none sleeps on and none claims."""

    def before_worker_boot(self, broker: Any, worker: Any) -> None:
        broker.draining = False

    def before_worker_shutdown(self, broker: Any, worker: Any) -> None:
        broker.drain()


class HeadpondBroker(dramatiq.Broker):
    """A broker on one Redis or Valkey server.

    slots: jobs that one consumer holds at most; None: what dramatiq's Worker would prefetch. version, fingerprint: of
    the model that serves here (Q5). anew: why it cannot go on after tokens of an earlier lease; '' if it can. row:
    makes the worker's row for each renewal.
    """

    def __init__(
        self,
        server: Server,
        *,
        middleware: list[dramatiq.Middleware] | None = None,
        slots: int | None = None,
        lease_s: float = 10.0,
        boot: str | None = None,
        version: str = "",
        fingerprint: str = "",
        anew: str = "",
        storage: bool = False,
        row: Callable[[], bytes] = _no_row,
    ) -> None:
        self._heeded: dict[str, tuple[int, bool]] = {}
        super().__init__(middleware=middleware)
        self.server, self.slots, self.lease_s = server, slots, lease_s
        self.boot = boot or str(ULID())
        self.version, self.fingerprint, self.storage, self.row = version, fingerprint, storage, row
        self.anew = anew
        self._own_lane = False
        self.host = f"{socket.gethostname()}:{os.getpid()}"
        self.draining, self.paused = False, False
        self.queues: set[str] = set()
        # By queue, and for the life of the process: dramatiq may replace a consumer while its jobs run.
        self._held: dict[str, HeldLeases] = {}
        self._renewals: dict[str, Renewals] = {}
        self._consumers: set[HeadpondConsumer] = set()
        self.add_middleware(_ShutdownSignal())

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        if self._heeds(f"before_{signal}"):
            super().emit_before(signal, *args, **kwargs)

    def emit_after(self, signal: str, *args: Any, **kwargs: Any) -> None:
        if self._heeds(f"after_{signal}"):
            super().emit_after(signal, *args, **kwargs)

    def _heeds(self, hook: str) -> bool:
        """Whether any middleware does something at this signal. dramatiq calls them all, several times a message."""
        known = self._heeded.get(hook)
        if known is None or known[0] != len(self.middleware):
            plain = getattr(dramatiq.Middleware, hook, None)
            heeded = any(
                getattr(type(m), hook, plain) is not plain or hook in getattr(m, "__dict__", ())
                for m in self.middleware
            )
            known = self._heeded[hook] = (len(self.middleware), heeded)
        return known[1]

    def declare_queue(self, queue_name: str) -> None:
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues.add(queue_name)
            self.emit_after("declare_queue", queue_name)

    def get_declared_queues(self) -> set[str]:
        return self.queues.copy()

    def job_queue(self, queue_name: str) -> JobQueue:
        """Raises QueueNotFound, RedisUnavailable."""
        if queue_name not in self.queues:
            raise QueueNotFound(queue_name)  # type: ignore[no-untyped-call]
        return self.server.queue(queue_name, storage=self.storage)

    def enqueue(self, message: dramatiq.Message[Any], *, delay: int | None = None) -> dramatiq.Message[Any]:
        """delay: ms. Enqueued at most once for each (message id, retry), however often it is repeated (Q13).

        Raises ConnectionClosed if the server is away, MalformedDocument if an argument would not arrive as it is.
        """
        self.emit_before("enqueue", message, delay)
        retries = message.options.get("retries", 0)
        call = Call(message.actor_name, message.args, message.kwargs, message.options, message.message_timestamp)
        entry = Entry(
            id=message.message_id if message.actor_name == GENERATE else f"{message.message_id}#{retries}",
            data=pack_checked(call),
            digest="",
            delay_s=(delay or 0) / 1000,
        )
        try:
            queue = self.job_queue(message.queue_name)
            (answer,) = queue.submit([entry])
        except RedisUnavailable as error:
            raise closed(error) from error
        logger.debug("enqueued queue=%s id=%s new=%s", queue.name, entry.id, answer is Submitted.NEW)
        self.emit_after("enqueue", message, delay)
        return message

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> HeadpondConsumer:
        try:
            queue = self.job_queue(queue_name)
        except RedisUnavailable as error:
            raise closed(error) from error
        if queue_name not in self._held:
            held = self._held[queue_name] = HeldLeases(self.slots or prefetch)
            renewals = Renewals(
                queue, held, boot=self.boot, lease_s=self.lease_s, row=self.row,
                full_version=lambda: self.full_version(queue_name),
            )  # fmt: skip
            renewals.start()
            # Last: whoever sees it sees it alive.
            self._renewals[queue_name] = renewals
        consumer = HeadpondConsumer(self, queue, self._held[queue_name])
        self._consumers.add(consumer)
        return consumer

    def full_version(self, queue_name: str) -> str:
        """The version that is served, as `operations.renew` takes it, while all slots are taken; else ''. Only a full
        worker is told to preempt."""
        if self.anew:
            # A job that would begin anew loses all of its work by being parked, so none is asked to give way.
            return ""
        held = self._held.get(queue_name)
        if held is None or held.free:
            return ""
        return OWN_LANE + self.version if self._own_lane else self.version

    def preempt(self, held: HeldLease) -> None:
        """Park a job and claim a more urgent one for its slot, in one step (Q12). Raises RedisUnavailable."""
        for consumer in list(self._consumers):
            if held in consumer.held:
                consumer.preempt(held)
                return

    @property
    def claims(self) -> bool:
        return not (self.draining or self.paused)

    @property
    def own_lane(self) -> bool:
        """Whether only what waits for this broker's version is claimed (Q5). May be set at any time: jobs that run go
        on, and who waits for work looks anew at once."""
        return self._own_lane

    @own_lane.setter
    def own_lane(self, own_lane: bool) -> None:
        if own_lane and not self.version:
            raise ValueError("without a version there is no lane of its own")
        if own_lane != self._own_lane:
            self._own_lane = own_lane
            for consumer in list(self._consumers):
                consumer.interrupt()

    def pause(self) -> None:
        """Claim nothing until `resume`. Jobs that run go on, and their leases are kept."""
        self.paused = True
        for consumer in list(self._consumers):
            consumer.interrupt()

    def resume(self) -> None:
        self.paused = False

    def drain(self) -> None:
        """Claim nothing more. Jobs that run go on, and their leases are kept."""
        self.draining = True
        for consumer in list(self._consumers):
            consumer.interrupt()

    def held(self) -> list[HeldLease]:
        """All leases of this process."""
        return [lease for held in list(self._held.values()) for lease in held.all()]

    def keeps_leases(self) -> bool:
        """False once a thread that renews leases has died of a defect."""
        return all(renewals.is_alive() for renewals in self._renewals.values())

    def close(self) -> None:
        """Keep no lease any more: what is still held ends by itself."""
        for renewals in self._renewals.values():
            renewals.stop()

    def forget(self, consumer: HeadpondConsumer) -> None:
        self._consumers.discard(consumer)

    def flush(self, queue_name: str) -> None:
        """Cancel every job that waits or runs."""
        queue = self.job_queue(queue_name)
        for job_id in queue.ids():
            queue.cancel(job_id)

    def flush_all(self) -> None:
        for queue_name in self.queues:
            self.flush(queue_name)

    def join(self, queue_name: str, *, interval: int = 20, timeout: int | None = None) -> None:
        """Wait until nothing waits or runs. interval, timeout: ms. Raises QueueJoinTimeout."""
        until = None if timeout is None else time.monotonic() + timeout / 1000
        queue = self.job_queue(queue_name)
        while True:
            depths = queue.depths()
            if depths.ready + depths.delayed + depths.running == 0:
                return
            if until is not None and time.monotonic() >= until:
                raise QueueJoinTimeout(queue_name)  # type: ignore[no-untyped-call]
            time.sleep(interval / 1000)
