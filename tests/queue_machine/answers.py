"""What each call must answer, and what is true after it. Claims have a file of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headpond.jobs import JobState
from headpond.operations import OWN_LANE, Append, Entry, LeaseStatus, Operation, Outcome, Settle, Submitted
from headpond.upkeep import DeadAnswer, Depths
from headpond.wire import unpack, unpack_raw
from queue_machine.jobs import TrueJob
from queue_machine.model import LEASE_MS, STREAM_RETENTION_MS, Model
from queue_machine.sessions import commit_of
from queue_machine.snapshot import Snapshot
from queue_machine.sweeping import forgive, sweep

QUANTUM_TOKENS = 60
BANDS = ("interactive", "normal", "batch")


def submit(model: Model, entries: Sequence[Entry], max_queued: int, now_ms: int) -> list[Submitted]:
    waiting = sum(job.state in (JobState.QUEUED, JobState.DELAYED) for job in model.jobs.values())
    answers, new = [], []
    known = {job.id: job.entry for job in model.jobs.values()}
    for entry in entries:
        first = known.get(entry.id)
        if first is not None:
            same = (first.digest, first.tenant) == (entry.digest, entry.tenant)
            answers.append(Submitted.KNOWN if same else Submitted.CONFLICT)
        elif 0 < max_queued <= waiting:
            answers.append(Submitted.FULL)
        else:
            answers.append(Submitted.NEW)
            known[entry.id] = entry
            waiting += 1
            new.append(entry)
    jobs = [TrueJob(entry, model.new_serial(), now_ms) for entry in new]
    for entry, job in zip(new, jobs, strict=True):
        model.jobs[entry.id] = job
        if entry.session:
            model.server.turns += 1
            job.turn = model.server.turns
        # Not queued before it has its turn: see Model.begin_to_wait.
        job.state = JobState.DELAYED
    model.begin_to_wait([job for job in jobs if not job.entry.delay_s], now_ms)
    for entry, job in zip(new, jobs, strict=True):
        if entry.pinned:
            # Also where it is delayed: see Model.begin_to_wait.
            model.server.fairness.shares[job.band].unsettle(entry.tenant)
        model.write_journal("submit", entry.id)
    return answers


def waits_for_storage(model: Model, operation: Operation[Any]) -> bool:
    """Whether a call has to wait while storage may know more than the server: whatever ends a job, or may."""
    args = operation.args
    if operation.script == "claim":
        settled = unpack_raw(args[0], kind="claim arguments")[12::5] if isinstance(args[0], bytes) else []
        return any(what.decode() not in (Settle.PARKED, Settle.PREEMPTED) for what in settled)
    if operation.script == "cancel":
        job = model.jobs.get(str(args[0]))
        return job is not None and not job.state.ended
    if operation.script == "dead":
        job = model.jobs.get(str(args[1]))
        return args[0] == "drop" and job is not None and job.state is JobState.DEAD
    if operation.script == "unregister":
        return args[1] == "killed"
    return operation.script in ("finish", "fsck") or (operation.script == "park" and args[0] == "failed")


def preempted(model: Model, job: TrueJob, version: str, after: Snapshot, *, told: bool) -> bool:
    """Whether PREEMPT is the answer (Q12). told: whether it was; that is right where more jobs could make room than
    interactive ones wait, and wrong where fewer were told."""
    if not version or job.band != "batch" or job.offset - job.claimed_offset < QUANTUM_TOKENS:
        return False
    lanes = (version[1:],) if version.startswith(OWN_LANE) else ("any", version)
    waiting = sum(other.band == "interactive" and other.lane in lanes for other in model.queued())
    if waiting and told:
        model.reached["told to park"] += 1
    return told and waiting > 0 if len(after.zset("preempts")) >= waiting else True


def append(
    model: Model, batch: Sequence[Append], full_version: str, told: Sequence[Outcome], after: Snapshot
) -> list[Outcome]:
    """told: the server's answers; see `preempted`."""
    answers = []
    for each, answer in zip(batch, told, strict=True):
        job = model.jobs.get(each.id)
        refused = job.refusal(each.fence) if job else LeaseStatus.FENCED
        if job is None or refused is not None:
            fenced = refused in (None, LeaseStatus.FENCED)
            answers.append(Outcome(refused or LeaseStatus.FENCED, 0 if fenced or job is None else job.offset))
            continue
        if each.tokens.offset > job.offset:
            answers.append(Outcome(LeaseStatus.GAP, job.offset))
            model.reached["gap"] += 1
            continue
        job.tokens += each.tokens.ids[job.offset - each.tokens.offset :]
        yields = preempted(model, job, full_version, after, told=answer.status is LeaseStatus.PREEMPT)
        answers.append(Outcome(LeaseStatus.PREEMPT if yields else LeaseStatus.APPENDED, job.offset))
    return answers


