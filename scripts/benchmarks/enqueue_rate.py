"""`queue`, enqueue and enqueue_many: how fast one producer gets rid of its jobs, one at a time and 100 at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing

from batches import BATCH, HOW, HeadpondProducer, StockProducer, connect_server, submit_all
from document import Measurement, Samples
from pairs import Pair, run_pairs
from plan import Plan
from queue_actor import SERVER, STOCK, Side
from queue_sides import Sender, senders

from headpond_workers.supervision.embedded_valkey import running_valkey

JOBS, QUICK_JOBS = 2000, 200
BATCHED, QUICK_BATCHED = 5000, 300
PROMPT = "Tell me about tides, briefly and without numbers."
UNCOUNTED = 100


def measure_enqueue(plan: Plan) -> Measurement:
    """Raises HeadpondError."""
    jobs = QUICK_JOBS if plan.quick else JOBS
    with running_valkey(plan.folder) as valkey, senders(valkey.url) as sending:
        for sender in sending.values():
            _send(sender, UNCOUNTED)

        def run_on(side: Side) -> Callable[[int], Samples]:
            return lambda _number: {"jobs": jobs, "seconds": _send(sending[side], jobs)}

        measured = run_pairs(plan.pairs, run_on(Side.HEADPOND), run_on(Side.STOCK), done=_said(plan))
    return Measurement(
        plan.kind, "enqueue, one at a time",
        f"{jobs} times `send` of an actor with two small arguments a run, each waiting for the last; nobody consumes",
        "HeadpondBroker", f"{STOCK}; both {SERVER}", measured,
    )  # fmt: skip


def measure_enqueue_many(plan: Plan) -> Measurement:
    """Raises HeadpondError."""
    jobs = QUICK_BATCHED if plan.quick else BATCHED
    prompts = [f"{PROMPT} {n}" for n in range(jobs)]
    with (
        running_valkey(plan.folder) as valkey,
        closing(HeadpondProducer(connect_server(valkey.url))) as headpond,
        closing(StockProducer(valkey.url)) as stock,
    ):
        for producer in (headpond, stock):
            submit_all(producer, prompts[:UNCOUNTED])

        def run_on(producer: HeadpondProducer | StockProducer) -> Callable[[int], Samples]:
            return lambda _number: {"jobs": jobs, "seconds": round(submit_all(producer, prompts), 6)}

        measured = run_pairs(plan.pairs, run_on(headpond), run_on(stock), done=_said(plan))
    return Measurement(
        plan.kind, f"enqueue, {BATCH} at a time",
        f"{jobs} requests of {len(PROMPT)} characters a run, in batches of {BATCH}, each batch waiting for the last; "
        "nobody consumes",
        "jobs of a model, checked as every submit checks them, one call a batch", f"{STOCK}; {HOW}; both {SERVER}",
        measured,
    )  # fmt: skip


def _send(sender: Sender, jobs: int) -> float:
    began = time.monotonic()
    for job in range(jobs):
        sender.send(job)
    return round(time.monotonic() - began, 6)


def _said(plan: Plan) -> Callable[[int, Pair[Samples]], None]:
    def done(number: int, pair: Pair[Samples]) -> None:
        ours, theirs = (samples["jobs"] / samples["seconds"] for samples in (pair.headpond, pair.peer))
        plan.say_pair(number, f"headpond {ours:.0f} jobs/s, dramatiq {theirs:.0f}, ratio {ours / theirs:.2f}")

    return done
