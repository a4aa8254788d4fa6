"""`queue`, reader: how long a token is on its way from the call that appends it to the process that reads it."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

from batches import connect_server
from child import BenchmarkError, Child
from document import Measurement, Samples
from pairs import Pair, percentile, run_pairs
from plan import Plan
from queue_actor import SERVER
from running_jobs import RawStreams, RunningJobs

from headpond_workers.supervision.embedded_valkey import running_valkey
from headpond_workers.supervision.private_files import private_folder


@dataclass(frozen=True, slots=True)
class Workload:
    """steps: counted in each run, of one token a job; uncounted before them, while the readers begin."""

    jobs: int = 4
    steps: int = 100
    uncounted: int = 20
    shortest_s: float = 0.01
    longest_s: float = 0.02

    @property
    def text(self) -> str:
        return (
            f"{self.jobs} jobs that get a token each every {self.shortest_s * 1000:g} to {self.longest_s * 1000:g} ms "
            f"(uniform, seeded; 50 to 100 tokens/s a job), all in one call; a reader for each in XREAD BLOCK, a "
            f"thread each in a process of their own; {self.steps} tokens of each job a run, after {self.uncounted} "
            "uncounted ones; from just before the call that appends until the reader has the token"
        )


QUICK = Workload(steps=20, uncounted=5)
ASK_TIMEOUT_S = 60.0


def measure_reader(plan: Plan) -> Measurement:
    """Raises HeadpondError."""
    workload = QUICK if plan.quick else Workload()
    names = (f"run-{n}" for n in itertools.count())
    log = private_folder(plan.folder) / "reader.log"
    with (
        running_valkey(plan.folder) as valkey,
        closing(connect_server(valkey.url)) as server,
        Child("stream_reader.py", {"url": valkey.url}, log=log) as reader,
    ):

        def run_on(side: type[RunningJobs] | type[RawStreams]) -> Callable[[int], Samples]:
            def run(number: int) -> Samples:
                jobs = side(server, workload.jobs, next(names))
                opening = {"do": "open", "names": jobs.names, "raw": side is RawStreams}
                reader.ask(opening, timeout_s=ASK_TIMEOUT_S)
                appended_ns = _append_by_the_clock(jobs, workload, plan.draw(number))
                jobs.finish()
                closing_request = {"do": "close", "entries": len(appended_ns)}
                read = reader.ask(closing_request, timeout_s=ASK_TIMEOUT_S)["read"]
                return {"latency_ms": latencies(appended_ns, read, uncounted=workload.uncounted)}

            return run

        def done(number: int, pair: Pair[Samples]) -> None:
            ours, theirs = (percentile(samples["latency_ms"], 0.5) for samples in (pair.headpond, pair.peer))
            plan.say_pair(number, f"p50 headpond {ours:.2f} ms, raw streams {theirs:.2f} ms")

        measured = run_pairs(plan.pairs, run_on(RunningJobs), run_on(RawStreams), done=done)
    return Measurement(
        plan.kind, "a token's way to its reader", workload.text,
        "JobQueue.append, and Job.stream of Client",
        f"a pipeline of XADDs, and a bare loop of XREADs that unpacks the same payloads; both {SERVER}", measured,
    )  # fmt: skip


def _append_by_the_clock(jobs: RunningJobs | RawStreams, workload: Workload, gaps: random.Random) -> list[int]:
    """ns just before each append. The first comes once the readers wait, or soon will."""
    appended_ns, due = [], time.monotonic()
    for _ in range(workload.uncounted + workload.steps):
        due += gaps.uniform(workload.shortest_s, workload.longest_s)
        time.sleep(max(0.0, due - time.monotonic()))
        appended_ns.append(time.monotonic_ns())
        jobs.append(1)
    return appended_ns


def latencies(appended_ns: Sequence[int], read: Sequence[Sequence[tuple[int, int]]], *, uncounted: int) -> list[float]:
    """ms from the append of each token to its reader, of all streams. read: (offset, ns) of each entry of a stream.

    Raises BenchmarkError if a reader did not get every token once, in order.
    """
    waits = []
    for stream in read:
        if [offset for offset, _ in stream] != list(range(len(appended_ns))):
            raise BenchmarkError("A reader did not get every token once, in order; nothing was measured.")
        waits += [round((at_ns - appended_ns[offset]) / 1e6, 3) for offset, at_ns in stream[uncounted:]]
    return waits
