"""Moments that chance alone hits seldom: what comes due just after a sweep, and a wait that a load outlasts."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from headpond.jobs import Priority
from queue_machine.calls import NAMES, SEATS, seldom
from queue_machine.model import SWEEP_EVERY_MS, VERSION_WAIT_MS
from queue_machine.producers import Producers, entry
from queue_machine.upkeep import Upkeep
from queue_machine.writers import Writers

NEAR_MS = 4_900
LOADING_SEAT = 2
"""The only one that serves its version."""


class Moments(Producers, Writers, Upkeep):
    @seldom("moment", 12)
    @precondition(lambda self: self._soonest_ms() is not None)
    @rule(at=st.integers(0, len(SEATS) - 1), early=st.sampled_from((0, 1)), again=st.booleans())
    def a_claim_comes_when_something_has_just_become_due(self, at: int, early: int, again: bool) -> None:
        """early: 1 for a claim that comes by a ms too soon for it."""
        self.step("moment")
        soonest_ms = self._soonest_ms()
        assert soonest_ms is not None
        self.move_clock(soonest_ms - SWEEP_EVERY_MS // 2 - self.now_ms)
        self.tick(again=False)
        self.move_clock(SWEEP_EVERY_MS // 2 - early)
        process = self.seats[at]
        self.claim(process, [], max(1, process.free), fate="again" if again else "read")

    def _soonest_ms(self) -> int | None:
        """When the next thing comes due, if that is soon and yet far enough for a sweep before it."""
        times = [time for name in ("delayed", "deadlines", "leases", "waits") for time in self.now.zset(name).values()]
        soon = min(times, default=0) - self.now_ms
        return int(min(times)) if SWEEP_EVERY_MS < soon < NEAR_MS else None

    @seldom("load", 120)
    @rule(which=st.integers(0, len(NAMES) - 1))
    def a_model_loads_for_longer_than_its_version_is_waited_for(self, which: int) -> None:
        """Q5: nobody else serves the version, and its job is not given up."""
        self.step("load")
        ((version, _, _),) = SEATS[LOADING_SEAT]
        if NAMES[which] not in self.model.jobs:
            self.submit([entry(NAMES[which], Priority.NORMAL, "", 7, pinned=version)], 0, again=False)
        loading = self.seats[LOADING_SEAT] = self.start_process(LOADING_SEAT, loads=True)
        for n in range(VERSION_WAIT_MS // 4_000 + 4):
            self.move_clock(4_000)
            self.tick(again=False)
            for process in self.seats:
                if process is not loading and n % 2:
                    self.renew_of(process, 99, again=False)
