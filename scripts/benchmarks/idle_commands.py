"""`queue`, idle: commands a second that a worker sends while there is nothing to do."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing

import redis
from document import Measurement, Samples
from pairs import Order, Pair, order_of
from plan import Plan
from queue_actor import SERVER, STOCK, Side
from queue_sides import WorkerProcess, senders, times_of
from server_counts import CommandCount

from headpond_workers.supervision.embedded_valkey import running_valkey

WINDOW_S, QUICK_WINDOW_S = 20.0, 3.0
SETTLE_S, QUICK_SETTLE_S = 5.0, 1.0
"""From the last job until the worker counts as idle: stock's pauses have grown to their longest by then."""
BOTH = "dramatiq.Worker with its default 8 threads and default middleware, in a process of its own"


class _IdleWorker:
    """One side: a worker that had one job and has nothing to do now, on a server of its own."""

    def __init__(self, stack: ExitStack, side: Side, plan: Plan) -> None:
        folder = plan.folder / side.value
        url = stack.enter_context(running_valkey(folder)).url
        self._client = stack.enter_context(closing(redis.Redis.from_url(url)))
        worker = stack.enter_context(WorkerProcess(side, url, folder))
        worker.start()
        stack.enter_context(senders(url))[side].send(1)
        times_of([1], worker.ended(1))

    def count(self) -> CommandCount:
        """Begins now."""
        return CommandCount(self._client)


def measure_idle(plan: Plan) -> Measurement:
    """Both sides are idle at once, as neither disturbs the other. Raises HeadpondError."""
    window_s = QUICK_WINDOW_S if plan.quick else WINDOW_S
    pairs: list[Pair[Samples]] = []
    with ExitStack() as stack:
        idle = {side: _IdleWorker(stack, side, plan) for side in Side}
        time.sleep(QUICK_SETTLE_S if plan.quick else SETTLE_S)
        for number in range(plan.pairs):
            first = order_of(number)
            sides = list(Side) if first is Order.HEADPOND else list(Side)[::-1]
            counts = {side: idle[side].count() for side in sides}
            time.sleep(window_s)
            found: dict[Side, Samples] = {
                side: {"commands": commands, "seconds": round(seconds, 3)}
                for side, (commands, seconds) in ((side, counts[side].close()) for side in sides)
            }
            pair = Pair(first, found[Side.HEADPOND], found[Side.STOCK])
            pairs.append(pair)
            ours, theirs = (samples["commands"] / samples["seconds"] for samples in (pair.headpond, pair.peer))
            plan.say_pair(number, f"headpond {ours:.2f} commands/s, dramatiq {theirs:.2f}")
    return Measurement(
        plan.kind, "commands of an idle worker",
        f"{window_s:g} s a run of a worker that has nothing to do; commands that its connections sent, without those "
        "that a script calls in its turn. Both sides are idle at the same time, on servers of their own",
        f"HeadpondBroker; {BOTH}", f"{STOCK}; {BOTH}; both {SERVER}", pairs,
    )  # fmt: skip
