"""What goes wrong with a deployment that has storage, and when: a plan that follows from its seed alone. No I/O."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

LONGEST_OUTAGE_S = 60.0


class Blow(StrEnum):
    PERSISTER = "persister"
    """SIGKILL of a persister. It is started again; so are all that follow."""
    WORKER = "worker"
    VALKEY = "valkey"
    SEAWEED = "seaweedfs"
    RESTORE = "restore"
    """SIGKILL of `headpond restore`: not of the plan, but of each time that Redis was lost."""
    STOP = "stop"
    """SIGSTOP of SeaweedFS for a while: calls get no answer."""
    CLOSE = "close"
    """The way to SeaweedFS is closed for a while: calls are refused."""
    CUT = "cut"
    """One put to SeaweedFS loses its request, or its reply after SeaweedFS has acted."""


KILLS = (Blow.PERSISTER, Blow.WORKER, Blow.VALKEY, Blow.SEAWEED, Blow.RESTORE)
OUTAGES = (Blow.STOP, Blow.CLOSE)
SHARES = {
    Blow.PERSISTER: 0.34, Blow.WORKER: 0.3, Blow.VALKEY: 0.2, Blow.SEAWEED: 0.06, Blow.STOP: 0.008, Blow.CLOSE: 0.008,
    Blow.CUT: 0.084,
}  # fmt: skip
MARKS = ("head", "segments", "snapshots", "parts")
"""What a put that is cut is of: the object's kind, as it stands in its key."""


@dataclass(frozen=True, slots=True)
class PlannedBlow:
    """after_s: since the blow before it. draw: in [0, 1), of which several processes. lasts_s: of an outage, or how
    long a server that was killed stays away. mark: see MARKS. reply: the reply is lost, not the request."""

    after_s: float
    kind: Blow
    draw: float
    lasts_s: float
    mark: str
    reply: bool


@dataclass(slots=True)
class Blown:
    """What was done. at_s: since the run began. hit: what was under way just then, by kind: running jobs, or entries of
    the journal; 0 does not count. done: False for a cut that met no put."""

    at_s: float
    kind: Blow
    target: int
    lasts_s: float
    hit: int
    done: bool = True

    @property
    def counted(self) -> bool:
        return self.done and self.hit > 0

    @property
    def counted_kill(self) -> bool:
        return self.counted and self.kind in KILLS


def plan_blows(seed: int, *, interval_s: float) -> Iterator[PlannedBlow]:
    """Blows without end, at random times that are interval_s apart on average."""
    rng = random.Random(f"state:{seed}")  # noqa: S311 - it has to be repeatable
    kinds, shares = list(SHARES), list(SHARES.values())
    while True:
        # Each blow takes as many draws, so that one that is left out does not change those after it.
        after_s = min(rng.expovariate(1 / interval_s), 5 * interval_s)
        kind, draw, span = rng.choices(kinds, shares)[0], rng.random(), rng.random()
        mark, reply = rng.choice(MARKS), rng.random() < 0.6
        lasts_s = 0.0
        if kind in OUTAGES:
            # Many short ones, and now and then one as long as there may be.
            lasts_s = max(1.0, LONGEST_OUTAGE_S * min(1.0, 1.1 * span**3))
        elif kind in (Blow.VALKEY, Blow.SEAWEED):
            lasts_s = 0.4 * span
        yield PlannedBlow(after_s, kind, draw, lasts_s, mark, reply)
