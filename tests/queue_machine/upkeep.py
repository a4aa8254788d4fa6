"""What time, the persister and new connections may do next."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from headpond import operations as ops
from headpond import upkeep
from queue_machine import answers
from queue_machine.calls import Calls, seldom
from queue_machine.snapshot import Snapshot
from queue_machine.sweeping import sweep

PASSING_MS = (0, 1, 50, 400, 1_500, 3_000, 3_000, 4_900)
LONG_MS = (5_100, 11_000, 31_000, 61_000, 101_000)
lost = st.booleans()


class Upkeep(Calls):
    def tick(self, *, again: bool) -> None:
        before = self.now

        def expect(told: float | None, after: Snapshot) -> bool:
            sweep(self.model, self.now_ms, before, after)
            times = [time for name in ("delayed", "deadlines", "leases", "waits") for time in after.zset(name).values()]
            return told == (max(0.0, min(times) - self.now_ms) / 1000 if times else None)

        self.call(ops.tick(), expect, again=again)

    @rule(ms=st.sampled_from(PASSING_MS), again=lost)
    def time_passes(self, ms: int, again: bool) -> None:
        self.step()
        self.move_clock(ms)
        self.tick(again=again)

    @seldom("long", 12)
    @rule(ms=st.sampled_from(LONG_MS), again=lost)
    def a_long_time_passes(self, ms: int, again: bool) -> None:
        """Nobody looked at the queue in it."""
        self.step("long")
        self.move_clock(ms)
        self.tick(again=again)

    @rule(ms=st.sampled_from((100, 1_000, 2_500)))
    def time_passes_unseen(self, ms: int) -> None:
        self.step()
        self.move_clock(ms)

    @seldom("silence", 15)
    @rule(again=lost)
    def all_workers_are_silent(self, again: bool) -> None:
        """A lease passes, with somebody who ticks."""
        self.step("silence")
        for _ in range(3):
            self.move_clock(3_700)
            self.tick(again=again)

    @seldom("back", 30)
    @rule(again=lost)
    def the_clock_goes_back(self, again: bool) -> None:
        self.step("back")
        self.move_clock(-2_000)
        self.tick(again=again)

    @seldom("hello", 20)
    @rule()
    def a_connection_says_hello(self) -> None:
        """To a server that is the same as before: nothing changes."""
        self.step("hello")
        self.changes_nothing(
            ops.hello(self.world.server_id, storage=self.model.storage),
            lambda told: told == (self.model.server.inc, self.model.state),
        )

    @seldom("look", 10)
    @rule()
    def an_operator_looks(self) -> None:
        """All is where its row says, and depths count it."""
        self.step("look")
        self.changes_nothing(upkeep.depths(), lambda told: told == answers.depths(self.model, self.now_ms))
        found = upkeep.fsck("0", repair=True)
        self.changes_nothing(found, lambda told: not told.faults and told.looked == len(self.model.jobs))

    @precondition(lambda self: self.model.server.journal)
    @rule(part=st.sampled_from((1, 3, 9, 99)), stale=st.integers(0, 3), again=lost)
    def the_persister_commits(self, part: int, stale: int, again: bool) -> None:
        """It has stored the oldest entries of the journal. stale: 0 where it read before the server went back."""
        self.step()
        entries = sorted(self.model.server.journal.items(), key=lambda item: answers.journal_key(item[0]))[:part]
        through = entries[-1][0]
        ended = [job_id for _, (kind, job_id) in entries if kind == "end"]
        inc = self.model.server.inc - (stale == 0)
        self.call(
            upkeep.trim(inc=inc, through=through, ended=ended),
            lambda told, _: told == answers.trim(self.model, inc, through, ended, self.now_ms),
            again=again,
        )

    @seldom("close", 50)
    @rule(again=lost)
    def the_queue_is_closed(self, again: bool) -> None:
        self.step("close")
        self.model.server.open = self.model.server.mending = False
        self.call(
            upkeep.open_queue("close", reason="it is looked at"), lambda told, _: told[1] == "closed", again=again
        )
