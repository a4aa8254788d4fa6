"""One run under load: producers and readers of a queue, workers that follow an alias, pushes and moves, and kills."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from customers import Customer, Reader, Submitter
from engines import EngineName, Order, orders
from evidence import Answer, JobEvidence, QueueEvidence
from forge import Forge
from gathering import gather_job, gather_queue
from ledger import Ledger
from load_town import LEASE_S, LoadTown
from machine import describe_machine
from models_record import Record, kill_rows
from models_run import Surveys, clear, outcomes_of, storage_of, versions_of
from pins import Named, Pins, counts, misplaced
from raid import Kill, Raid
from storm import Limit
from task_plan import BY_CHANGE_SHARE, PlannedTask, TaskKind, Trigger
from tasks import Tools
from town import MODEL, ChaosError, running_town
from verdict import judge
from weights import ANSWERS, write

from headpond import Client
from headpond.connections import RedisAddress
from headpond.wire import Rewound, unpack_result
from headpond_workers.checkpoints.names import PROD
from headpond_workers.persistence.s3 import S3Blobs
from headpond_workers.supervision.embedded_seaweed import running_seaweed
from headpond_workers.supervision.embedded_valkey import running_valkey

PRODUCERS, READERS, JOBS_EACH = 4, 4, 5
INTERVAL_S = 1.0
"""Between two things that are begun, on average."""
SHARES = {TaskKind.WORKER: 0.45, TaskKind.PUSH: 0.25, TaskKind.PROMOTE: 0.2, TaskKind.ROLLBACK: 0.1}
KILLED_SHARE = 0.4
"""How many pushes and moves are to be killed before they are done."""
SETTLE_TIMEOUT_S = 120.0
LAST_WORD_S = 15.0
CALM_TABLE = (
    '\n[models.{model}]\nengine = "scripted"\npath = "{path}"\nslots = 16\nlease_s = 30\ntokens_per_s = 100000\n'
)


@dataclass(frozen=True, slots=True)
class LoadParameters:
    """moves: of the alias, acknowledged ones, at least; the kills of `limit` beside. rollover: of the model."""

    seed: int
    limit: Limit
    moves: int
    workers: int
    rollover: str
    grace_s: float


@dataclass(frozen=True, slots=True)
class PlannedAct:
    """after_s: since the act before. draw: which worker, and which of its processes."""

    after_s: float
    task: PlannedTask
    draw: float


def plan_acts(seed: int) -> Iterator[PlannedAct]:
    """Acts without end."""
    rng = random.Random(f"load:{seed}")  # noqa: S311 - it has to be repeatable
    kinds, shares = list(SHARES), list(SHARES.values())
    while True:
        after_s = min(rng.expovariate(1 / INTERVAL_S), 4 * INTERVAL_S)
        # The third draw of a ledger's pick: neither a deletion nor a version that is deleted.
        kind, draws = rng.choices(kinds, shares)[0], (rng.random(), rng.random(), 0.6)
        killed, moment, draw = rng.random() < KILLED_SHARE, rng.random(), rng.random()
        trigger = Trigger.CHANGE if rng.random() < BY_CHANGE_SHARE else Trigger.TIME
        yield PlannedAct(after_s, PlannedTask(kind, ANSWERS, 1, draws, moment if killed else None, trigger, 0.0), draw)


def run_load(p: LoadParameters, folder: Path, *, progress: Callable[[str], None]) -> Record:
    """folder: for configuration, data and logs. Raises HeadpondError if the run could not be made."""
    machine = asdict(describe_machine())
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        valkey = stack.enter_context(running_valkey(folder / "server"))
        seaweed = stack.enter_context(running_seaweed(folder / "storage"))
        redis = RedisAddress(valkey.url, "scripts/chaos models")
        tools = Tools(S3Blobs(storage_of(seaweed)), folder / "tasks-cache", 1 << 30, p.grace_s, redis)
        # Forked before this process has a thread.
        forge = stack.enter_context(closing(Forge(tools.perform, log=folder / "processes.log")))
        ledger = Ledger(p.seed)
        raid = stack.enter_context(closing(Raid(seaweed, forge, ledger, folder / "tasks", progress)))
        (folder / "town").mkdir(mode=0o700)
        town = stack.enter_context(
            closing(
                LoadTown(
                    valkey, seaweed, folder / "town", workers=p.workers, rollover=p.rollover,
                    source=f"s3:{ANSWERS}@{PROD}",
                )
            )
        )  # fmt: skip
        town.start_persister()
        _begin(raid, town)
        load = _Load(raid, town, stack.enter_context(Client(valkey.url)), p)
        progress(f"seed {p.seed}: {p.workers} workers serve version 1, rollover {p.rollover}")
        load.rage(plan_acts(p.seed))
        seconds = raid.seconds
        progress(f"the load is over: {raid.told()}, {load.moves} moves")
        jobs, answered, queue = load.settle()
        ordered = load.ordered()
        readings = [one for reader in load.readers for one in (*reader.readings, *reader.unfinished())]
        workers = town.evidence()
        surveys = Surveys(S3Blobs(storage_of(seaweed)), (ANSWERS,))
        surveys.take(raid, last=False)
        clear(raid, surveys, p.grace_s)
        last = surveys.take(raid, last=True)
    calm, strange = _calm_answers(folder / "calm", ledger, ordered, answered, progress=progress)
    wrong = [
        *raid.wrong, *ledger.wrong, *surveys.wrong, *strange, *misplaced(ordered, answered),
        *map(str, judge(jobs, readings, queue, workers, calm)),
    ]  # fmt: skip
    progress(f"{len(wrong) or 'nothing'} wrong; {len(jobs)} jobs from {len(set(answered.values()))} versions")
    return Record(
        seed=p.seed,
        parameters={
            "kills": p.limit.kills, "seconds": p.limit.seconds, "grace_s": p.grace_s, "moves": p.moves,
            "workers": p.workers, "rollover": p.rollover, "producers": PRODUCERS,
        },
        started=started,
        seconds=round(seconds, 1),
        machine=machine,
        kills=kill_rows(raid.kills),
        outcomes=outcomes_of(raid),
        usual_s={kind.value: round(length, 3) for kind, length in raid.usual_s.items()},
        left=surveys.told(),
        surveys=surveys.rows,
        versions=versions_of(ledger, last),
        wrong=wrong,
        jobs={
            "submitted": len(jobs),
            "not_finished": sum(job.answer is None for job in jobs),
            "versions": len(set(answered.values())),
            "began_anew": sum(any(isinstance(event, Rewound) for event in job.events) for job in jobs),
            "most_leases": max((job.attempts for job in jobs), default=0),
            **counts(ordered, load.pinned_old),
            "moves": load.moves,
            "workers_started": town.started,
        },
    )  # fmt: skip


def _begin(raid: Raid, town: LoadTown) -> None:
    """The first version, named by the alias, and served. Raises ChaosError."""
    for kind in (TaskKind.PUSH, TaskKind.PROMOTE):
        told = raid.do(_order(raid.ledger, PlannedTask(kind, ANSWERS, 1, (0.9, 0.0, 0.6), None, Trigger.TIME, 0.0)))
        if told is None or told["word"] != "done":
            raise ChaosError(f"The first {kind} did not succeed: {told}")
    town.all_serve("1")


def _order(ledger: Ledger, task: PlannedTask) -> dict[str, object]:
    order = ledger.order(task)
    if "alias" in order:
        order["alias"] = PROD
    return order


class _Load:
    """Those who use the queue, and what is done meanwhile."""

    def __init__(self, raid: Raid, town: LoadTown, client: Client, p: LoadParameters) -> None:
        self._raid, self._town, self._p = raid, town, p
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
            if act.task.kind is TaskKind.WORKER:
                self._kill_worker(act.draw)
            else:
                raid.start(_order(raid.ledger, act.task), act.task.killed_at, act.task.trigger)
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


def _orders_of(seed: int, producer: int) -> Iterator[Order]:
    """Jobs of one producer, without end."""
    for order in orders(seed * PRODUCERS + producer, EngineName.SCRIPTED, model=MODEL):
        yield replace(order, id=f"{MODEL}/p{producer}-{order.id.rpartition('/')[2]}")


def _calm_answers(
    folder: Path,
    ledger: Ledger,
    ordered: dict[str, Order],
    answered: dict[str, str],
    *,
    progress: Callable[[str], None],
) -> tuple[dict[str, Answer], list[str]]:
    """What each job's version alone answers, in a deployment in which nothing goes wrong; and what is strange about the
    versions themselves."""
    found: dict[str, Answer] = {}
    strange = []
    folder.mkdir(mode=0o700)
    for version, count in sorted(Counter(answered.values()).items()):
        push = ledger.acknowledged.get((ANSWERS, int(version))) if version.isdigit() else None
        if push is None:
            strange.append(f"{count} jobs were answered by version {version!r}, which nobody was told of")
            continue
        write(ledger.recipes[push], folder / f"files-{version}")
        table = CALM_TABLE.format(model=MODEL, path=folder / f"files-{version}")
        wanted = [ordered[job_id] for job_id, by in answered.items() if by == version]
        progress(f"{len(wanted)} jobs of version {version} once more, undisturbed")
        with running_town(folder / f"town-{version}", table, workers=1) as town, Client(town.valkey.url) as client:
            jobs = [
                client.submit(MODEL, o.prompt, id=o.id, max_tokens=o.max_tokens, temperature=o.temperature)
                for o in wanted
            ]
            for job in jobs:
                result = job.result(timeout=SETTLE_TIMEOUT_S)
                found[job.id] = Answer(result.token_ids, result.text)
    return found, strange
