"""What goes wrong, and when: a plan that follows from its seed alone. No I/O."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum


class FaultKind(StrEnum):
    WORKER = "worker"
    """SIGKILL of a worker. It is started again."""
    SERVER = "server"
    """SIGKILL of the server. It is started again on the same port and data."""
    STOP = "stop"
    """SIGSTOP of a worker past its lease, then SIGCONT: a zombie."""
    CUT = "cut"
    """Connections between a worker and the server are cut."""


class Cut(StrEnum):
    RESET = "reset"
    """All connections of the worker end now."""
    LOSE_REQUEST = "lose-request"
    """The next call of one script ends its connection before the server has it."""
    LOSE_REPLY = "lose-reply"
    """The server acts on the next such call, and the connection ends before its reply."""
    PARTITION = "partition"
    """All connections end, and for a while none can be made."""


SCRIPTS = ("claim", "append", "finish", "renew")
"""Those by which a worker changes jobs: what a cut of one call waits for."""
SHARES = {FaultKind.WORKER: 0.55, FaultKind.SERVER: 0.18, FaultKind.STOP: 0.07, FaultKind.CUT: 0.20}
"""How often each kind comes; of the kinds that are asked for."""
KILLS = (FaultKind.WORKER, FaultKind.SERVER)
STOP_LEASES = (1.2, 2.0)
PARTITION_LEASES = (0.3, 1.5)
AWAY_LEASES = (0.0, 0.3)
"""How long a stop, a partition and a killed server's absence last, in leases: from, to."""


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """after_s: since the fault before it. target: number of the worker that is looked at first. script: whose next
    call a cut waits for. lasts: in leases; 0 for what is over at once."""

    after_s: float
    kind: FaultKind
    target: int
    cut: Cut | None
    script: str
    lasts: float


@dataclass(frozen=True, slots=True)
class Hit:
    """jobs: how many ran in the process at that moment. fresh: how many of these had made too few tokens under this
    lease to clear a strike."""

    jobs: int
    fresh: int


@dataclass(slots=True)
class Fault:
    """What was done. at_s: since the run began. target: number of the worker; None is the server."""

    at_s: float
    kind: FaultKind
    target: int | None
    cut: Cut | None
    lasts_s: float
    hit: Hit
    done: bool = True
    """False for a cut that met no call before its worker was killed."""

    @property
    def counted(self) -> bool:
        """A fault counts only if it hit a process that had a running job."""
        return self.done and self.hit.jobs > 0

    @property
    def counted_kill(self) -> bool:
        return self.counted and self.kind in KILLS


def plan_faults(seed: int, kinds: Sequence[FaultKind], *, workers: int, interval_s: float) -> Iterator[PlannedFault]:
    """Faults without end, at random times that are interval_s apart on average."""
    # Not for secrets: it has to be repeatable.
    rng = random.Random(f"faults:{seed}")  # noqa: S311
    chosen = [kind for kind in FaultKind if kind in kinds]
    shares = [SHARES[kind] for kind in chosen]
    while True:
        # Each fault takes as many draws, so that one that is left out does not change those after it.
        after_s = min(rng.expovariate(1 / interval_s), 5 * interval_s)
        kind = rng.choices(chosen, shares)[0]
        target, cut, script, span = rng.randrange(workers), rng.choice(list(Cut)), rng.choice(SCRIPTS), rng.random()
        lasts = _lasts(kind, cut, span)
        yield PlannedFault(after_s, kind, target, cut if kind is FaultKind.CUT else None, script, lasts)


def _lasts(kind: FaultKind, cut: Cut, span: float) -> float:
    match kind:
        case FaultKind.STOP:
            least, most = STOP_LEASES
        case FaultKind.SERVER:
            least, most = AWAY_LEASES
        case FaultKind.CUT if cut is Cut.PARTITION:
            least, most = PARTITION_LEASES
        case _:
            return 0.0
    return least + span * (most - least)
