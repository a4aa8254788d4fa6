"""A process with a dramatiq.Worker on one broker. Says when each job began and ended.

Set-up: {"side", "url", "threads", "slots", "lease_s"}. slots: jobs that the process holds at most, those that run
included; null leaves both brokers what dramatiq's Worker would prefetch. Requests:

    {"do": "start"}              a new broker and Worker; the last ones must have been stopped
    {"do": "began", "count"}     waits until so many more jobs began: {"jobs": [(job, ns of CLOCK_MONOTONIC), ...]}
    {"do": "ended", "count"}     the same of their last lines
    {"do": "stop"}               returns once the Worker has acknowledged what it ran
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
from child import Answer, BenchmarkError, Serving, serve
from queue_actor import QUEUE, Side, declare_actor, make_broker

JOB_TIMEOUT_S = 30.0
"""Longer than any pause between two jobs: stock dramatiq's longest between polls is 1 s."""
STOP_TIMEOUT_MS = 5000

Told = queue.SimpleQueue[tuple[int, int]]


class Pool:
    """The Worker, while there is one, and what its jobs have told."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._setup = setup
        self._told: dict[str, Told] = {"began": queue.SimpleQueue(), "ended": queue.SimpleQueue()}
        self._running: tuple[dramatiq.Broker, dramatiq.Worker] | None = None

    def serve(self, request: dict[str, Any]) -> Answer:
        match request["do"]:
            case "start":
                self.start()
            case "stop":
                self.stop()
            case told:
                return {"jobs": self._collect(told, request["count"])}
        return {}

    def start(self) -> None:
        slots = self._setup["slots"]
        broker = make_broker(Side(self._setup["side"]), self._setup["url"], slots=slots, lease_s=self._setup["lease_s"])
        declare_actor(broker, self._told["began"].put, self._told["ended"].put)
        worker = dramatiq.Worker(broker, queues={QUEUE}, worker_threads=self._setup["threads"])
        if slots is not None:
            # What the variable dramatiq_queue_prefetch sets for a whole process.
            worker.queue_prefetch = slots
        worker.start()
        # What dramatiq's own command line says in each process; the time limits' thread begins with it.
        broker.emit_after("process_boot")
        self._running = broker, worker

    def stop(self) -> None:
        if self._running is not None:
            broker, worker = self._running
            worker.stop(timeout=STOP_TIMEOUT_MS)
            broker.close()
            self._running = None

    def _collect(self, told: str, count: int) -> list[tuple[int, int]]:
        jobs: list[tuple[int, int]] = []
        while len(jobs) < count:
            try:
                jobs.append(self._told[told].get(timeout=JOB_TIMEOUT_S))
            except queue.Empty:
                raise BenchmarkError(f"{len(jobs)} of {count} jobs {told} within {JOB_TIMEOUT_S:g} s") from None
        return jobs


@contextmanager
def worker(setup: dict[str, Any]) -> Iterator[Serving]:
    logging.basicConfig(level=logging.WARNING)
    pool = Pool(setup)
    try:
        yield pool.serve
    finally:
        pool.stop()


if __name__ == "__main__":
    serve(worker)