def finish(
    model: Model,
    job_id: str,
    fence: str,
    offset: int,
    state: JobState,
    result: bytes,
    now_ms: int,
    *,
    turn: bool = False,
    stale: bool = False,
) -> LeaseStatus:
    """turn: it adds to its session. stale: the worker saw another head than that has."""
    job = model.jobs.get(job_id)
    if job is None:
        return LeaseStatus.FENCED
    if job.fence == fence and job.state in (JobState.FINISHED, JobState.FAILED):
        return LeaseStatus.DONE
    refused = job.refusal(fence)
    if refused is not None:
        return refused
    if offset != job.offset:
        return LeaseStatus.GAP
    if turn and stale:
        model.reached["turn on another head"] += 1
        job.tokens = []
        model.take_back(job, now_ms)
        return LeaseStatus.FENCED
    if result:
        assert unpack(result, kind="result") == job.tokens, f"a worker's tokens of {job_id} are not those of its stream"
        job.result, job.stream_until_ms = result, now_ms + STREAM_RETENTION_MS
    model.note_outcome(job, state)
    model.end(job, state, now_ms, commit=commit_of(fence) if turn else "")
    model.finished.append(job.claimed_ms)
    return LeaseStatus.DONE


def park(model: Model, job_id: str, fence: str, now_ms: int, *, fault: bool) -> LeaseStatus:
    job = model.jobs.get(job_id)
    if job is None:
        return LeaseStatus.FENCED
    refused = job.refusal(fence)
    if refused is None:
        job.parked = fence
        model.take_back(job, now_ms, fault=fault)
        return LeaseStatus.PARKED
    return LeaseStatus.PARKED if fence and job.parked == fence else refused


def cancel(model: Model, job_id: str, now_ms: int) -> JobState | None:
    job = model.jobs.get(job_id)
    if job is None:
        return None
    if not job.state.ended:
        model.end(job, JobState.CANCELLED, now_ms)
    return job.state


def renew(
    model: Model,
    boot: str,
    *,
    last_seq: int,
    pairs: Sequence[tuple[str, str]],
    full_version: str,
    told: Sequence[LeaseStatus],
    now_ms: int,
    before: Snapshot,
    after: Snapshot,
) -> list[LeaseStatus]:
    forgive(model, boot, now_ms)
    sweep(model, now_ms, before, after, speaker=boot, renews=True)
    model.server.graced = False
    named = set(pairs)
    for job in model.running():
        if job.boot == boot and job.seq <= last_seq and (job.id, job.fence) not in named:
            model.take_back(job, now_ms)
    answers = []
    for (job_id, fence), answer in zip(pairs, told, strict=True):
        named_job = model.jobs.get(job_id)
        refused = named_job.refusal(fence) if named_job else LeaseStatus.FENCED
        if named_job is not None and refused is None:
            named_job.lease_end_ms = now_ms + LEASE_MS
            yields = preempted(model, named_job, full_version, after, told=answer is LeaseStatus.PREEMPT)
            answers.append(LeaseStatus.PREEMPT if yields else LeaseStatus.OK)
        else:
            answers.append(refused or LeaseStatus.FENCED)
    return answers


def unregister(model: Model, boot: str, now_ms: int, *, killed: bool = False) -> None:
    if not killed:
        forgive(model, boot, now_ms)
    for job in model.running():
        if job.boot == boot:
            model.take_back(job, now_ms, fault=killed, silent=killed)
    model.server.seqs.pop(boot, None)


def trim(model: Model, inc: int, through: str, ended: Sequence[str], now_ms: int) -> bool:
    if inc != model.server.inc:
        return False
    last = journal_key(through)
    for journal_id in [each for each in model.server.journal if journal_key(each) <= last]:
        del model.server.journal[journal_id]
    model.server.committed = max(model.server.committed or "0-0", through, key=journal_key)
    for job_id in ended:
        job = model.jobs.get(job_id)
        if job is not None and job.state.ended:
            job.durable = True
            if job.kept_from_ms is None:
                job.kept_from_ms = now_ms
    return True


def journal_key(journal_id: str) -> tuple[int, int]:
    inc, _, seq = journal_id.partition("-")
    return int(inc), int(seq)


def decide_dead(model: Model, job_id: str, *, drop: bool) -> DeadAnswer:
    job = model.jobs.get(job_id)
    if job is None:
        return DeadAnswer.GONE
    if job.state is not JobState.DEAD:
        return DeadAnswer.ALIVE
    if not drop:
        job.listed = False
    elif model.storage and not job.durable:
        return DeadAnswer.UNCOMMITTED
    else:
        model.forget(job)
        model.write_journal("drop", job_id)
    return DeadAnswer.OK


def depths(model: Model, now_ms: int) -> Depths:
    queued, running = model.queued(), model.running()
    delayed = [job for job in model.jobs.values() if job.state is JobState.DELAYED]
    interactive, normal, batch = (sum(job.band == band and job.lane != "" for job in queued) for band in BANDS)
    return Depths(
        interactive=interactive,
        normal=normal,
        batch=batch,
        suspects=sum(job.suspect for job in queued),
        delayed=len(delayed),
        due=sum(job.due_ms <= now_ms for job in delayed),
        running=len(running),
        lapsed=sum(job.lease_end_ms <= now_ms for job in running),
        dead=sum(job.listed for job in model.jobs.values()),
        waiting=sum(not job.lane for job in queued),
    )
