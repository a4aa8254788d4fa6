"""HeadpondBroker: dramatiq's Broker over JobQueue. Actors, middleware, composition and Worker stay dramatiq's.

Any actor can use it. An actor named `generate` runs jobs: it ends or parks its job itself, and an
acknowledgement of a job that has not ended parks it (Q10). For other actors the acknowledgement is the end.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import dramatiq
from dramatiq.errors import ConnectionClosed, QueueJoinTimeout, QueueNotFound
from ulid import ULID

from headpond.connections import BLOCK_S
from headpond.errors import HeadpondError, MalformedDocument, RedisUnavailable
from headpond.held import HeldLease, HeldLeases, Renewals
from headpond.jobs import JobState
from headpond.keys import BAND_NORMAL, LANE_ANY
from headpond.operations import Entry, LeaseStatus, Submitted
from headpond.queue import JobQueue, Server
from headpond.submission import GENERATE
from headpond.wire import Call, pack_data, unpack_data

logger = logging.getLogger(__name__)

RETRY_S = 0.2
"""Between attempts to reach a server that is away."""


def _closed(error: RedisUnavailable) -> ConnectionClosed:
    """In dramatiq's terms: its Worker tries again."""
    return ConnectionClosed(str(error))  # type: ignore[no-untyped-call]


def _no_row() -> bytes:
    return b""


class LeasedMessage(dramatiq.MessageProxy):
    """A message together with the lease under which it runs."""

    def __init__(self, message: dramatiq.Message[Any], held: HeldLease) -> None:
        super().__init__(message)
        self.held = held


def _held(message: dramatiq.MessageProxy) -> HeldLease:
    if not isinstance(message, LeasedMessage):
        raise TypeError(f"{message!r} does not come from a HeadpondConsumer")
    return message.held


class _ShutdownSignal(dramatiq.Middleware):
    """Tells consumers that their Worker is going, so that none sleeps on and none claims."""

    def before_worker_boot(self, broker: Any, worker: Any) -> None:
        broker.draining = False

    def before_worker_shutdown(self, broker: Any, worker: Any) -> None:
        broker.drain()


class HeadpondBroker(dramatiq.Broker):
    """A broker on one Redis or Valkey server.

    slots: jobs that one consumer holds at most; None: what dramatiq's Worker would prefetch. fingerprint: of the
    model that serves here (Q5). row: makes the worker's row for each renewal.
    """

    def __init__(
        self,
        server: Server,
        *,
        middleware: list[dramatiq.Middleware] | None = None,
        slots: int | None = None,
        lease_s: float = 10.0,
        boot: str | None = None,
        fingerprint: str = "",
        storage: bool = False,
        row: Callable[[], bytes] = _no_row,
    ) -> None:
        super().__init__(middleware=middleware)
        self.server, self.slots, self.lease_s = server, slots, lease_s
        self.boot = boot or str(ULID())
        self.fingerprint, self.storage, self.row = fingerprint, storage, row
        self.draining = False
        self.queues: set[str] = set()
        # By queue, and for the life of the process: dramatiq may replace a consumer while its jobs run.
        self._held: dict[str, HeldLeases] = {}
        self._renewals: dict[str, Renewals] = {}
        self._consumers: set[HeadpondConsumer] = set()
        self.add_middleware(_ShutdownSignal())

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
            data=pack_data(call, digest="", tenant="", band=BAND_NORMAL, lane=LANE_ANY),
            digest="",
            delay_s=(delay or 0) / 1000,
        )
        # What a worker could not read is refused here: a dict with keys that are no strings, for one.
        unpack_data(entry.data)
        try:
            queue = self.job_queue(message.queue_name)
            (answer,) = queue.submit([entry])
        except RedisUnavailable as error:
            raise _closed(error) from error
        logger.debug("enqueued queue=%s id=%s new=%s", queue.name, entry.id, answer is Submitted.NEW)
        self.emit_after("enqueue", message, delay)
        return message

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> HeadpondConsumer:
        try:
            queue = self.job_queue(queue_name)
        except RedisUnavailable as error:
            raise _closed(error) from error
        if queue_name not in self._held:
            held = self._held[queue_name] = HeldLeases()
            renewals = Renewals(queue, held, boot=self.boot, lease_s=self.lease_s, row=self.row)
            self._renewals[queue_name] = renewals
            renewals.start()
        consumer = HeadpondConsumer(self, queue, self._held[queue_name], slots=self.slots or prefetch)
        self._consumers.add(consumer)
        return consumer

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


