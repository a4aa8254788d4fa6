"""What producers, readers and operators may do next."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import rule

from headpond import operations as ops
from headpond import upkeep
from headpond.jobs import Priority
from headpond.operations import Entry, Submitted
from headpond.wire import pack
from queue_machine import answers
from queue_machine.calls import NAMES, Calls

BANDS = (Priority.INTERACTIVE, Priority.NORMAL, Priority.BATCH)
TENANTS = ("", "mill", "weir")
COSTS = (1, 7, 40, 100)
WHEN: tuple[tuple[float, float | None], ...] = (
    (0.0, None), (0.0, None), (0.0, None), (0.0, None), (3.0, None), (0.0, 6.0), (4.0, 9.0), (0.0, 45.0),
)  # fmt: skip
"""delay_s and deadline_s."""
PINS = ("", "", "", "", "1", "2")
BOUNDS = (0, 0, 0, 6)
SESSIONS = ("s", "t")

name = st.integers(0, len(NAMES) - 1)
lost = st.booleans()


def entry(
    job_id: str,
    band: Priority,
    tenant: str,
    cost: int,
    *,
    digest: str = "one",
    pinned: str = "",
    delay_s: float = 0.0,
    deadline_s: float | None = None,
    session: str = "",
) -> Entry:
    of_session = [session, "", ""] if session else []
    data = pack([1, digest, tenant, band.value, pinned, cost, *of_session]) + pack([1, "generate", [], {}, {}, 1])
    return Entry(job_id, data, digest, tenant, band, pinned, cost, delay_s, deadline_s, session)


class Producers(Calls):
    def submit(self, entries: list[Entry], max_queued: int, *, again: bool) -> None:
        self.call(
            ops.submit(entries, max_queued=max_queued),
            lambda told, _: told == answers.submit(self.model, entries, max_queued, self.now_ms),
            again=again,
            # A repeat finds what the first one made; and whatever that had no room for has none now.
            repeated=lambda told: [Submitted.KNOWN if answer is Submitted.NEW else answer for answer in told],
        )

    @rule(
        first=name, band=st.sampled_from(BANDS), tenant=st.sampled_from(TENANTS), cost=st.sampled_from(COSTS),
        when=st.sampled_from(WHEN), pin=st.sampled_from(PINS), again=lost,
    )  # fmt: skip
    def submit_one(
        self,
        first: int,
        band: Priority,
        tenant: str,
        cost: int,
        when: tuple[float, float | None],
        pin: str,
        again: bool,
    ) -> None:
        self.step()
        delay_s, deadline_s = when
        new = entry(NAMES[first], band, tenant, cost, pinned=pin, delay_s=delay_s, deadline_s=deadline_s)
        self.submit([new], 0, again=again)

    @rule(
        first=name, many=st.integers(2, 6), band=st.sampled_from(BANDS), tenants=st.sampled_from((1, 2, 3)),
        bound=st.sampled_from(BOUNDS), again=lost,
    )  # fmt: skip
    def submit_many(self, first: int, many: int, band: Priority, tenants: int, bound: int, again: bool) -> None:
        """Jobs of some tenants at once; names that come twice in one call are among them."""
        self.step()
        entries = [
            entry(NAMES[(first + n) % len(NAMES)], band, TENANTS[n % tenants], COSTS[n % len(COSTS)])
            for n in range(many)
        ]
        self.submit([*entries, entries[0]] if many == 6 else entries, bound, again=again)

    @rule(
        first=name, many=st.integers(1, 3), band=st.sampled_from(BANDS), tenant=st.sampled_from(TENANTS),
        session=st.sampled_from(SESSIONS), deadline_s=st.sampled_from((None, None, 6.0)), pin=st.sampled_from(PINS),
        again=lost,
    )  # fmt: skip
    def submit_turns(
        self,
        first: int,
        many: int,
        band: Priority,
        tenant: str,
        session: str,
        deadline_s: float | None,
        pin: str,
        again: bool,
    ) -> None:
        """The next turns of a conversation."""
        self.step()
        ids = [NAMES[(first + n) % len(NAMES)] for n in range(many)]
        turns = [
            entry(job_id, band, tenant, COSTS[n], pinned=pin, deadline_s=deadline_s, session=session)
            for n, job_id in enumerate(ids)
        ]
        self.submit(turns, 0, again=again)

    @rule(first=name, digest=st.sampled_from(("one", "other")), tenant=st.sampled_from(TENANTS), again=lost)
    def submit_a_known_id(self, first: int, digest: str, tenant: str, again: bool) -> None:
        self.step()
        known = sorted(self.model.jobs)
        job_id = known[first % len(known)] if known else NAMES[first]
        self.submit([entry(job_id, Priority.NORMAL, tenant, 1, digest=digest)], 0, again=again)

    @rule(which=name, again=lost)
    def cancel(self, which: int, again: bool) -> None:
        self.step()
        job_id = NAMES[which]
        self.call(
            ops.cancel(job_id), lambda told, _: told == answers.cancel(self.model, job_id, self.now_ms), again=again
        )

    @rule(which=name)
    def read_from_the_start(self, which: int) -> None:
        """Another reader comes, and reads all of a stream."""
        self.step()
        self.model.readers.pop(NAMES[which], None)
        self.check(self.world.look(self.model.seen()))

    @rule(which=name, drop=st.booleans(), again=lost)
    def decide_what_becomes_of_a_dead_job(self, which: int, drop: bool, again: bool) -> None:
        self.step()
        dead = sorted(job.id for job in self.model.jobs.values() if job.listed)
        job_id = dead[which % len(dead)] if dead else NAMES[which]
        self.call(
            upkeep.drop_dead(job_id) if drop else upkeep.forget_dead(job_id),
            lambda told, _: told == answers.decide_dead(self.model, job_id, drop=drop),
            again=again,
            repeated=lambda told: upkeep.DeadAnswer.GONE if drop and told is upkeep.DeadAnswer.OK else told,
        )
