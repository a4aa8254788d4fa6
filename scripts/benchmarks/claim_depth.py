"""`queue`, claim: whether a claim takes longer where more jobs wait."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import redis
from batches import MODEL, connect_server, entry_of
from child import BenchmarkError
from document import Measurement, Samples
from pairs import Pair, percentile, run_pairs
from plan import Plan
from queue_actor import SERVER
from server_counts import leave_append_only_file

from headpond.operations import Submitted
from headpond.queue import JobQueue, Server
from headpond_workers.supervision.embedded_valkey import running_valkey

DEPTHS = {"1k": 1_000, "100k": 100_000, "1m": 1_000_000}
QUICK_DEPTHS = {"1k": 200, "100k": 400, "1m": 800}
CLAIMS, QUICK_CLAIMS = 100, 10
UNCOUNTED = 10
FILL_AT_ONCE = 500
PROMPT = "A question."
LEASE_S = 3600.0


class _WaitingJobs:
    """A queue that holds about as many waiting jobs as it did before a run."""

    def __init__(self, server: Server, name: str, depth: int) -> None:
        self._queue: JobQueue = server.queue(f"depth-{name}")
        self._numbers, self._seqs = itertools.count(), itertools.count(1)
        self._entry = entry_of(PROMPT)
        for left in range(depth, 0, -FILL_AT_ONCE):
            self._fill(min(left, FILL_AT_ONCE))

    def _fill(self, count: int) -> None:
        entries = [replace(self._entry, id=f"{MODEL}/{n}") for n in itertools.islice(self._numbers, count)]
        answers = self._queue.submit(entries)
        if answers != [Submitted.NEW] * count:
            raise BenchmarkError("The queue did not take every job; nothing was measured.")

    def claims_ms(self, count: int) -> list[float]:
        """Claim one job `count` times, after UNCOUNTED ones; then submit as many again."""
        took_ms = []
        for _ in range(UNCOUNTED + count):
            seq = next(self._seqs)
            began = time.monotonic_ns()
            claimed = self._queue.claim("bench", seq=seq, nonce=f"fence-{seq}", slots=1, lease_s=LEASE_S)
            took_ms.append(round((time.monotonic_ns() - began) / 1e6, 4))
            if len(claimed.leases) != 1:
                raise BenchmarkError(f"A claim of one job gave {len(claimed.leases)}; nothing was measured.")
        self._fill(UNCOUNTED + count)
        return took_ms[UNCOUNTED:]


def measure_claim(plan: Plan) -> Measurement:
    """Raises HeadpondError."""
    depths, claims = (QUICK_DEPTHS, QUICK_CLAIMS) if plan.quick else (DEPTHS, CLAIMS)
    with running_valkey(plan.folder) as valkey, closing(connect_server(valkey.url)) as server:
        with closing(redis.Redis.from_url(valkey.url)) as client:
            leave_append_only_file(client)
        waiting = {}
        for name, depth in depths.items():
            plan.say(f"filling a queue with {depth} jobs")
            waiting[name] = _WaitingJobs(server, name, depth)

        def run_on(*names: str) -> Callable[[int], Samples]:
            return lambda _number: {f"claim_{name}_ms": waiting[name].claims_ms(claims) for name in names}

        def done(number: int, pair: Pair[Samples]) -> None:
            took = {**pair.peer, **pair.headpond}
            p50s = ", ".join(f"{depths[name]}: {percentile(took[f'claim_{name}_ms'], 0.5):.3f} ms" for name in depths)
            plan.say_pair(number, f"p50 with so many waiting: {p50s}")

        measured = run_pairs(plan.pairs, run_on("1m", "100k"), run_on("1k"), done=done)
    return Measurement(
        plan.kind, "claim of one job, by how many wait",
        f"{claims} claims of one job a run, after {UNCOUNTED} uncounted ones, each waiting for the last; the jobs are "
        "leased and not run, and as many submitted again before the next run",
        f"JobQueue.claim with {depths['1m']} and with {depths['100k']} jobs waiting",
        f"the same with {depths['1k']} jobs waiting; all three queues {SERVER}", measured,
    )  # fmt: skip
