"""Those who use the queue during a run: one that submits jobs, and some that read their tokens."""

from __future__ import annotations

import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator

from engines import Order
from evidence import JobEvidence, Reading
from gathering import gather_job

from headpond import Client
from headpond.errors import JobGone, RedisUnavailable
from headpond.jobs import Chunk, JobState
from headpond.keys import queue_keys
from headpond.queue import JobQueue
from headpond.wire import unpack_run

LOOK_INTERVAL_S = 0.05
ENDED_SHARE = 0.2
"""How many of the readings are of a job that may have ended before."""
WHOLE_SHARE = 0.4
"""How many of the readings begin at the first token, whatever is there already."""


class Customer(threading.Thread, ABC):
    """A thread whose failure is seen: `failure` holds what ended it before its time."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.leaving = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:  # noqa: BLE001 - whoever waits for this thread raises it
            self.failure = error

    @abstractmethod
    def work(self) -> None:
        """Until `leaving` is set."""

    def check(self) -> None:
        """Raises what ended this thread."""
        if self.failure is not None:
            raise self.failure


class Submitter(Customer):
    """Keeps a number of jobs waiting or running, until it is told to leave.

    A submit without an answer is repeated under its id until it has one. Only what was acknowledged is in `orders`.
    """

    def __init__(self, client: Client, queue: JobQueue, wanted: Iterator[Order], *, in_flight: int) -> None:
        super().__init__("submitter")
        self._client, self._queue, self._wanted, self._most = client, queue, wanted, in_flight
        self.orders: dict[str, Order] = {}
        self.open: set[str] = set()
        """Acknowledged, and not seen to have ended."""
        self.ended: dict[str, JobEvidence] = {}
        """As they were seen first after their end: the queue may fold a stream later."""
        self.strikes: dict[str, int] = {}
        """The most that each job was seen to have. Progress clears them."""
        self._lock = threading.Lock()

    def work(self) -> None:
        while not self.leaving.is_set():
            for _ in range(self._most - len(self.open)):
                self._submit(next(self._wanted))
            self._look()
            self.leaving.wait(LOOK_INTERVAL_S)

    def await_ends(self, timeout_s: float) -> None:
        """Once it has left: look until all jobs have ended, at most timeout_s."""
        until = time.monotonic() + timeout_s
        while self.open and time.monotonic() < until:
            self._look()
            time.sleep(LOOK_INTERVAL_S)

    def ids(self) -> tuple[list[str], list[str]]:
        """All acknowledged ids, and those that are open, each in order."""
        with self._lock:
            return list(self.orders), sorted(self.open)

    def tokens(self, job_id: str) -> int:
        """How many the job has now. Raises RedisUnavailable."""
        row = self._queue.run_row(job_id)
        return row.offset if row is not None else 0

    def _submit(self, order: Order) -> None:
        while True:
            try:
                self._client.submit(
                    order.recipient, order.prompt, id=order.id, max_tokens=order.max_tokens,
                    temperature=order.temperature,
                )  # fmt: skip
                break
            except RedisUnavailable:
                # Not acknowledged, and perhaps enqueued: the same again.
                time.sleep(LOOK_INTERVAL_S)
        with self._lock:
            self.orders[order.id] = order
            self.open.add(order.id)

    def _look(self) -> None:
        ids = sorted(self.open)
        if not ids:
            return
        try:
            raws = self._queue.server.read("HMGET", queue_keys(self._queue.name).named("run"), *ids)
            rows = {job_id: raw and unpack_run(raw) for job_id, raw in zip(ids, raws, strict=True)}
            over = [job_id for job_id, row in rows.items() if row is None or row.state.ended]
            seen = {job_id: gather_job(self._queue, job_id) for job_id in over}
        except RedisUnavailable:
            return
        for job_id, row in rows.items():
            self.strikes[job_id] = max(self.strikes.get(job_id, 0), row.strikes if row else 0)
        with self._lock:
            self.ended |= seen
            self.open -= seen.keys()


class Reader(Customer):
    """Reads streams of random jobs from random offsets to their end."""

    def __init__(self, client: Client, submitter: Submitter, *, seed: int, number: int) -> None:
        super().__init__(f"reader-{number}")
        self._client, self._submitter = client, submitter
        self._rng = random.Random(f"reader:{seed}:{number}")  # noqa: S311 - not for secrets
        self.readings: list[Reading] = []
        self._current: tuple[str, int, list[Chunk]] | None = None

    def unfinished(self) -> list[Reading]:
        """The reading that goes on, if one does: none should, once all jobs have ended."""
        current = self._current
        return [Reading(*current[:2], tuple(current[2]), whole=False)] if current and self.is_alive() else []

    def work(self) -> None:
        while not self.leaving.is_set():
            known, still_open = self._submitter.ids()
            among = known if self._rng.random() < ENDED_SHARE or not still_open else still_open
            if among:
                self._begin(self._rng.choice(among))
            else:
                self.leaving.wait(LOOK_INTERVAL_S)

    def _begin(self, job_id: str) -> None:
        """From an offset that the job has reached: one may say that one has tokens only if there are any."""
        try:
            most = 0 if self._rng.random() < WHOLE_SHARE else self._submitter.tokens(job_id)
        except RedisUnavailable:
            time.sleep(LOOK_INTERVAL_S)
            return
        self.readings.append(self._read(job_id, self._rng.randint(0, most)))

    def _read(self, job_id: str, after: int) -> Reading:
        chunks: list[Chunk] = []
        self._current = (job_id, after, chunks)
        while True:
            try:
                for chunk in self._client.job(job_id).stream(after):
                    chunks.append(chunk)
                return Reading(job_id, after, tuple(chunks), whole=True)
            except RedisUnavailable:
                # A reading that has begun bears an outage; to begin one during an outage is refused at once.
                if chunks:
                    return Reading(job_id, after, tuple(chunks), whole=False)
                time.sleep(LOOK_INTERVAL_S)
            except JobGone:
                return Reading(job_id, after, tuple(chunks), whole=False)


def tokens_of(ended: dict[str, JobEvidence]) -> int:
    """Of all results."""
    return sum(len(job.answer.ids) for job in ended.values() if job.answer and job.state is JobState.FINISHED)
