"""A queue under load: its producers and readers, and meanwhile the pushes, moves and kills of a plan."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from customers import Customer, Reader, Submitter
from engines import EngineName, Order, orders
from evidence import JobEvidence, QueueEvidence
from gathering import gather_job, gather_queue
from ledger import Ledger
from load_plan import PlannedAct
from load_town import LEASE_S, LoadTown
from pins import Named, Pins
from raid import Kill, Raid
from storm import Limit
from task_plan import PlannedTask, TaskKind
from town import MODEL, ChaosError

from headpond import Client
from headpond.wire import unpack_result
from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.names import PROD

PRODUCERS, READERS, JOBS_EACH = 4, 4, 5
SETTLE_TIMEOUT_S = 120.0
LAST_WORD_S = 15.0


@dataclass(frozen=True, slots=True)
class LoadParameters:
    """moves: of the alias, acknowledged ones, at least; the kills of `limit` beside. rollover: of the model."""

    seed: int
    limit: Limit
    moves: int
    workers: int
    rollover: str
    grace_s: float


class Load:
    """Those who use the queue, and what is done meanwhile."""

    def __init__(self, raid: Raid, town: LoadTown, client: Client, aliases: Aliases, p: LoadParameters) -> None:
        """aliases: of the model in storage."""
        self._raid, self._town, self._aliases, self._p = raid, town, aliases, p
        self._pins = [
            Pins(_orders_of(p.seed, number), self._named, seed=f"{p.seed}:{number}") for number in range(PRODUCERS)
        ]
        self.submitters = [Submitter(client, town.queue, pins, in_flight=JOBS_EACH) for pins in self._pins]
        self.readers = [
            Reader(client, self.submitters[number % PRODUCERS], seed=p.seed, number=number) for number in range(READERS)
        ]
        for customer in self._customers:
            customer.start()

    @property
    def _customers(self) -> Sequence[Customer]:
        return (*self.submitters, *self.readers)

    @property
    def moves(self) -> int:
        """Acknowledged ones, without the first."""
        return max(0, sum(map(len, self._raid.ledger.moves.values())) - 1)

    def ordered(self) -> dict[str, Order]:
        return {job_id: order for submitter in self.submitters for job_id, order in submitter.orders.items()}

    @property
    def pinned_old(self) -> set[str]:
        """Jobs for a version that the alias no longer named when they were submitted."""
        return {job_id for pins in self._pins for job_id in pins.old}

    def _named(self) -> Named:
        """By the queue's copy of the alias, as the workers see it. Raises ChaosError without one."""
        switch = self._town.queue.read_switch()
        if switch is None:
            raise ChaosError("The queue knows of no alias.")
        return Named(switch.target, switch.previous)

    def rage(self, plan: Iterator[PlannedAct]) -> None:
        """Raises HeadpondError if the run cannot go on."""
        raid, limit = self._raid, self._p.limit
        due_s = raid.seconds
        while self.moves < self._p.moves or not limit.reached(raid.counted, raid.seconds):
            act = next(plan)
            due_s = max(due_s + act.after_s, raid.seconds)
            self._tend(until_s=due_s)
            match act.task.kind:
                case TaskKind.WORKER:
                    self._kill_worker(act.draw)
                case TaskKind.PERSISTER:
                    self._kill_persister()
                case TaskKind.SERVER:
                    self._kill_storage(act.task)
                case _:
                    raid.start(order_of(raid.ledger, act.task), act.task.killed_at, act.task.trigger)
        raid.settle()

    def _tend(self, *, until_s: float) -> None:
        while True:
            self._town.tend()
            for customer in self._customers:
                customer.check()
            left_s = until_s - self._raid.seconds
            if left_s <= 0:
                return
            self._raid.tend(at_most_s=min(0.02, left_s))

    def _kill_worker(self, draw: float) -> None:
        places = self._town.places
        turn = int(draw * len(places))
        place = next((p for p in (*places[turn:], *places[:turn]) if self._town.may_be_hit(p)), None)
        if place is None:
            return
        at_s = self._raid.seconds
        hit = self._town.kill_worker(place, (draw * len(places)) % 1)
        self._raid.kills.append(Kill(at_s, TaskKind.WORKER, MODEL, 0.0, at_s, hit.jobs + hit.changing))

    def _kill_persister(self) -> None:
        at_s = self._raid.seconds
        waiting = self._town.kill_persister()
        if waiting is not None:
            self._raid.kills.append(Kill(at_s, TaskKind.PERSISTER, MODEL, 0.0, at_s, min(1, waiting)))

    def _kill_storage(self, task: PlannedTask) -> None:
        """Amid a move of the alias, whose process is left to find that out."""
        move = self._raid.start(order_of(self._raid.ledger, replace(task, kind=TaskKind.PROMOTE)), None)
        self._raid.await_begun(move)
        self._raid.kill_server(task.away_s)

    def _await_copy(self) -> None:
        """Until the queue knows of every move that storage has: the last one may have been cut off between the two.
        Raises ChaosError."""
        until = time.monotonic() + SETTLE_TIMEOUT_S
        while time.monotonic() < until:
            at, switch = self._aliases.get(PROD), self._town.queue.read_switch()
            if at is not None and switch is not None and switch.seq >= at.document.seq:
                return
            self._tend(until_s=self._raid.seconds + 0.1)
        raise ChaosError(f"The queue has not heard of the last move after {SETTLE_TIMEOUT_S:g} s.")

    def settle(self) -> tuple[list[JobEvidence], dict[str, str], QueueEvidence]:
        """Let all come to their end: every job, every reading, and every worker on what the alias names. Returns the
        jobs, the version that answered each, and what the queue still holds."""
        for customer in self._customers:
            customer.leaving.set()
        until = time.monotonic() + SETTLE_TIMEOUT_S
        for submitter in self.submitters:
            while submitter.is_alive() and time.monotonic() < until:
                self._tend(until_s=self._raid.seconds + 0.1)
        while any(submitter.open for submitter in self.submitters) and time.monotonic() < until:
            self._tend(until_s=self._raid.seconds + 0.1)
            for submitter in self.submitters:
                submitter.await_ends(0.1)
        last = time.monotonic() + LAST_WORD_S
        for reader in self.readers:
            reader.join(max(0.0, last - time.monotonic()))
        self._await_copy()
        named = self._town.queue.read_switch()
        self._town.all_serve("" if named is None else named.target)
        queue = gather_queue(self._town.queue)
        until = time.monotonic() + 3 * LEASE_S
        while (queue.waiting or queue.leased or queue.held) and time.monotonic() < until:
            time.sleep(0.1)
            queue = gather_queue(self._town.queue)
        answered = {job_id: version for job_id in self.ordered() if (version := self._version_of(job_id))}
        self._town.drain()
        found = [self._latest(submitter, job_id) for submitter in self.submitters for job_id in submitter.orders]
        counts = gather_queue(self._town.queue).counts
        return found, answered, replace(queue, counts=counts)

    def _latest(self, submitter: Submitter, job_id: str) -> JobEvidence:
        """As it is now; with the stream as it was seen first, if the queue has folded it into the result since."""
        early, late = submitter.ended.get(job_id), gather_job(self._town.queue, job_id)
        return late if early is None or late.events or late.state is None else replace(late, events=early.events)

    def _version_of(self, job_id: str) -> str:
        document = self._town.queue.result(job_id)
        return "" if document is None else unpack_result(document, durable=False).version


def order_of(ledger: Ledger, task: PlannedTask) -> dict[str, object]:
    order = ledger.order(task)
    if "alias" in order:
        order["alias"] = PROD
    return order


def _orders_of(seed: int, producer: int) -> Iterator[Order]:
    """Jobs of one producer, without end."""
    for order in orders(seed * PRODUCERS + producer, EngineName.SCRIPTED, model=MODEL):
        yield replace(order, id=f"{MODEL}/p{producer}-{order.id.rpartition('/')[2]}")
