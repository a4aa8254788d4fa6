"""`queue`: how long a job waits for an idle worker, on HeadpondBroker beside dramatiq's own RedisBroker.

One server for both. Each side has a worker process of its own, alive throughout; this process sends. Jobs come by
the clock, not one after the other: a slow pick-up does not delay the next job, and so does not hide behind it.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from child import BenchmarkError, Child
from document import Kind, Measurement, Samples
from pairs import Pair, run_pairs
from pickup_actor import Side, declare_actor, make_broker

from headpond_workers.supervision.embedded_valkey import running_valkey

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Workload:
    """jobs: measured in each run. uncounted: sent before them in each run, as an idle worker is not one that has been
    left alone for a whole run of the other side."""

    jobs: int = 40
    uncounted: int = 5
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


def measure_queue(*, pairs: int, seed: int, quick: bool, folder: Path, progress: Progress) -> list[Measurement]:
    """folder: empty, private; for the server's data and logs. Raises HeadpondError."""
    workload = QUICK if quick else Workload()
    with ExitStack() as stack:
        progress("queue: starting Valkey and a worker process for each side")
        url = stack.enter_context(running_valkey(folder)).url
        senders = {side: _Sender(stack, side, url, folder) for side in Side}

        def side(which: Side) -> Callable[[int], Samples]:
            return lambda number: senders[which].run(workload, random.Random(f"{seed}:{number}"))  # noqa: S311

        def done(number: int, pair: Pair[Samples]) -> None:
            ours, theirs = (statistics.median(samples["pickup_ms"]) for samples in (pair.headpond, pair.peer))
            progress(f"queue: pair {number + 1}/{pairs}: p50 headpond {ours:.2f} ms, dramatiq {theirs:.2f} ms")

        measured = run_pairs(pairs, side(Side.HEADPOND), side(Side.STOCK), done=done)
    return [
        Measurement(
            Kind.PICKUP,
            "pick-up at an idle worker",
            workload.text,
            f"HeadpondBroker; {BOTH}",
            f"dramatiq's RedisBroker as it comes; {BOTH}; both on one embedded Valkey (append-only file, everysec)",
            measured,
        )
    ]


class _Sender:
    """One side: its worker process, and its broker in this process."""

    def __init__(self, stack: ExitStack, side: Side, url: str, folder: Path) -> None:
        log = folder / f"worker-{side.value}.log"
        self._worker = stack.enter_context(Child("pickup_worker.py", {"side": side.value, "url": url}, log=log))
        broker = make_broker(side, url)
        stack.callback(broker.close)
        self._actor: Any = declare_actor(broker, _nobody)
        self._sent = 0

    def run(self, workload: Workload, gaps: random.Random) -> Samples:
        sent_ns: dict[int, int] = {}
        due = time.monotonic()
        for _ in range(workload.uncounted + workload.jobs):
            due += gaps.uniform(workload.shortest_gap_s, workload.longest_gap_s)
            time.sleep(max(0.0, due - time.monotonic()))
            sent_ns[self._sent] = time.monotonic_ns()
            self._actor.send(self._sent)
            self._sent += 1
        found = self._worker.ask({"count": len(sent_ns)}, timeout_s=120)["picked_up"]
        picked_up_ns = {job: at_ns for job, at_ns in found}
        if len(found) != len(sent_ns) or picked_up_ns.keys() != sent_ns.keys():
            raise BenchmarkError("The jobs that were picked up are not those that were sent; nothing was measured.")
        counted = list(sent_ns)[workload.uncounted :]
        return {"pickup_ms": [round((picked_up_ns[job] - sent_ns[job]) / 1e6, 3) for job in counted]}


def _nobody(_: tuple[int, int]) -> None:
    raise BenchmarkError("The sending process runs no job.")
