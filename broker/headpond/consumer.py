"""What dramatiq's Worker takes messages from: claims on one queue, and the settlements of their leases.

A settlement (an acknowledgement of an actor, a park) and the next claim travel in one script, and settlements of
several threads in one call: whoever has the turn takes along what the others left.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dramatiq
from dramatiq.errors import ConnectionClosed
from dramatiq.worker import ConsumerThread
from ulid import ULID

from headpond.connections import BLOCK_S
from headpond.errors import HeadpondError, MalformedDocument, RedisUnavailable
from headpond.held import HeldLease, HeldLeases
from headpond.operations import LeaseStatus, Settle, Settlement
from headpond.queue import JobQueue
from headpond.submission import GENERATE
from headpond.wire import unpack_data

if TYPE_CHECKING:
    from headpond.broker import HeadpondBroker

logger = logging.getLogger(__name__)

RETRY_S = 0.2
"""Between attempts to reach a server that is away."""


def closed(error: RedisUnavailable) -> ConnectionClosed:
    """In dramatiq's terms: its Worker tries again."""
    return ConnectionClosed(str(error))  # type: ignore[no-untyped-call]


class LeasedMessage(dramatiq.MessageProxy):
    """A message together with the lease under which it runs."""

    def __init__(self, message: dramatiq.Message[Any], held: HeldLease) -> None:
        super().__init__(message)
        self.held = held


def _held(message: dramatiq.MessageProxy) -> HeldLease:
    if not isinstance(message, LeasedMessage):
        raise TypeError(f"{message!r} does not come from a HeadpondConsumer")
    return message.held


@dataclass(slots=True, eq=False)
class _Pending:
    """A settlement that waits for its turn. answer: None until the server has given one."""

    held: HeldLease
    settlement: Settlement
    answer: LeaseStatus | None = None


