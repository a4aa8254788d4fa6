"""What a claim must hand out, and in which order (Q5, Q6, Q7, Q11)."""

from __future__ import annotations

from collections.abc import Sequence

from headpond.jobs import JobState
from headpond.operations import Claimed, Lease, LeaseStatus, Settle, Settlement
from queue_machine.answers import BANDS, finish, park
from queue_machine.jobs import TrueJob
from queue_machine.model import LEASE_MS, Model
from queue_machine.snapshot import Snapshot
from queue_machine.sweeping import forgive, sweep
from queue_machine.workers import Process

BATCH_EVERY = 8


def settle(model: Model, settlements: Sequence[Settlement], now_ms: int) -> list[LeaseStatus]:
    answers = []
    for s in settlements:
        if s.what in (Settle.FINISHED, Settle.FAILED):
            answers.append(finish(model, s.id, s.fence, s.offset, JobState(s.what.value), b"", now_ms))
        else:
            answers.append(park(model, s.id, s.fence, now_ms, fault=s.what is Settle.FAULTY))
    return answers


def claim(
    model: Model,
    process: Process,
    told: Claimed,
    *,
    seq: int,
    slots: int,
    settlements: Sequence[Settlement],
    now_ms: int,
    before: Snapshot,
    after: Snapshot,
) -> None:
    """Raises AssertionError where `told` is not what the claim had to answer."""
    expected = settle(model, settlements, now_ms)
    assert list(told.settled) == expected, f"settlements were answered {told.settled}, not {expected}"
    assert told.state == ("open" if model.server.open else "closed")
    if slots == 0 or not model.server.open:
        assert not told.leases, "a closed queue, or a call that only settles, handed out leases"
        return
    forgive(model, process.boot, now_ms)
    if model.server.seqs.get(process.boot) == seq:
        _same_again(model, process, told, seq)
    else:
        sweep(model, now_ms, before, after, speaker=process.boot)
        model.server.seqs[process.boot] = seq
        assert len(told.leases) <= slots, f"{len(told.leases)} leases for {slots} slots"
        for lease in told.leases:
            _hand_out(model, process, lease, seq, now_ms)
        if len(told.leases) < slots:
            left = [job.id for job in _claimable(model, process)]
            assert not left, f"{process.boot} was left {slots - len(told.leases)} slots, and not given {left}"
        _check_flags(model, process, after)
    _check_next_due(told, after, now_ms)


def _claimable(model: Model, process: Process) -> list[TrueJob]:
    blocked = model.suspect_runs()
    lanes = process.lanes
    return [job for job in model.queued() if job.lane in lanes and not (blocked and job.suspect)]


def _hand_out(model: Model, process: Process, lease: Lease, seq: int, now_ms: int) -> None:
    server = model.server
    job = model.jobs[lease.id]
    offered = _claimable(model, process)
    assert job in offered, f"{job.id} ({job.state.value}, lane {job.lane}) was not to be claimed by {process.boot}"
    order = BANDS if (server.picks + 1) % BATCH_EVERY else ("batch", "interactive", "normal")
    band = next(band for band in order if any(other.band == band for other in offered))
    first = min(other.place for other in offered if other.band == band)
    assert job.band == band, f"{job.id} of band {job.band} went before the {band} jobs"
    assert job.place - first < 1e-6, f"{job.id} at {job.place:g} went before the one at {first:g}"
    assert lease.fence not in model.fences, f"fence {lease.fence} was given twice"
    turns, shares = server.fairness.turns[band], server.fairness.shares[band]
    turns.claimed(job.tag)
    if not job.attempt:
        shares.served(job.entry)
    server.picks += 1
    model.reached["batch before its turn"] += (
        band == "batch" and order[0] == band and len({j.band for j in offered}) > 1
    )
    model.reached["suspect alone"] += job.suspect
    model.reached["begun anew"] += bool(job.tokens) and job.fingerprint != process.fingerprint
    model.fences.add(lease.fence)
    job.lease(
        boot=process.boot, seq=seq, fence=lease.fence, version=process.version, fingerprint=process.fingerprint,
        end_ms=now_ms + LEASE_MS,
    )  # fmt: skip
    assert (lease.attempt, lease.offset) == (job.attempt, job.offset)
    assert lease.data == job.entry.data


def _same_again(model: Model, process: Process, told: Claimed, seq: int) -> None:
    """A claim that is asked again gets what it got, less what is over since."""
    model.reached["claim asked again"] += 1
    mine = {(job.id, job.fence) for job in model.running() if job.boot == process.boot and job.seq == seq}
    assert {(lease.id, lease.fence) for lease in told.leases} == mine, "a repeated claim was told other leases"


def _check_flags(model: Model, process: Process, after: Snapshot) -> None:
    """The token of each lane that was read is there exactly when something is left to claim (Q7)."""
    claimable = {job.lane for job in _claimable(model, process)}
    for lane in process.lanes:
        assert after.has_token(lane) == (lane in claimable), f"the wake token of {lane} is wrong after a claim"
        model.server.owed.discard(lane)


def _check_next_due(told: Claimed, after: Snapshot, now_ms: int) -> None:
    times = [time for name in ("delayed", "deadlines", "leases", "waits") for time in after.zset(name).values()]
    expected = max(0.0, min(times) - now_ms) / 1000 if times else None
    assert told.next_due_s == expected, f"next due in {told.next_due_s}, not {expected}"
