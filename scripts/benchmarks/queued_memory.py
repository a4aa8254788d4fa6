"""`queue`, memory: what a waiting job of 1 kB takes of the server's memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import ExitStack, closing

import redis
from batches import HOW, HeadpondProducer, StockProducer, connect_server, submit_all
from document import Measurement, Samples
from pairs import Pair, run_pairs
from plan import Plan
from queue_actor import SERVER, STOCK
from server_counts import leave_append_only_file, used_memory

from headpond_workers.supervision.embedded_valkey import running_valkey

JOBS, QUICK_JOBS = 100_000, 2_000
PROMPT_BYTES = 1000


def measure_memory(plan: Plan) -> Measurement:
    """Raises HeadpondError."""
    jobs = QUICK_JOBS if plan.quick else JOBS
    prompts = [f"{n:07d}".ljust(PROMPT_BYTES, "x") for n in range(jobs)]
    folders = (plan.folder / f"run-{n}" for n in itertools.count())

    def run_on(make: Callable[[str], HeadpondProducer | StockProducer]) -> Callable[[int], Samples]:
        def run(_number: int) -> Samples:
            # A new server for each run: what was there before shapes what an allocator gives.
            with ExitStack() as stack:
                url = stack.enter_context(running_valkey(next(folders))).url
                client = stack.enter_context(closing(redis.Redis.from_url(url)))
                leave_append_only_file(client)
                producer = stack.enter_context(closing(make(url)))
                before = used_memory(client)
                submit_all(producer, prompts)
                return {"jobs": jobs, "bytes": used_memory(client) - before}

        return run

    def done(number: int, pair: Pair[Samples]) -> None:
        ours, theirs = (samples["bytes"] / samples["jobs"] for samples in (pair.headpond, pair.peer))
        plan.say_pair(number, f"headpond {ours:.0f} bytes a job, dramatiq {theirs:.0f}")

    headpond = run_on(lambda url: HeadpondProducer(connect_server(url)))
    measured = run_pairs(plan.pairs, headpond, run_on(StockProducer), done=done)
    return Measurement(
        plan.kind, "memory of a waiting job",
        f"{jobs} waiting jobs with a prompt of {PROMPT_BYTES} bytes each, on a new server for each run; what "
        "used_memory of the server rose by, for each job",
        "jobs of a model", f"{STOCK}, with the same prompts ({HOW}); both {SERVER}", measured,
    )  # fmt: skip
