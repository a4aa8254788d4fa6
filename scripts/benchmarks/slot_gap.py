"""`queue`, slot_gap: how long a slot stands empty between two long jobs while more are waiting."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from document import Measurement, Samples
from pairs import Pair, run_pairs
from plan import Plan
from queue_actor import SERVER, Side
from queue_sides import WorkerProcess, senders, times_of

from headpond_workers.supervision.embedded_valkey import running_valkey


@dataclass(frozen=True, slots=True)
class Workload:
    """gaps: in each run, between gaps + 1 jobs."""

    gaps: int = 12
    shortest_s: float = 0.1
    longest_s: float = 0.3

    @property
    def text(self) -> str:
        return (
            f"one slot and {self.gaps + 1} waiting jobs a run, each of {self.shortest_s * 1000:g} to "
            f"{self.longest_s * 1000:g} ms (uniform, seeded; the same for both sides of a pair); from the last line "
            "of a job to the first line of the next"
        )


QUICK = Workload(gaps=4)
BOTH = (
    "dramatiq.Worker with one thread, in a process of its own, that holds no job beside the one that runs, so that "
    "a free peer could have it"
)


def measure_slot_gap(plan: Plan) -> Measurement:
    """Raises HeadpondError."""
    workload = QUICK if plan.quick else Workload()
    numbers = itertools.count()
    with ExitStack() as stack:
        url = stack.enter_context(running_valkey(plan.folder)).url
        workers = {
            side: stack.enter_context(WorkerProcess(side, url, plan.folder, threads=1, slots=1)) for side in Side
        }
        for worker in workers.values():
            worker.start()
        sending = stack.enter_context(senders(url))

        def run_on(side: Side) -> Callable[[int], Samples]:
            def run(number: int) -> Samples:
                length, jobs = plan.draw(number), list(itertools.islice(numbers, workload.gaps + 1))
                for job in jobs:
                    sending[side].send(job, length.uniform(workload.shortest_s, workload.longest_s))
                ended = workers[side].ended(len(jobs))
                began = workers[side].began(len(jobs))
                times_of(jobs, ended)
                times_of(jobs, began)
                return {"gap_ms": gaps_between(began, ended)}

            return run

        def done(number: int, pair: Pair[Samples]) -> None:
            ours, theirs = (statistics.fmean(samples["gap_ms"]) for samples in (pair.headpond, pair.peer))
            plan.say_pair(number, f"mean gap headpond {ours:.2f} ms, dramatiq {theirs:.1f} ms")

        measured = run_pairs(plan.pairs, run_on(Side.HEADPOND), run_on(Side.STOCK), done=done)
    return Measurement(
        plan.kind, "gap between two jobs of a busy slot", workload.text, f"HeadpondBroker with one slot; {BOTH}",
        f"dramatiq's RedisBroker with a prefetch of 1; {BOTH}; both {SERVER}", measured,
    )  # fmt: skip


def gaps_between(began: Sequence[tuple[int, int]], ended: Sequence[tuple[int, int]]) -> list[float]:
    """ms from each job's end to the next one's beginning, of jobs that ran one after the other."""
    pairs = zip(sorted(at for _, at in ended)[:-1], sorted(at for _, at in began)[1:], strict=True)
    return [round((next_ns - end_ns) / 1e6, 3) for end_ns, next_ns in pairs]
