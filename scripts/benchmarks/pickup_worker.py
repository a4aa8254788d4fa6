"""A process with a dramatiq.Worker on one broker. Says when each job was picked up.

Set-up: {"side", "url"}. Request: {"count"}: waits until so many more jobs were picked up, and returns (job, ns of
CLOCK_MONOTONIC, which all processes of a machine share) of each.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
from child import Answer, BenchmarkError, Serving, serve
from pickup_actor import QUEUE, Side, declare_actor, make_broker

JOB_TIMEOUT_S = 30.0
"""Stock dramatiq's longest pause between polls is 1 s."""


@contextmanager
def worker(setup: dict[str, Any]) -> Iterator[Serving]:
    logging.basicConfig(level=logging.WARNING)
    picked_up: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    broker = make_broker(Side(setup["side"]), setup["url"])
    declare_actor(broker, picked_up.put)
    pool = dramatiq.Worker(broker, queues={QUEUE})
    pool.start()
    # What dramatiq's own command line says in each process; the time limits' thread begins with it.
    broker.emit_after("process_boot")

    def collect(request: dict[str, Any]) -> Answer:
        found: list[tuple[int, int]] = []
        while len(found) < request["count"]:
            try:
                found.append(picked_up.get(timeout=JOB_TIMEOUT_S))
            except queue.Empty:
                raise BenchmarkError(
                    f"{len(found)} of {request['count']} jobs were picked up within {JOB_TIMEOUT_S:g} s"
                ) from None
        return {"picked_up": found}

    try:
        yield collect
    finally:
        pool.stop(timeout=2000)
        broker.close()


if __name__ == "__main__":
    serve(worker)
