"""What is done in a run under load, and when: a plan that follows from its seed alone. No I/O."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from task_plan import BY_CHANGE_SHARE, PlannedTask, TaskKind, Trigger
from weights import ANSWERS

INTERVAL_S = 1.0
"""Between two things that are begun, on average."""
SHARES = {
    TaskKind.WORKER: 0.4, TaskKind.PUSH: 0.21, TaskKind.PROMOTE: 0.2, TaskKind.ROLLBACK: 0.1,
    TaskKind.PERSISTER: 0.06, TaskKind.SERVER: 0.03,
}  # fmt: skip
KILLED_SHARE = 0.4
"""How many pushes and moves are to be killed before they are done."""
AWAY_S = (0.0, 3.0)
"""How long a killed storage server stays away, beside what its start takes: from, to."""


@dataclass(frozen=True, slots=True)
class PlannedAct:
    """after_s: since the act before. draw: which worker, and which of its processes."""

    after_s: float
    task: PlannedTask
    draw: float


def plan_acts(seed: int) -> Iterator[PlannedAct]:
    """Acts without end."""
    rng = random.Random(f"load:{seed}")  # noqa: S311 - it has to be repeatable
    kinds, shares = list(SHARES), list(SHARES.values())
    while True:
        after_s = min(rng.expovariate(1 / INTERVAL_S), 4 * INTERVAL_S)
        # The third draw of a ledger's pick: neither a deletion nor a version that is deleted.
        kind, draws = rng.choices(kinds, shares)[0], (rng.random(), rng.random(), 0.6)
        killed, moment, draw = rng.random() < KILLED_SHARE, rng.random(), rng.random()
        trigger, away_s = Trigger.CHANGE if rng.random() < BY_CHANGE_SHARE else Trigger.TIME, rng.uniform(*AWAY_S)
        task = PlannedTask(kind, ANSWERS, 1, draws, moment if killed else None, trigger, away_s)
        yield PlannedAct(after_s, task, draw)