class HeadpondConsumer(dramatiq.Consumer):
    """Claims jobs of one queue: blocks on the server instead of polling, and holds no more than its slots."""

    def __init__(self, broker: HeadpondBroker, queue: JobQueue, held: HeldLeases) -> None:
        self._broker, self._queue = broker, queue
        self.held = held
        self._ready: deque[LeasedMessage] = deque()
        self._pending: deque[_Pending] = deque()
        self._claim_by = 0.0
        self._dry = False
        """The last claim left nothing, so the next one waits for a wake token, or for `_claim_by`."""
        self._own_lane = broker.own_lane
        """As the waiter has it."""
        self._waiter = queue.waiter(broker.version)
        if self._own_lane:
            self._heed_lanes()
        self._thread: ConsumerThread | None = None
        """dramatiq's thread that iterates over this."""

    def __next__(self) -> LeasedMessage | None:
        if self._thread is None and isinstance(thread := threading.current_thread(), ConsumerThread):
            self._thread = thread
        if self._ready:
            return self._ready.popleft()
        if self._own_lane != self._broker.own_lane:
            self._heed_lanes()
        if not self._broker.claims:
            self.held.wait_below(0, RETRY_S)
            return None
        if self.held.free == 0 and not self._pending:
            self.held.wait_below(self.held.slots, 1.0, unless=lambda: bool(self._ready) or not self._broker.claims)
            return self._ready.popleft() if self._ready else None
        try:
            if self._pending or not self._dry or time.monotonic() >= self._claim_by:
                with self.held.claiming:
                    self._turn(claim=True)
            if self._dry and not self._ready and not self._pending:
                block_s = max(0.001, self._claim_by - time.monotonic())
                self._dry = not self._waiter.wait(block_s, unless=self._needs_no_wait)
        except RedisUnavailable as error:
            logger.warning("claim_failed queue=%s error=%s", self._queue.name, error)
            self._dry = False
            self.held.wait_below(0, RETRY_S)
            return None
        return self._ready.popleft() if self._ready else None

    def _needs_no_wait(self) -> bool:
        broker = self._broker
        return not broker.claims or bool(self._ready) or self._own_lane != broker.own_lane

    def _heed_lanes(self) -> None:
        """Wait for wake tokens of the lanes that are read from now on, after a claim that looks at them."""
        self._own_lane, self._dry = self._broker.own_lane, False
        self._waiter.watch(self._queue.wake_keys(self._broker.version, own_lane=self._own_lane))

    def _turn(self, *, claim: bool) -> None:
        """Send what waits to be settled, and claim for all slots that are free then. `held.claiming` is held.

        Raises RedisUnavailable, QueueError; the settlements wait on then.
        """
        batch = [self._pending.popleft() for _ in range(len(self._pending))]
        over = [pending.held for pending in batch]
        free = self.held.free + len(over) if claim and self._broker.claims else 0
        if free == 0 and not batch:
            return
        # The seq is that of the last reply, and one: after a lost reply the same one is asked again, and answered
        # with the same leases. A call that only settles uses none.
        seq = self.held.last_seq + 1
        broker = self._broker
        try:
            claimed = self._queue.claim(
                broker.boot, seq=seq, nonce=str(ULID()) if free else "", slots=free, version=broker.version,
                fingerprint=broker.fingerprint, host=broker.host, lease_s=broker.lease_s, anew=broker.anew,
                own_lane=broker.own_lane, settle=[pending.settlement for pending in batch],
            )  # fmt: skip
        except HeadpondError:
            self._pending.extendleft(reversed(batch))
            raise
        for pending, status in zip(batch, claimed.settled, strict=True):
            pending.answer = status
            pending.held.settled = status in (LeaseStatus.DONE, LeaseStatus.PARKED)
            if not pending.held.settled:
                logger.warning(
                    "settlement_refused queue=%s id=%s status=%s", self._queue.name, pending.settlement.id, status.value
                )
        received = self.held.received(seq if free else self.held.last_seq, claimed.leases, over=over)
        for held in received:
            self._deliver(held)
        if free:
            self._dry = len(claimed.leases) < free
            # Often enough that no sweep of an idle queue is late by half a lease, and blames nobody for it (Q8).
            wait_s = min(BLOCK_S, broker.lease_s / 3)
            if claimed.next_due_s is not None:
                wait_s = min(wait_s, claimed.next_due_s)
            self._claim_by = time.monotonic() + wait_s
        if received:
            self.held.interrupt()

    def _deliver(self, held: HeldLease) -> None:
        lease = held.lease
        try:
            call = unpack_data(lease.data)
        except MalformedDocument as error:
            logger.error("undecodable queue=%s id=%s error=%s", self._queue.name, lease.id, error)
            # The next turn tells the server; its lease is kept until then.
            self._pending.append(_Pending(held, self._settlement(held, Settle.FAILED, str(error))))
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
        leased = LeasedMessage(message, held)
        if self._thread is None or self._thread is threading.current_thread():
            self._ready.append(leased)
        else:
            # A worker's thread claimed it: to hand it out here spares waking the consumer's.
            self._thread.handle_message(leased)

    def ack(self, message: dramatiq.MessageProxy) -> None:
        # A job of a model is ended by its generation. One that was not is put back (Q10).
        self._settle(message, Settle.PARKED if message.actor_name == GENERATE else Settle.FINISHED, "")

    def nack(self, message: dramatiq.MessageProxy) -> None:
        what = Settle.FAULTY if message.actor_name == GENERATE else Settle.FAILED
        self._settle(message, what, f"{message.actor_name} failed")

    def preempt(self, held: HeldLease) -> None:
        """Park a job, and claim for its slot in the same step."""
        self._send(
            _Pending(held, self._settlement(held, Settle.PREEMPTED, "a more urgent job took its slot")), claim=True
        )

    def requeue(self, messages: Iterable[dramatiq.MessageProxy]) -> None:
        """Give back what was not begun. What the server could not be told is named no more, and so comes back."""
        refused: ConnectionClosed | None = None
        for message in messages:
            if refused is None:
                try:
                    self._settle(message, Settle.PARKED, "its worker had not begun it")
                except ConnectionClosed as error:
                    refused = error
            self.held.drop(_held(message))
        if refused is not None:
            raise refused

    def _settle(self, message: dramatiq.MessageProxy, what: Settle, reason: str) -> None:
        held = _held(message)
        if not held.settled and held.lost is None:
            try:
                # While the consumer waits for a wake token, a claim here would take it away from under it.
                self._send(_Pending(held, self._settlement(held, what, reason)), claim=not self._dry)
            except RedisUnavailable as error:
                raise closed(error) from error
            except HeadpondError:
                # dramatiq repeats this after ConnectionClosed alone. A lease that nobody will settle is not kept.
                self.held.drop(held)
                raise
        self.held.drop(held)

    def _send(self, pending: _Pending, *, claim: bool) -> None:
        """Have one settlement answered, in a turn of this thread or of another."""
        self._pending.append(pending)
        with self.held.claiming:
            if pending.answer is not None:
                return
            try:
                self._turn(claim=claim)
            finally:
                if pending.answer is None:
                    self._pending.remove(pending)

    def _settlement(self, held: HeldLease, what: Settle, reason: str) -> Settlement:
        return Settlement(held.lease.id, held.lease.fence, what, held.lease.offset, reason[:500])

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
