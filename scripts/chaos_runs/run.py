"""One run from its first process to its verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from calm import undisturbed_answers
from customers import Reader, Submitter, tokens_of
from engines import SOURCE, EngineName, model_table, orders
from evidence import Answer, JobEvidence, QueueEvidence, Reading
from faults import FaultKind, plan_faults
from gathering import gather_job, gather_queue
from machine import describe_machine
from record import Record, fault_rows, job_rows, reading_counts
from storm import Limit, Storm
from town import MODEL, Town, running_town
from verdict import judge

from headpond import Client
from headpond_workers.models.prepare import prepare

END_TIMEOUT_S = 90.0
"""From the last fault to the end of all jobs. A job may wait for half a minute in a lane of its own."""
LAST_WORD_S = 15.0
"""From the end of all jobs to that of all readings: far more than a reader blocks."""
SETTLE_LEASES = 3.0


@dataclass(frozen=True, slots=True)
class Parameters:
    """jobs: kept waiting or running. interval_s: mean time between two faults."""

    engine: EngineName
    seed: int
    workers: int
    slots: int
    jobs: int
    lease_s: float
    interval_s: float
    tokens_per_s: float
    readers: int
    kinds: tuple[FaultKind, ...]
    limit: Limit


@dataclass(frozen=True, slots=True)
class _Evidence:
    jobs: list[JobEvidence]
    readings: list[Reading]
    queue: QueueEvidence


def run(parameters: Parameters, folder: Path, *, progress: Callable[[str], None]) -> Record:
    """folder: for configuration, logs and data. Raises HeadpondError if the run could not be made."""
    machine = asdict(describe_machine())
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    p = parameters
    if p.engine is not EngineName.SCRIPTED:
        prepare(SOURCE, progress=lambda *_: None)
    table = model_table(p.engine, MODEL, slots=p.slots, lease_s=p.lease_s, tokens_per_s=p.tokens_per_s)
    with running_town(folder / "storm", table, workers=p.workers) as town, ExitStack() as stack:
        client = stack.enter_context(Client(town.valkey.url))
        submitter = Submitter(client, town.queue, orders(p.seed, p.engine, model=MODEL), in_flight=p.jobs)
        readers = [Reader(client, submitter, seed=p.seed, number=n) for n in range(p.readers)]
        customers = [submitter, *readers]
        for customer in customers:
            customer.start()

        def check() -> None:
            for customer in customers:
                customer.check()

        progress(f"seed {p.seed}: {p.workers} workers of {p.slots} slots are ready")
        storm = Storm(town, p.lease_s, check, lambda: len(submitter.ended), progress)
        storm.rage(plan_faults(p.seed, p.kinds, workers=p.workers, interval_s=p.interval_s), p.limit)
        seconds = storm.seconds
        progress(f"the storm is over: {storm.told()}")
        evidence = _settle(town, submitter, readers, lease_s=p.lease_s)
        check()
        workers = town.evidence()
        ordered = list(submitter.orders.values())
        progress(f"all quiet: {len(submitter.ended)} jobs, {tokens_of(submitter.ended)} tokens")
    undisturbed: Mapping[str, Answer] | None = None
    if p.engine.same_tokens:
        undisturbed = undisturbed_answers(folder / "calm", p.engine, ordered, progress=progress)
    wrong = judge(evidence.jobs, evidence.readings, evidence.queue, workers, undisturbed)
    most = max(submitter.strikes.values(), default=0)
    progress(
        f"{len(wrong) or 'nothing'} wrong; {len(evidence.readings)} readings; at most {most} strikes; {storm.spared} "
        "workers spared"
    )
    return Record(
        engine=p.engine.value,
        seed=p.seed,
        parameters={
            "workers": p.workers, "slots": p.slots, "jobs": p.jobs, "lease_s": p.lease_s, "interval_s": p.interval_s,
            "tokens_per_s": p.tokens_per_s, "readers": p.readers, "kinds": [kind.value for kind in p.kinds],
            "kills": p.limit.kills, "seconds": p.limit.seconds,
        },
        started=started,
        seconds=round(seconds, 1),
        machine=machine,
        spared=storm.spared,
        faults=fault_rows(storm.faults),
        jobs=job_rows(evidence.jobs, submitter.strikes, wrong),
        readings=reading_counts(evidence.readings),
        undisturbed=len(undisturbed) if undisturbed is not None else 0,
        workers_started=town.started,
        wrong=[str(found) for found in wrong],
    )  # fmt: skip


def _settle(town: Town, submitter: Submitter, readers: list[Reader], *, lease_s: float) -> _Evidence:
    """Let all jobs and readings come to their end, then read what there is."""
    for customer in (submitter, *readers):
        customer.leaving.set()
    town.all_ready()
    until = time.monotonic() + END_TIMEOUT_S
    submitter.join(END_TIMEOUT_S)
    submitter.await_ends(until - time.monotonic())
    until = time.monotonic() + LAST_WORD_S
    for reader in readers:
        reader.join(max(0.0, until - time.monotonic()))
    # A zombie's last words, and the leases that it does not name any more.
    until = time.monotonic() + SETTLE_LEASES * lease_s
    queue = gather_queue(town.queue)
    while (queue.waiting or queue.leased or queue.held) and time.monotonic() < until:
        time.sleep(0.1)
        queue = gather_queue(town.queue)
    town.drain()
    jobs = [_latest(submitter.ended.get(i), gather_job(town.queue, i)) for i in submitter.orders]
    # The queue's counters are read after the jobs, when nobody is left who could end one.
    last = gather_queue(town.queue)
    queue = QueueEvidence(last.counts, queue.waiting, queue.leased, queue.held)
    return _Evidence(jobs, [one for reader in readers for one in (*reader.readings, *reader.unfinished())], queue)


def _latest(early: JobEvidence | None, late: JobEvidence) -> JobEvidence:
    """late; with the stream as it was seen first, if the queue has folded it into the result since."""
    if early is None or late.events or late.state is None:
        return late
    return JobEvidence(
        late.id, late.state, late.attempts, late.strikes, late.reason, late.answer or early.answer, early.events
    )
