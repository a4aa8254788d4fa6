"""One run with storage, from its first process to its verdict."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path

from calm import undisturbed_answers
from customers import Customer
from engines import EngineName
from evidence import JobEvidence, QueueEvidence, Reading
from fold_rules import compare, missing
from forge import Forge
from gathering import gather_queue
from losing import Losing
from machine import describe_machine
from programs import perform
from record import reading_counts
from redis_image import read_image
from session_rules import judge_session
from state_customers import Losses, PatientReader, Producer
from state_plan import plan_blows
from state_record import Record, blow_rows, job_counts
from state_storm import StateStorm, idle_outages
from state_town import LEASE_S, StateTown
from storm import Limit
from town import MODEL, ChaosError
from verdict import judge

from headpond import Client
from headpond.errors import RedisUnavailable, SessionError
from headpond_workers.supervision.embedded_seaweed import running_seaweed
from headpond_workers.supervision.embedded_valkey import running_valkey

PERSISTERS, READERS, JOBS_EACH = 2, 4, 6
PRODUCERS = 4
DURABLE = (0, 2)
"""Which of the producers wait for storage with each submit."""
TALKING = (1, 2)
"""Which of them have conversations, a session after the other."""
QUIET_TIMEOUT_S = 120.0
END_TIMEOUT_S = 180.0
LAST_WORD_S = 15.0
IDLE_S = 10.0
"""An outage of storage of this length, in which no job ends, is one that generation waited for."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """losses: how often all of Redis is lost. interval_s: mean time between two blows."""

    seed: int
    limit: Limit
    losses: int
    workers: int
    interval_s: float


def run(p: Parameters, folder: Path, *, progress: Callable[[str], None]) -> Record:
    """folder: for configuration, data and logs. Raises HeadpondError if the run could not be made."""
    machine = asdict(describe_machine())
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        # Forked before this process has a thread.
        forge = stack.enter_context(closing(Forge(perform, log=folder / "processes.log")))
        valkey = stack.enter_context(running_valkey(folder / "server"))
        seaweed = stack.enter_context(running_seaweed(folder / "storage"))
        (folder / "town").mkdir(mode=0o700)
        town = stack.enter_context(
            closing(StateTown(valkey, seaweed, forge, folder / "town", workers=p.workers, persisters=PERSISTERS))
        )
        client = stack.enter_context(Client(valkey.url))
        acts = _Run(p, town, client, folder, progress)
        progress(f"seed {p.seed}: {p.workers} workers and {PERSISTERS} persisters are ready")
        acts.rage()
        seconds = acts.storm.seconds
        progress(f"the storm is over: {acts.storm.told()}")
        jobs, queue = acts.settle()
        readings = acts.readings()
        workers = town.evidence()
    orders = [order for producer in acts.producers for order in producer.orders.values()]
    calm = undisturbed_answers(folder / "calm", EngineName.SCRIPTED, orders, progress=progress)
    wrong = [
        *acts.wrong, *acts.losing.wrong, *acts.losing.judge_readers(), *town.told_by_persisters(),
        *idle_outages(acts.storm.outages, least_s=IDLE_S),
        *map(str, judge(jobs, readings, queue, workers, calm)),
    ]  # fmt: skip
    progress(f"{len(wrong) or 'nothing'} wrong; {len(jobs)} jobs, {len(readings)} readings")
    return Record(
        seed=p.seed,
        parameters={
            "kills": p.limit.kills, "seconds": p.limit.seconds, "losses": p.losses, "workers": p.workers,
            "persisters": PERSISTERS, "producers": PRODUCERS, "durable_producers": len(DURABLE),
            "durable_talking_producers": len({*DURABLE} & {*TALKING}), "interval_s": p.interval_s,
            "lease_s": LEASE_S,
        },
        started=started,
        seconds=round(seconds, 1),
        machine=machine,
        blows=blow_rows(acts.storm.blows),
        outages=acts.storm.outages,
        comparisons=acts.comparisons,
        losses=acts.losing.rows,
        jobs={**job_counts(jobs, acts.producers, calm), "turns": acts.turns},
        readings={**reading_counts(readings), "resumed": sum(reader.resumed for reader in acts.readers)},
        processes=town.started,
        wrong=wrong,
    )  # fmt: skip


class _Run:
    """Those who use the queue, and what is done meanwhile. comparisons: rows as in the record."""

    def __init__(
        self, p: Parameters, town: StateTown, client: Client, folder: Path, progress: Callable[[str], None]
    ) -> None:
        """Raises ChaosError if the town does not become ready."""
        self._p, self._town, self._client, self._progress = p, town, client, progress
        town.all_ready()
        told = Losses()
        self.producers = [
            Producer(
                client, town.queue, told, seed=p.seed, number=number, durable=number in DURABLE,
                talks=number in TALKING, in_flight=JOBS_EACH,
            )
            for number in range(PRODUCERS)
        ]  # fmt: skip
        self.readers = [
            PatientReader(client, self.producers[number % PRODUCERS], told, seed=p.seed, number=number)
            for number in range(READERS)
        ]
        self.storm = StateStorm(
            town, plan_blows(p.seed, interval_s=p.interval_s), self._check,
            lambda: sum(len(producer.ended) for producer in self.producers), progress,
        )  # fmt: skip
        rng = random.Random(f"losses:{p.seed}")  # noqa: S311 - it has to be repeatable
        self.losing = Losing(town, self.storm, self.producers, self.readers, told, folder, rng)
        self.comparisons: list[list[float]] = []
        self.wrong: list[str] = []
        self.turns = 0
        """Commits of sessions that were judged."""
        for customer in self._customers:
            customer.start()

    @property
    def _customers(self) -> Sequence[Customer]:
        return (*self.producers, *self.readers)

    def _check(self) -> None:
        for customer in self._customers:
            customer.check()

    def rage(self) -> None:
        """In as many parts as there are losses, and one more. In the middle of each all is compared amid quiet; after
        each but the last, Redis is lost. Raises HeadpondError if the run cannot go on."""
        parts = 2 * (self._p.losses + 1)
        for part in range(1, parts + 1):
            self.storm.rage(_share(self._p.limit, part, parts))
            if part % 2:
                self._be_quiet()
            elif part < parts:
                self.losing.lose()
        self.storm.close()

    def _be_quiet(self) -> None:
        """Nobody submits, workers leave and park what they run, and once all is committed storage is compared."""
        self.storm.end_outage()
        for producer in self.producers:
            producer.paused.set()
        until = time.monotonic() + QUIET_TIMEOUT_S
        while not all(producer.resting.is_set() for producer in self.producers):
            self._wait(until, "producers that rest")
        # One that starts has not heard of SIGTERM yet.
        self._town.all_ready()
        self._town.workers_wanted = False
        self._town.drain(self._town.workers)
        self._compare(until)
        self._town.workers_wanted = True
        for producer in self.producers:
            producer.paused.clear()

    def _compare(self, until: float) -> None:
        """Storage and Redis, once nobody works any more and the journal is empty."""
        town = self._town
        while not self._is_still():
            self._wait(until, "an empty journal")
        image = read_image(town.queue)
        head = town.store.read_head()
        if head is None:
            raise ChaosError("Storage has no head of a model that was committed.")
        number = len(self.comparisons) + 1
        self.wrong += (f"comparison {number}: {what}" for what in compare(town.store.items(head.head), image))
        known = [job_id for producer in self.producers for job_id in producer.known()]
        self.wrong += (f"comparison {number}: {what}" for what in missing(known, image))
        not_ended = sum(not job.row.state.ended for job in image.jobs.values())
        partial = sum(not job.row.state.ended and bool(job.ids) for job in image.jobs.values())
        self.comparisons.append(
            [round(self.storm.seconds, 1), len(image.jobs), not_ended, partial, head.head.seq, head.head.snapshot_seq]
        )
        self._progress(f"comparison {number}: {len(image.jobs)} jobs, {not_ended} of them not ended")

    def _is_still(self) -> bool:
        try:
            queue = self._town.queue
            left = queue.journal_length() or queue.leased() or queue.storage_trouble() is not None
            return queue.meta().get("state") == "open" and not left
        except RedisUnavailable:
            return False

    def _wait(self, until: float, what: str) -> None:
        """A moment of waiting, in which all is tended. Raises ChaosError once it is too late."""
        self.storm.tend()
        if time.monotonic() >= until:
            raise ChaosError(f"There were no {what} within {QUIET_TIMEOUT_S:g} s.")
        time.sleep(0.05)

    # ---- the end

    def settle(self) -> tuple[list[JobEvidence], QueueEvidence]:
        """Let all come to their end: every job and every reading; then compare once more."""
        town = self._town
        for customer in self._customers:
            customer.leaving.set()
        town.all_ready()
        until = time.monotonic() + END_TIMEOUT_S
        for producer in self.producers:
            while producer.is_alive() and time.monotonic() < until:
                self.storm.tend()
                time.sleep(0.05)
        while any(producer.open for producer in self.producers) and time.monotonic() < until:
            self.storm.tend()
            for producer in self.producers:
                producer.await_ends(0.1)
        last = time.monotonic() + LAST_WORD_S
        for reader in self.readers:
            reader.join(max(0.0, last - time.monotonic()))
        queue = gather_queue(town.queue)
        still_by = time.monotonic() + 3 * LEASE_S
        while (queue.waiting or queue.leased or queue.held) and time.monotonic() < still_by:
            time.sleep(0.1)
            queue = gather_queue(town.queue)
        town.workers_wanted = False
        town.drain(town.workers)
        self._compare(time.monotonic() + QUIET_TIMEOUT_S)
        jobs = [producer.evidence(job_id) for producer in self.producers for job_id in producer.orders]
        self._judge_sessions(jobs)
        # The queue's counters began anew with the last restore.
        counts = Counter(gather_queue(town.queue).counts) + self.losing.ended_before
        town.drain(town.persisters)
        return jobs, QueueEvidence(counts, queue.waiting, queue.leased, queue.held)

    def _judge_sessions(self, jobs: Sequence[JobEvidence]) -> None:
        answers = {job.id: job.answer.text for job in jobs if job.answer is not None}
        turns: dict[str, list[str]] = {}
        for producer in self.producers:
            for order in producer.orders.values():
                if order.session is not None:
                    turns.setdefault(order.session, []).append(order.id)
        for name, ids in turns.items():
            try:
                chain = self._client.session(name, model=MODEL).commits()
            except SessionError as error:
                self.wrong.append(f"session {name} has no chain: {error}")
                continue
            self.turns += len(chain)
            self.wrong += judge_session(name, chain, ids, answers)

    def readings(self) -> list[Reading]:
        """But those of jobs that were lost with a Redis."""
        lost = {job_id for producer in self.producers for job_id in producer.lost}
        return [
            one
            for reader in self.readers
            for one in (*reader.readings, *reader.unfinished())
            if one.id not in lost
        ]  # fmt: skip


def _share(limit: Limit, part: int, parts: int) -> Limit:
    """Up to the end of this part."""
    kills = None if limit.kills is None else -(-limit.kills * part // parts)
    return Limit(kills, None if limit.seconds is None else limit.seconds * part / parts)
