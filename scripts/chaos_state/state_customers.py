"""Those who use the queue while Redis may be lost: producers, some of whose jobs wait for storage, and readers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from customers import LOOK_INTERVAL_S, Reader, Submitter
from engines import EngineName, Order, orders
from evidence import JobEvidence, Reading
from gathering import gather_job
from loss_rules import Acknowledged, Found, Held
from town import MODEL

from headpond import Client
from headpond.durability import Durability
from headpond.errors import DurabilityUnknown, JobGone, RedisUnavailable
from headpond.jobs import Chunk, JobState
from headpond.queue import JobQueue

DURABILITY_TIMEOUT_S = 10.0
TURNS = 4
"""Of one session: as many as fit into the context."""
SESSIONS_AT_ONCE = 3


@dataclass(slots=True)
class Losses:
    """What producers and readers are told of losses of Redis. gate: held from before a loss until it is restored;
    whoever looks at rows holds it, for those of an empty server say nothing. begun: how many there were. under_way: one
    is, and not restored."""

    gate: threading.Lock = field(default_factory=threading.Lock)
    begun: int = 0
    under_way: bool = False


class Producer(Submitter):
    """As a Submitter. durable: whether its submits wait for storage. talks: whether its jobs are turns of sessions. Its
    jobs may be lost with a Redis."""

    def __init__(
        self,
        client: Client,
        queue: JobQueue,
        losses: Losses,
        *,
        seed: int,
        number: int,
        durable: bool,
        talks: bool,
        in_flight: int,
    ) -> None:
        super().__init__(client, queue, _orders_of(seed, number, talks=talks), in_flight=in_flight)
        self.name = f"producer-{number}"
        self._losses, self._durable = losses, durable
        self.paused = threading.Event()
        self.resting = threading.Event()
        """Set while it is paused, and no submit of it is on its way."""
        self.acknowledged: dict[str, Acknowledged] = {}
        self.lost: set[str] = set()
        """That were gone with a Redis."""
        self.remade: set[str] = set()
        """That were put into a Redis which had lost them, or are of the time when it was empty."""
        self.unknown = 0
        """Submits of which it was not known in time whether storage has them."""

    def work(self) -> None:
        while not self.leaving.is_set():
            if self.paused.is_set():
                self.resting.set()
                self.leaving.wait(LOOK_INTERVAL_S)
                continue
            self.resting.clear()
            for _ in range(self._most - len(self.open)):
                if not self.paused.is_set():
                    self._submit(next(self._wanted))
            self._look()
            self.leaving.wait(LOOK_INTERVAL_S)
        self.resting.set()

    def _submit(self, order: Order) -> None:
        while True:
            try:
                self._client.submit(
                    MODEL, order.prompt, id=order.id, max_tokens=order.max_tokens, temperature=order.temperature,
                    tenant=self.name, durability=Durability.STORAGE if self._durable else Durability.QUEUE,
                    durability_timeout=DURABILITY_TIMEOUT_S, session=order.session,
                )  # fmt: skip
                break
            except DurabilityUnknown:
                # Not acknowledged as was asked for: the same again, until it is.
                self.unknown += 1
            except RedisUnavailable:
                time.sleep(LOOK_INTERVAL_S)
        at_ms = time.time_ns() // 1_000_000
        with self._lock:
            self.orders[order.id] = order
            self.acknowledged[order.id] = Acknowledged(at_ms, self._durable)
            self.open.add(order.id)

    def _look(self) -> None:
        if self._losses.gate.acquire(blocking=False):
            try:
                super()._look()
            finally:
                self._losses.gate.release()

    def known(self) -> dict[str, Acknowledged]:
        """All that were acknowledged, less what was lost."""
        with self._lock:
            return dict(self.acknowledged)

    def take_stock(self, found: Mapping[str, Found]) -> None:
        """After a restore: some are gone, some have ended, and of others the end was lost. found: of `known`."""
        with self._lock:
            for job_id in self.acknowledged.keys() & found.keys():
                state = found[job_id].state
                if state is None:
                    self.lost.add(job_id)
                    for kept in (self.orders, self.acknowledged, self.ended):
                        kept.pop(job_id, None)
                    self.open.discard(job_id)
                    continue
                self.remade.add(job_id)
                if not state.ended or job_id not in self.ended:
                    self.ended.pop(job_id, None)
                    self.open.add(job_id)

    def evidence(self, job_id: str) -> JobEvidence:
        """As it is now; with the stream as it was seen first, where that is gone. Raises RedisUnavailable."""
        early, late = self.ended.get(job_id), gather_job(self._queue, job_id)
        if early is not None and not late.events and late.state is not None:
            late = replace(late, events=early.events)
        return replace(late, remade=job_id in self.remade)


class PatientReader(Reader):
    """As a Reader; where a job is gone because Redis was lost, it goes on from the token that it has."""

    def __init__(self, client: Client, producer: Producer, losses: Losses, *, seed: int, number: int) -> None:
        super().__init__(client, producer, seed=seed, number=number)
        self._losses, self._producer = losses, producer
        self.resumed = 0
        """Tries to go on after a loss, until the job was there again."""

    def held(self) -> tuple[int, Held] | None:
        """The reading that goes on: its place in `readings`, and what it has; None if it has been given nothing."""
        current, place = self._current, len(self.readings)
        if current is None or not current[2]:
            return None
        chunks = tuple(current[2])
        return place, Held(current[0], chunks[-1].offset + len(chunks[-1].token_ids), len(chunks))

    def _read(self, job_id: str, after: int) -> Reading:
        chunks: list[Chunk] = []
        self._current = (job_id, after, chunks)
        reading = self._read_on(job_id, after, chunks)
        self._current = None
        return reading

    def _read_on(self, job_id: str, after: int, chunks: list[Chunk]) -> Reading:
        # One that begins while Redis is lost finds an empty one.
        begun = self._losses.begun - self._losses.under_way
        while True:
            at = chunks[-1].offset + len(chunks[-1].token_ids) if chunks else after
            try:
                for chunk in self._client.job(job_id).stream(at):
                    chunks.append(chunk)
                return Reading(job_id, after, tuple(chunks), whole=True)
            except RedisUnavailable:
                if chunks and self._losses.begun == begun:
                    return Reading(job_id, after, tuple(chunks), whole=False)
            except JobGone:
                if self._losses.begun == begun or job_id in self._producer.lost:
                    return Reading(job_id, after, tuple(chunks), whole=False)
            self.resumed += self._losses.begun > begun
            time.sleep(LOOK_INTERVAL_S)


def found_of(queue: JobQueue, ids: list[str]) -> dict[str, Found]:
    """What Redis has of these jobs. Raises RedisUnavailable."""
    found = {}
    for job_id in ids:
        row = queue.run_row(job_id)
        state: JobState | None = None if row is None else row.state
        found[job_id] = Found(state, (queue.result(job_id) or b"") if state is not None else b"")
    return found


def _orders_of(seed: int, producer: int, *, talks: bool) -> Iterator[Order]:
    """Jobs of one producer, without end. talks: turns of sessions, of a few at a time."""
    for number, order in enumerate(orders(seed * 100 + producer, EngineName.SCRIPTED, model=MODEL)):
        session = f"s{producer}-{number // (TURNS * SESSIONS_AT_ONCE)}-{number % SESSIONS_AT_ONCE}" if talks else None
        yield replace(order, id=f"{MODEL}/p{producer}-{order.id.rpartition('/')[2]}", session=session)
