"""Does what the plan says to a town, until there were enough counted kills or the time is over."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from faults import Fault, FaultKind, Hit, PlannedFault
from proxies import CutOrder
from town import Town, TownWorker, on_its_last_chance

TEND_INTERVAL_S = 0.02
PROGRESS_INTERVAL_S = 5.0


@dataclass(frozen=True, slots=True)
class Limit:
    """When a storm is over. kills: counted ones; None does not matter. seconds: likewise."""

    kills: int | None
    seconds: float | None

    def reached(self, kills: int, seconds: float) -> bool:
        enough = self.kills is not None and kills >= self.kills
        return enough or (self.seconds is not None and seconds >= self.seconds)


@dataclass(slots=True)
class Storm:
    """check: raises if those who use the queue have failed. jobs_ended: how many jobs have, for the progress lines."""

    town: Town
    lease_s: float
    check: Callable[[], None]
    jobs_ended: Callable[[], int]
    progress: Callable[[str], None]
    faults: list[Fault] = field(default_factory=list)
    spared: int = 0
    """Workers that were passed over, because a job of theirs would have been quarantined by the rule."""
    _began: float = field(default_factory=time.monotonic)
    _said: float = 0.0
    _cuts: list[tuple[Fault, CutOrder]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def kills(self) -> int:
        return sum(fault.counted_kill for fault in self.faults)

    def rage(self, plan: Iterator[PlannedFault], limit: Limit) -> None:
        """Raises HeadpondError if the run cannot go on."""
        due_s = self.seconds
        for planned in plan:
            # What a fault takes by itself does not put off the next one.
            due_s = max(due_s + planned.after_s, self.seconds)
            self._tend(due_s)
            self._do(planned)
            if limit.reached(self.kills, self.seconds):
                break
        for fault, order in self._cuts:
            fault.done = order.done.is_set()

    def _tend(self, until_s: float) -> None:
        """Mend what is broken until the next fault is due."""
        while True:
            self.town.tend()
            self.check()
            if self.seconds - self._said >= PROGRESS_INTERVAL_S:
                self._said = self.seconds
                self.progress(self.told())
            left_s = until_s - self.seconds
            if left_s <= 0:
                return
            time.sleep(min(TEND_INTERVAL_S, left_s))

    def _do(self, planned: PlannedFault) -> None:
        at_s, lasts_s = self.seconds, planned.lasts * self.lease_s
        if planned.kind is FaultKind.SERVER:
            hit = self.town.kill_server(lasts_s)
            self.faults.append(Fault(at_s, planned.kind, None, None, lasts_s, hit))
            return
        worker = self._victim(planned.target)
        if worker is None:
            return
        fault = Fault(at_s, planned.kind, worker.number, planned.cut, lasts_s, Hit(0, 0))
        if planned.kind is FaultKind.WORKER:
            fault.hit = self.town.kill_worker(worker)
        elif planned.kind is FaultKind.STOP:
            fault.hit = self.town.stop_worker(worker, lasts_s)
        elif planned.cut is not None:
            fault.hit, order = self.town.cut_off(worker, planned.cut, planned.script, lasts_s)
            self._cuts.append((fault, order))
        self.faults.append(fault)

    def _victim(self, target: int) -> TownWorker | None:
        """The next worker with a job, from `target` on; else the next; None if none is there to be hit.

        One whose job has two strikes in a row and no progress since is passed over: a third is what the queue calls
        poison, and it could not tell this job from one that kills its workers by itself.
        """
        workers = self.town.workers
        turned = [worker for worker in (*workers[target:], *workers[:target]) if worker.within_reach]
        running = self.town.running()
        last_chance = {boot for boot, rows in running.items() if any(map(on_its_last_chance, rows))}
        busy = [worker for worker in turned if worker.boot in running]
        self.spared += any(worker.boot in last_chance for worker in busy[:1])
        return next((worker for worker in busy or turned if worker.boot not in last_chance), None)

    def told(self) -> str:
        """Counted faults by kind, and jobs."""
        counted = Counter(fault.kind for fault in self.faults if fault.counted)
        each = ", ".join(f"{kind.value} {counted[kind]}" for kind in FaultKind)
        return f"{self.kills} counted kills ({each}), {self.jobs_ended()} jobs ended"
