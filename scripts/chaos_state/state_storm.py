"""Does to a town what the plan says, and mends what it broke."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from proxies import CutOrder
from state_plan import Blow, Blown, PlannedBlow
from state_town import StateTown
from storm import Limit

TEND_INTERVAL_S = 0.02
PROGRESS_INTERVAL_S = 10.0


@dataclass(slots=True)
class Outage:
    """Of storage. until: of time.monotonic(). ended: how many jobs had when it began. held_up: the Valkey was started
    anew meanwhile, and what it may have lost is looked up in storage before a job ends: the one time that jobs wait."""

    blow: Blown
    until: float
    ended: int
    held_up: bool = False


@dataclass(slots=True)
class StateStorm:
    """check: raises if those who use the queue have failed. ended: how many jobs have. outages: each: at_s, kind,
    lasts_s, jobs that ended meanwhile, held_up."""

    town: StateTown
    plan: Iterator[PlannedBlow]
    check: Callable[[], None]
    ended: Callable[[], int]
    progress: Callable[[str], None]
    blows: list[Blown] = field(default_factory=list)
    outages: list[list[object]] = field(default_factory=list)
    spared: int = 0
    _began: float = field(default_factory=time.monotonic)
    _due_s: float = 0.0
    _next: PlannedBlow | None = None
    _said: float = 0.0
    _outage: Outage | None = None
    _cuts: list[tuple[Blown, CutOrder]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def kills(self) -> int:
        return sum(blow.counted_kill for blow in self.blows)

    def rage(self, limit: Limit) -> None:
        """Raises HeadpondError if the run cannot go on."""
        while not limit.reached(self.kills, self.seconds):
            self.step()

    def step(self) -> None:
        """Mend what is to be mended, and do the next blow if it is due; a short while passes."""
        self.tend()
        if self._next is None:
            self._next = next(self.plan)
            # What a blow takes by itself does not put off the next one.
            self._due_s = max(self._due_s + self._next.after_s, self.seconds)
        if self.seconds >= self._due_s:
            planned, self._next = self._next, None
            self._strike(planned)
        else:
            time.sleep(min(TEND_INTERVAL_S, self._due_s - self.seconds))

    def tend(self) -> None:
        self.town.tend()
        self.check()
        if self._outage is not None and time.monotonic() >= self._outage.until:
            self.end_outage()
        if self.seconds - self._said >= PROGRESS_INTERVAL_S:
            self._said = self.seconds
            self.progress(self.told())

    def end_outage(self) -> None:
        """If there is one."""
        outage, self._outage = self._outage, None
        if outage is None:
            return
        if outage.blow.kind is Blow.STOP:
            self.town.go_on_storage()
        else:
            self.town.open_storage()
        outage.blow.lasts_s = self.seconds - outage.blow.at_s
        self.outages.append(
            [round(outage.blow.at_s, 2), outage.blow.kind.value, round(outage.blow.lasts_s, 2),
             self.ended() - outage.ended, outage.held_up]
        )  # fmt: skip

    def note(self, kind: Blow, hit: int, *, target: int = 0, lasts_s: float = 0.0, at_s: float | None = None) -> Blown:
        blow = Blown(self.seconds if at_s is None else at_s, kind, target, lasts_s, hit)
        self.blows.append(blow)
        return blow

    def close(self) -> None:
        self.end_outage()
        for blow, order in self._cuts:
            blow.done = order.done.is_set()

    def _strike(self, planned: PlannedBlow) -> None:
        town = self.town
        match planned.kind:
            case Blow.PERSISTER:
                target = int(planned.draw * len(town.persisters))
                place = town.persisters[target]
                if place.lives:
                    hit = town.journal_length()
                    place.kill()
                    self.note(planned.kind, hit, target=target)
            case Blow.WORKER:
                worker, hit = town.worker_to_hit(planned.draw)
                if worker is None:
                    self.spared += 1
                else:
                    worker.kill()
                    self.note(planned.kind, hit, target=worker.number)
            case Blow.VALKEY:
                self.note(planned.kind, len(town.running()), lasts_s=planned.lasts_s)
                if self._outage is not None:
                    self._outage.held_up = True
                town.kill_valkey(planned.lasts_s)
            case Blow.SEAWEED:
                if self._outage is None:
                    self.note(planned.kind, town.journal_length(), lasts_s=planned.lasts_s)
                    town.kill_seaweed(planned.lasts_s)
            case Blow.CUT:
                blow = self.note(planned.kind, town.journal_length())
                self._cuts.append((blow, town.cut(planned.mark, reply=planned.reply)))
            case Blow.STOP | Blow.CLOSE:
                self._begin_outage(planned)
            case Blow.RESTORE:
                raise ValueError("a restore is killed where it runs")

    def _begin_outage(self, planned: PlannedBlow) -> None:
        if self._outage is not None:
            return
        blow = self.note(planned.kind, self.town.journal_length(), lasts_s=planned.lasts_s)
        self._outage = Outage(blow, time.monotonic() + planned.lasts_s, self.ended())
        if planned.kind is Blow.STOP:
            self.town.stop_storage()
        else:
            self.town.close_storage(planned.lasts_s + 60)

    def told(self) -> str:
        """Counted blows by kind, and jobs."""
        counted = Counter(blow.kind for blow in self.blows if blow.counted)
        each = ", ".join(f"{kind} {counted[kind]}" for kind in Blow if counted[kind])
        away = f", storage away for {self.seconds - self._outage.blow.at_s:.0f} s" if self._outage else ""
        return f"{self.kills} counted kills ({each}), {self.ended()} jobs ended{away}"


def idle_outages(outages: list[list[object]], *, least_s: float) -> list[str]:
    """Outages in which jobs waited for storage (P3): none ended for so long, and the Valkey was there all the time."""
    found = []
    for at_s, kind, lasts_s, ended, held_up in outages:
        if isinstance(lasts_s, float) and lasts_s >= least_s and ended == 0 and not held_up:
            found.append(f"storage was away ({kind}) for {lasts_s:g} s from {at_s} s on, and no job ended meanwhile")
    return found
