"""`queue`, recovery: how soon another worker runs the jobs of one that was killed.

There is no peer. dramatiq's RedisBroker looks for dead workers once in a thousand commands, by chance; a run that
waits for it has no end that could be planned. What is compared is the bound: a lease, and a second.
"""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from dataclasses import dataclass
from time import monotonic_ns, sleep

from document import Measurement, Samples
from pairs import Order, Pair
from plan import Plan
from queue_actor import QUEUE, SERVER, Side
from queue_sides import Sender, WorkerProcess, senders, times_of

from headpond_workers.supervision.embedded_valkey import running_valkey


@dataclass(frozen=True, slots=True)
class Workload:
    jobs: int = 8
    lease_s: float = 5.0
    hold_s: float = 600.0
    settle_s: float = 0.5

    @property
    def text(self) -> str:
        return (
            f"a worker process with {self.jobs} running jobs and a lease of {self.lease_s:g} s is killed with SIGKILL, "
            "at a random time (uniform, seeded) between two of its renewals; another one with as many free slots is "
            f"idle; from the kill to the first line of the last of the {self.jobs} jobs there"
        )


def measure_recovery(plan: Plan) -> Measurement:
    """Raises HeadpondError."""
    workload = Workload()
    numbers = itertools.count()
    with running_valkey(plan.folder) as valkey, senders(valkey.url) as sending:
        pairs: list[Pair[Samples]] = []
        for number in range(plan.pairs):
            jobs = list(itertools.islice(numbers, workload.jobs))
            recovered_s = _kill(plan, workload, valkey.url, sending[Side.HEADPOND], jobs, number)
            pairs.append(Pair(Order.HEADPOND, {"recovered_s": recovered_s, "lease_s": workload.lease_s}, {}))
            plan.say_pair(number, f"all {workload.jobs} run again after {max(recovered_s):.2f} s")
    return Measurement(
        plan.kind, f"recovery from kill -9, {workload.jobs} jobs, lease {workload.lease_s:g} s", workload.text,
        f"HeadpondBroker; two worker processes {SERVER}",
        "none is run: dramatiq's RedisBroker looks for dead workers once in a thousand commands, by chance", pairs,
    )  # fmt: skip


def _kill(plan: Plan, workload: Workload, url: str, sender: Sender, jobs: list[int], number: int) -> list[float]:
    """Seconds from the kill to the new beginning of each job."""

    def process(stack: ExitStack, name: str) -> WorkerProcess:
        made = WorkerProcess(
            Side.HEADPOND, url, plan.folder, name=f"{name}-{number}", threads=workload.jobs, slots=workload.jobs,
            lease_s=workload.lease_s,
        )  # fmt: skip
        return stack.enter_context(made)

    with ExitStack() as stack:
        victim, rescuer = process(stack, "victim"), process(stack, "rescuer")
        victim.start()
        for job in jobs:
            sender.send(job, workload.hold_s)
        times_of(jobs, victim.began(len(jobs)))
        rescuer.start()
        # Until it waits; then anywhere between two renewals of the victim.
        sleep(workload.settle_s + plan.draw(number).uniform(0.0, workload.lease_s / 3))
        killed_ns = monotonic_ns()
        victim.child.kill()
        began_ns = times_of(jobs, rescuer.began(len(jobs)))
        # Its jobs would run for ever; and what it holds must not come back to the next run's workers.
        rescuer.child.kill()
        sender.broker.flush(QUEUE)
    return [round((began_ns[job] - killed_ns) / 1e9, 3) for job in jobs]
