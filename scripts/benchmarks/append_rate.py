"""`queue`, append: the tokens of one engine step for 32 jobs in one fenced call, beside a pipeline of XADDs.

The pipeline is the limit of what separate commands can do: it checks no fence, no offset, and knows no end.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from contextlib import closing

from batches import connect_server
from document import Measurement, Samples
from pairs import Pair, run_pairs
from plan import Plan
from queue_actor import SERVER
from running_jobs import RawStreams, RunningJobs

from headpond_workers.supervision.embedded_valkey import running_valkey

JOBS = 32
ENTRY_TOKENS = (1, 8)
STEPS, QUICK_STEPS = 400, 30
UNCOUNTED_STEPS = 20


def measure_append(plan: Plan) -> Measurement:
    """Raises HeadpondError."""
    steps = QUICK_STEPS if plan.quick else STEPS
    names = (f"run-{n}" for n in itertools.count())
    with running_valkey(plan.folder) as valkey, closing(connect_server(valkey.url)) as server:

        def run_on(side: type[RunningJobs] | type[RawStreams]) -> Callable[[int], Samples]:
            def run(_number: int) -> Samples:
                samples: Samples = {"tokens_1": steps * JOBS, "tokens_8": steps * JOBS * 8}
                for tokens in ENTRY_TOKENS:
                    jobs = side(server, JOBS, next(names))
                    _steps(jobs, UNCOUNTED_STEPS, tokens)
                    samples[f"seconds_{tokens}"] = _steps(jobs, steps, tokens)
                    jobs.finish()
                return samples

            return run

        def done(number: int, pair: Pair[Samples]) -> None:
            rates = [
                f"{side['tokens_1'] / side['seconds_1']:.0f} and {side['tokens_8'] / side['seconds_8']:.0f}"
                for side in (pair.headpond, pair.peer)
            ]
            plan.say_pair(number, f"headpond {rates[0]} tokens/s at 1 and 8 an entry, XADDs {rates[1]}")

        measured = run_pairs(plan.pairs, run_on(RunningJobs), run_on(RawStreams), done=done)
    return Measurement(
        plan.kind, f"append, {JOBS} jobs at once",
        f"{steps} engine steps a run, after {UNCOUNTED_STEPS} uncounted ones, that give each of {JOBS} jobs one "
        "stream entry; with 1 token an entry, then with 8; each step waits for the last; both pack the same payloads",
        "JobQueue.append: one script a step, which checks the fence and offset of every job",
        f"one pipeline of {JOBS} XADDs a step, without any check; both {SERVER}", measured,
    )  # fmt: skip


def _steps(jobs: RunningJobs | RawStreams, steps: int, tokens: int) -> float:
    began = time.monotonic()
    for _ in range(steps):
        jobs.append(tokens)
    return round(time.monotonic() - began, 6)
