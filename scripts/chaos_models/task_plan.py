"""What is done to the versions of models, by whom, and when each is killed: a plan that follows from its seed alone.

Which version a task is about cannot be planned, since that depends on what was acknowledged; the plan has the draws
with which it is picked. No I/O.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from weights import MODELS


class TaskKind(StrEnum):
    PUSH = "push"
    PULL = "pull"
    """Into a folder of its own."""
    HOLD = "hold"
    """From the cache that all share, fetched into it where it is not there; half of them whatever an alias names."""
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    DELETE = "delete"
    COLLECT = "collect"
    VERIFY = "verify"
    SCRUB = "scrub"
    WORKER = "worker"
    """SIGKILL of a worker that follows an alias, or of its parent; only in a run with workers."""
    PERSISTER = "persister"
    """SIGKILL of the process that brings the queue's changes to storage, and aliases to the queue; likewise."""
    SERVER = "server"
    """SIGKILL of the storage server. It is started again on the same ports and data."""


class Trigger(StrEnum):
    """What the moment of a kill is a part of."""

    TIME = "time"
    """The usual length of such a task."""
    CHANGE = "change"
    """The changes that such a task usually makes in storage: it is killed as soon as it has said that it made one. A
    task that makes none is killed by the time."""


SHARES = {
    TaskKind.PUSH: 0.31, TaskKind.PULL: 0.06, TaskKind.HOLD: 0.12, TaskKind.PROMOTE: 0.16, TaskKind.ROLLBACK: 0.07,
    TaskKind.DELETE: 0.13, TaskKind.COLLECT: 0.07, TaskKind.VERIFY: 0.04, TaskKind.SCRUB: 0.02, TaskKind.SERVER: 0.02,
}  # fmt: skip
MODEL_SHARES = (0.5, 0.35, 0.15)
"""How often each of MODELS comes."""
KILLED_SHARE = 0.8
"""How many of the processes are to be killed before they are done."""
BY_CHANGE_SHARE = 0.5
"""How many kills come after a change; most of the time of a task goes before its first one."""
MOMENTS = (0.0, 1.1)
SQUALL = (6, 24)
"""For so many tasks as many processes as WIDTHS says run at once; then another number does."""
WIDTHS = (1, 2, 3, 4, 6)
AWAY_S = (0.0, 1.0)
"""How long a killed server stays away, beside what its start takes: from, to."""


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """width: processes that may run at once. draws: of the pick, each in [0, 1). killed_at: when it gets SIGKILL, as
    a part of what `trigger` says; None lets it come to its end. away_s: of a killed server."""

    kind: TaskKind
    model: str
    width: int
    draws: tuple[float, float, float]
    killed_at: float | None
    trigger: Trigger
    away_s: float


def plan_tasks(seed: int) -> Iterator[PlannedTask]:
    """Tasks without end."""
    rng = random.Random(f"models:{seed}")  # noqa: S311 - it has to be repeatable
    kinds, shares = list(SHARES), list(SHARES.values())
    while True:
        width = rng.choice(WIDTHS)
        for _ in range(rng.randint(*SQUALL)):
            # Each task takes as many draws, whatever it is.
            kind, model = rng.choices(kinds, shares)[0], rng.choices(MODELS, MODEL_SHARES)[0]
            draws = (rng.random(), rng.random(), rng.random())
            killed, away = rng.random() < KILLED_SHARE, rng.uniform(*AWAY_S)
            moment, by_change = rng.uniform(*MOMENTS), rng.random() < BY_CHANGE_SHARE
            trigger = Trigger.CHANGE if by_change else Trigger.TIME
            yield PlannedTask(kind, model, width, draws, moment if killed else None, trigger, away)
