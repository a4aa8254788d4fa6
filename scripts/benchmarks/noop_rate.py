"""`queue`, no_op: how many jobs that do nothing a worker gets through, and with how many calls of scripts."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import ExitStack, closing

import redis
from document import Measurement, Samples
from pairs import Pair, run_pairs
from plan import Plan
from queue_actor import SERVER, STOCK, Side
from queue_sides import WorkerProcess, senders, times_of
from server_counts import script_calls

from headpond_workers.supervision.embedded_valkey import running_valkey

JOBS, QUICK_JOBS = 3000, 300
BOTH = "dramatiq.Worker with 8 threads and default middleware, in a process of its own"


def measure_no_op(plan: Plan) -> Measurement:
    """Raises HeadpondError."""
    count = QUICK_JOBS if plan.quick else JOBS
    numbers = itertools.count()
    with ExitStack() as stack:
        url = stack.enter_context(running_valkey(plan.folder)).url
        client = stack.enter_context(closing(redis.Redis.from_url(url)))
        workers = {side: stack.enter_context(WorkerProcess(side, url, plan.folder)) for side in Side}
        sending = stack.enter_context(senders(url))

        def run_on(side: Side) -> Callable[[int], Samples]:
            def run(_number: int) -> Samples:
                jobs = list(itertools.islice(numbers, count))
                for job in jobs:
                    sending[side].send(job)
                before = script_calls(client)
                workers[side].start()
                began_ns = times_of(jobs, workers[side].began(count))
                ended_ns = times_of(jobs, workers[side].ended(count))
                # Its last acknowledgements are among the calls.
                workers[side].stop()
                seconds = (max(ended_ns.values()) - min(began_ns.values())) / 1e9
                return {"jobs": count, "seconds": round(seconds, 6), "script_calls": script_calls(client) - before}

            return run

        def done(number: int, pair: Pair[Samples]) -> None:
            ours, theirs = (samples["jobs"] / samples["seconds"] for samples in (pair.headpond, pair.peer))
            calls = pair.headpond["script_calls"] / count
            plan.say_pair(number, f"headpond {ours:.0f} jobs/s with {calls:.2f} calls a job, dramatiq {theirs:.0f}")

        measured = run_pairs(plan.pairs, run_on(Side.HEADPOND), run_on(Side.STOCK), done=done)
    return Measurement(
        plan.kind, "jobs that do nothing, 8 threads",
        f"{count} waiting jobs a run of an actor that only notes the time; from the first line of the first to the "
        "last line of the last. Script calls are all that the server saw from the worker's start to its stop",
        f"HeadpondBroker; {BOTH}", f"{STOCK}; {BOTH}; both {SERVER}", measured,
    )  # fmt: skip
