"""Q7, Q11, Q12: who is blamed for a crash, and who gives way to a more urgent job."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import count

from headpond import JobState
from headpond.jobs import Priority
from headpond.operations import Append, Lease, LeaseStatus, Settle, Settlement
from queue_bench import Bench, lease_key, tokens
from queue_holes.hole import Ground, Hole, LuaCut


def crash(bench: Bench, boot: str, *, after: int) -> None:
    """Claim one job, make so many tokens, and never be heard of again."""
    lease = bench.lease(boot)
    if after:
        bench.append(lease, tokens(lease.offset, lease.offset + after))
    bench.let_leases_end()


def make_suspects(bench: Bench, *ids: str) -> None:
    """Submit jobs whose workers are killed twice without progress."""
    bench.submit(*ids)
    for boot in ("dies", "dies too"):
        assert len(bench.claim(boot, slots=len(ids)).leases) == len(ids)
        bench.let_leases_end()
    assert bench.queue.depths().suspects == len(ids)


def job_with_progress_over_crashes(ground: Ground) -> object:
    """State and strikes of a job whose workers were killed ten times, each after eight tokens."""
    bench = ground.bench()
    bench.submit("chat/a")
    for n in range(10):
        if bench.row("chat/a").state is JobState.QUEUED:
            crash(bench, f"boot{n}", after=8)
    row = bench.row("chat/a")
    return row.state, row.strikes


def job_of_a_worker_that_was_only_slow(ground: Ground) -> object:
    """State and strikes of a job whose worker was silent for a lease three times, and then spoke again."""
    bench = ground.bench()
    bench.submit("chat/a")
    for _ in range(3):
        crash(bench, "A", after=0)
        bench.renew("A")
    row = bench.row("chat/a")
    return row.state, row.strikes


def suspects_at_once(ground: Ground) -> object:
    """How many of three suspects run together on a worker with four slots, and whether a peer is given another."""
    bench = ground.bench()
    make_suspects(bench, "chat/a", "chat/b", "chat/c")
    return len(bench.claim("A", slots=4).leases), len(bench.claim("B", slots=4).leases)


def wake_tokens_beside_a_running_suspect(ground: Ground) -> object:
    """Tokens of the suspect lane, where another suspect waits: while one runs, and once it has ended."""
    bench = ground.bench()
    make_suspects(bench, "chat/a", "chat/b")
    lease = bench.lease()
    running = bench.wake_tokens("suspect")
    bench.finish(lease, offset=0)
    return running, bench.wake_tokens("suspect")


def message_of_the_persister_over_crashes(ground: Ground) -> object:
    """State of a message of the queue `persistence` whose workers were killed five times."""
    bench, _ = ground.own(name="persistence")
    bench.submit("persistence/a")
    for n in range(5):
        if bench.row("persistence/a").state is JobState.QUEUED:
            crash(bench, f"boot{n}", after=0)
    return bench.row("persistence/a").state


@dataclass
class Farm:
    """Workers with four slots each, on a queue that is never empty; some of them are killed for no fault of a job."""

    bench: Bench
    workers: int = 4
    slots: int = 4
    served: int = 0
    held: dict[str, list[Lease]] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    _names: count[int] = field(default_factory=count)

    JOB_TOKENS = 60
    STEP_TOKENS = 4

    def step(self) -> None:
        """Every slot has its job, and every job gets its next tokens."""
        while len(self.held) < self.workers:
            self.held[f"boot{next(self._names)}"] = []
        if self.bench.queue.depths().ready < 40:
            self.bench.submit(*(f"chat/job{next(self._names)}" for _ in range(40)))
        for boot, leases in self.held.items():
            if len(leases) < self.slots:
                new = self.bench.claim(boot, slots=self.slots - len(leases)).leases
                self.offsets |= {lease.id: lease.offset for lease in new}
                leases += new
            self._append(leases)

    def _append(self, leases: list[Lease]) -> None:
        if not leases:
            return
        batch = [
            Append(x.id, x.fence, tokens(self.offsets[x.id], self.offsets[x.id] + self.STEP_TOKENS)) for x in leases
        ]
        for lease, outcome in zip(list(leases), self.bench.queue.append(batch), strict=True):
            assert outcome.status is LeaseStatus.APPENDED
            self.served += self.STEP_TOKENS
            self.offsets[lease.id] = outcome.offset
            if outcome.offset >= self.JOB_TOKENS:
                self.bench.finish(lease, offset=outcome.offset)
                leases.remove(lease)

    def kill(self, boot: str) -> None:
        """The worker is gone; the others wait out its leases."""
        del self.held[boot]
        for _ in range(3):
            self.bench.clock.move(4)
            for other, leases in self.held.items():
                self.bench.renew(other, *leases)


def innocents_of_random_kills(ground: Ground) -> object:
    """Whether 120 kills of workers quarantine no innocent, and leave nine tenths of the capacity."""
    farm, draw, steps, kills = Farm(ground.bench()), random.Random(4), 0, 0
    while kills < 120:
        farm.step()
        steps += 1
        if draw.random() < 0.25:
            farm.kill(draw.choice(sorted(farm.held)))
            kills += 1
    capacity = steps * farm.workers * farm.slots * farm.STEP_TOKENS
    return farm.bench.queue.depths().dead == 0, farm.served >= 0.9 * capacity


URGENT_TOKENS = 5


def preempted(bench: Bench, lease: Lease) -> Lease:
    """What a worker with one slot gets for the job that it was told to park."""
    (new,) = bench.claim(settle=[Settlement(*lease_key(lease), Settle.PREEMPTED)]).leases
    return new


def batch_job_among_urgent_ones(ground: Ground) -> object:
    """Whether each lease of a batch job on one slot is worth its prefill, where urgent jobs come all the time."""
    bench = ground.bench()
    bench.submit("chat/batch", band=Priority.BATCH)
    lease, offset, quanta = bench.lease(), 0, list[int]()
    for step in range(600):
        if step % 10 == 0:
            bench.submit(f"chat/urgent{step}", band=Priority.INTERACTIVE)
        outcome = bench.append(lease, tokens(offset, offset + 1), full_version="v1")
        offset = outcome.offset
        if outcome.status is LeaseStatus.PREEMPT:
            quanta.append(offset - lease.offset)
            lease = preempted(bench, lease)
            offset = lease.offset
        elif lease.id != "chat/batch" and offset == URGENT_TOKENS:
            bench.finish(lease, offset=offset)
            lease = bench.lease()
            offset = lease.offset
    return len(quanta) > 1, all(made >= 60 for made in quanta)


def slot_that_a_batch_job_gave_up(ground: Ground) -> object:
    """What a worker runs after it parked a batch job for an urgent one, where another worker's slot becomes free just
    then; and how often the batch job was begun."""
    bench = ground.bench()
    bench.submit("chat/batch", band=Priority.BATCH)
    lease = bench.lease("A")
    bench.append(lease, tokens(0, 60))
    bench.submit("chat/urgent", band=Priority.INTERACTIVE)
    assert bench.append(lease, tokens(60, 61), full_version="v1").status is LeaseStatus.PREEMPT
    mine = bench.claim("A", settle=[Settlement(*lease_key(lease), Settle.PREEMPTED)]).leases
    bench.claim("B", version="another")
    mine += bench.claim("A", slots=1 - len(mine)).leases if not mine else ()
    return [lease.id for lease in mine], bench.row("chat/batch").attempt


WITHOUT_PROGRESS = LuaCut(
    "parts/ends.lua",
    "if r[OFFSET] - r[CLAIMED_OFFSET] >= PROGRESS_TOKENS then r[STRIKES] = 0\n  elseif fault",
    "if fault",
)

HOLES = [
    Hole(
        "crashes add up over a job's progress",
        "Q11",
        job_with_progress_over_crashes,
        kept=(JobState.QUEUED, 0),
        broken=(JobState.DEAD, 3),
        cuts=(WITHOUT_PROGRESS,),
    ),
    Hole(
        "a worker that was only slow has its job quarantined",
        "Q11",
        job_of_a_worker_that_was_only_slow,
        kept=(JobState.QUEUED, 0),
        broken=(JobState.DEAD, 3),
        cuts=(LuaCut("parts/ends.lua", "if #all == 0 then return end", "if true then return end"),),
    ),
    Hole(
        "suspects are blamed for each other's crashes",
        "Q11",
        suspects_at_once,
        kept=(1, 0),
        broken=(3, 0),
        cuts=(LuaCut("claim.lua", "if is_suspect(lane) then suspect = id end\n", "\n"),),
    ),
    Hole(
        "idle workers are woken for a suspect that they may not have",
        "Q7",
        wake_tokens_beside_a_running_suspect,
        kept=(0, 1),
        broken=(1, 1),
        cuts=(
            LuaCut(
                "claim.lua", "if has_jobs(lane) and not (suspect and is_suspect(lane)) then", "if has_jobs(lane) then"
            ),
        ),
    ),
    Hole(
        "nobody is woken for the next suspect",
        "Q7",
        wake_tokens_beside_a_running_suspect,
        kept=(0, 1),
        broken=(0, 0),
        cuts=(LuaCut("parts/ends.lua", "if is_suspect(lane) and has_jobs(lane) then wake(lane) end", ""),),
    ),
    Hole(
        "a model's state is never saved again after three crashes",
        "Q11",
        message_of_the_persister_over_crashes,
        kept=JobState.QUEUED,
        broken=JobState.DEAD,
        cuts=(LuaCut("parts/ends.lua", "if why and not background then", "if why then"),),
    ),
    Hole(
        "random kills quarantine innocents and idle most slots",
        "Q11",
        innocents_of_random_kills,
        kept=(True, True),
        broken=(False, False),
        cuts=(
            LuaCut("parts/lanes.lua", "local SUSPECT_STRIKES = 2", "local SUSPECT_STRIKES = 1"),
            WITHOUT_PROGRESS,
        ),
    ),
    Hole(
        "a batch job begins again for every few tokens",
        "Q12",
        batch_job_among_urgent_ones,
        kept=(True, True),
        broken=(True, False),
        cuts=(LuaCut("parts/preemption.lua", "local QUANTUM_TOKENS = 60", "local QUANTUM_TOKENS = 0"),),
    ),
    Hole(
        "a slot is given up for nothing",
        "Q12",
        slot_that_a_batch_job_gave_up,
        kept=(["chat/urgent"], 1),
        broken=(["chat/batch"], 2),
        cuts=(LuaCut("claim.lua", "if slots == 0 or not open", "if slots == 0 or #settled > 0 or not open"),),
    ),
]
