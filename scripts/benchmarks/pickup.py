"""`queue`, pickup: how long a job waits for an idle worker, on HeadpondBroker beside dramatiq's own RedisBroker.

One server for both. Each side has a worker process of its own, alive throughout; this process sends. Jobs come by
the clock, not one after the other: a slow pick-up does not delay the next job, and so does not hide behind it.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from document import Measurement, Samples
from pairs import Pair, run_pairs
from plan import Plan
from queue_actor import SERVER, STOCK, Side
from queue_sides import WorkerProcess, senders, times_of

from headpond_workers.supervision.embedded_valkey import running_valkey


@dataclass(frozen=True, slots=True)
class Workload:
    """jobs: measured in each run. uncounted: sent before them in each run, as an idle worker is not one that has been
    left alone for a whole run of the other side."""

    jobs: int = 30
    uncounted: int = 4
    shortest_gap_s: float = 0.1
    longest_gap_s: float = 0.3

    @property
    def text(self) -> str:
        return (
            f"a job every {self.shortest_gap_s * 1000:g} to {self.longest_gap_s * 1000:g} ms (uniform, seeded; the "
            f"same times for both sides of a pair) for a worker that has nothing else to do; {self.jobs} jobs a run "
            f"after {self.uncounted} uncounted ones; latency from just before `send` to the first line of the actor"
        )


QUICK = Workload(jobs=8, uncounted=2)
BOTH = "dramatiq.Worker with its default 8 threads and default middleware, in a process of its own"


def measure_pickup(plan: Plan) -> Measurement:
    """Raises HeadpondError."""
    workload = QUICK if plan.quick else Workload()
    numbers = itertools.count()
    with ExitStack() as stack:
        url = stack.enter_context(running_valkey(plan.folder)).url
        workers = {side: stack.enter_context(WorkerProcess(side, url, plan.folder)) for side in Side}
        for worker in workers.values():
            worker.start()
        sending = stack.enter_context(senders(url))

        def run_on(side: Side) -> Callable[[int], Samples]:
            def run(number: int) -> Samples:
                gaps, sent_ns, due = plan.draw(number), dict[int, int](), time.monotonic()
                for job in itertools.islice(numbers, workload.uncounted + workload.jobs):
                    due += gaps.uniform(workload.shortest_gap_s, workload.longest_gap_s)
                    time.sleep(max(0.0, due - time.monotonic()))
                    sent_ns[job] = time.monotonic_ns()
                    sending[side].send(job)
                jobs = list(sent_ns)
                began_ns = times_of(jobs, workers[side].began(len(jobs)))
                waits = [round((began_ns[job] - sent_ns[job]) / 1e6, 3) for job in jobs[workload.uncounted :]]
                return {"pickup_ms": waits}

            return run

        def done(number: int, pair: Pair[Samples]) -> None:
            ours, theirs = (statistics.median(samples["pickup_ms"]) for samples in (pair.headpond, pair.peer))
            plan.say_pair(number, f"p50 headpond {ours:.2f} ms, dramatiq {theirs:.2f} ms")

        measured = run_pairs(plan.pairs, run_on(Side.HEADPOND), run_on(Side.STOCK), done=done)
    return Measurement(
        plan.kind, "pick-up at an idle worker", workload.text, f"HeadpondBroker; {BOTH}",
        f"{STOCK}; {BOTH}; both {SERVER}", measured,
    )  # fmt: skip