class HeadpondConsumer(dramatiq.Consumer):
    """Claims jobs of one queue: blocks on the server instead of polling, and holds no more than slots."""

    def __init__(self, broker: HeadpondBroker, queue: JobQueue, held: HeldLeases, *, slots: int) -> None:
        self._broker, self._queue, self._slots = broker, queue, slots
        self.held = held
        self._ready: deque[LeasedMessage] = deque()
        self._claim_by = 0.0
        self._dry = False
        self._waiter = queue.waiter()

    def __next__(self) -> LeasedMessage | None:
        if self._ready:
            return self._ready.popleft()
        if self._broker.draining:
            self.held.wait_below(0, RETRY_S)
            return None
        free = self._slots - len(self.held)
        if free <= 0:
            self.held.wait_below(self._slots, 1.0)
            return None
        try:
            if not self._dry or time.monotonic() >= self._claim_by:
                self._claim(free)
            if self._dry and not self._ready:
                block_s = max(0.001, self._claim_by - time.monotonic())
                self._dry = not self._waiter.wait(block_s, unless=lambda: self._broker.draining)
        except RedisUnavailable as error:
            logger.warning("claim_failed queue=%s error=%s", self._queue.name, error)
            self._dry = False
            self.held.wait_below(0, RETRY_S)
            return None
        return self._ready.popleft() if self._ready else None

    def _claim(self, free: int) -> None:
        # The seq is that of the last reply, and one: after a lost reply the same one is asked again, and answered
        # with the same leases.
        with self.held.claiming:
            seq = self.held.last_seq + 1
            claimed = self._queue.claim(
                self._broker.boot, seq=seq, nonce=str(ULID()), slots=free, fingerprint=self._broker.fingerprint,
                lease_s=self._broker.lease_s,
            )  # fmt: skip
            received = self.held.received(seq, claimed.leases)
        for held in received:
            self._deliver(held)
        self._dry = len(claimed.leases) < free
        wait_s = BLOCK_S if claimed.next_due_s is None else min(BLOCK_S, claimed.next_due_s)
        self._claim_by = time.monotonic() + wait_s

    def _deliver(self, held: HeldLease) -> None:
        lease = held.lease
        try:
            call = unpack_data(lease.data)
        except MalformedDocument as error:
            logger.error("undecodable queue=%s id=%s error=%s", self._queue.name, lease.id, error)
            self._refuse(held, str(error))
            return
        is_job = call.actor == GENERATE
        message: dramatiq.Message[Any] = dramatiq.Message(
            queue_name=self._queue.name,
            actor_name=call.actor,
            args=call.args,
            kwargs=call.kwargs,
            options=call.options,
            message_id=lease.id if is_job else lease.id.rpartition("#")[0],
            message_timestamp=call.timestamp_ms,
        )
        self._ready.append(LeasedMessage(message, held))

    def _refuse(self, held: HeldLease, reason: str) -> None:
        """Fail what cannot even be handed out. If the server cannot be told, the lease is named no more and ends."""
        try:
            self._end(held, JobState.FAILED, reason)
        except (ConnectionClosed, HeadpondError) as error:
            logger.warning("refusal_failed queue=%s id=%s error=%s", self._queue.name, held.lease.id, error)
        self.held.drop(held)

    def ack(self, message: dramatiq.MessageProxy) -> None:
        self._settle(message, JobState.FINISHED, "")

    def nack(self, message: dramatiq.MessageProxy) -> None:
        self._settle(message, JobState.FAILED, f"{message.actor_name} failed")

    def _settle(self, message: dramatiq.MessageProxy, state: JobState, reason: str) -> None:
        held = _held(message)
        try:
            if not held.settled and held.lost is None:
                if message.actor_name == GENERATE:
                    self._park(held, strike=state is JobState.FAILED)
                else:
                    self._end(held, state, reason)
        except HeadpondError:
            # dramatiq repeats this after ConnectionClosed alone. A lease that nobody will settle must not be kept.
            self.held.drop(held)
            raise
        self.held.drop(held)

    def requeue(self, messages: Iterable[dramatiq.MessageProxy]) -> None:
        """Give back what was not begun. What the server could not be told is named no more, and so comes back."""
        refused: ConnectionClosed | None = None
        for message in messages:
            held = _held(message)
            try:
                if refused is None:
                    self._park(held, strike=False)
            except ConnectionClosed as error:
                refused = error
            finally:
                self.held.drop(held)
        if refused is not None:
            raise refused

    def _park(self, held: HeldLease, *, strike: bool) -> None:
        try:
            (status,) = self._queue.park([held.key], strike=strike)
        except RedisUnavailable as error:
            raise _closed(error) from error
        held.settled = status is LeaseStatus.PARKED

    def _end(self, held: HeldLease, state: JobState, reason: str) -> None:
        lease = held.lease
        try:
            outcome = self._queue.finish(
                lease.id, lease.fence, offset=lease.offset, state=state, result=b"", reason=reason[:500]
            )
        except RedisUnavailable as error:
            raise _closed(error) from error
        held.settled = outcome.status is LeaseStatus.DONE
        if not held.settled:
            logger.warning("end_refused queue=%s id=%s status=%s", self._queue.name, lease.id, outcome.status.value)

    def interrupt(self) -> None:
        """Wake whoever waits in __next__."""
        self.held.interrupt()
        self._waiter.interrupt()

    def close(self) -> None:
        self._broker.forget(self)
        try:
            self.requeue(list(self._ready))
            self._ready.clear()
        except (ConnectionClosed, HeadpondError) as error:
            # Their leases end by themselves.
            logger.warning("requeue_failed queue=%s error=%s", self._queue.name, error)
        self._waiter.close()
