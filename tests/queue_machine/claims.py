"""What a claim must hand out, and in which order (Q5, Q6, Q7, Q11)."""

from __future__ import annotations

from collections.abc import Sequence

from headpond.jobs import JobState
from headpond.operations import Claimed, Lease, LeaseStatus, Settle, Settlement
from queue_machine.answers import BANDS, finish, park
from queue_machine.jobs import TrueJob
from queue_machine.model import LEASE_MS, SUSPECT_WAIT_MS, Model
from queue_machine.snapshot import Snapshot
from queue_machine.sweeping import forgive, sweep_if_due
from queue_machine.workers import Process

BATCH_EVERY = 8


def settle(model: Model, settlements: Sequence[Settlement], now_ms: int) -> list[LeaseStatus]:
    answers = []
    for s in settlements:
        if s.what in (Settle.FINISHED, Settle.FAILED):
            answers.append(finish(model, s.id, s.fence, s.offset, JobState(s.what.value), b"", now_ms))
            if answers[-1] is LeaseStatus.GAP:
                job = model.jobs[s.id]
                job.lease_end_ms = max(job.lease_end_ms, now_ms + LEASE_MS)
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
    given_up = sum(
        s.what is Settle.PREEMPTED and status is LeaseStatus.PARKED
        for s, status in zip(settlements, expected, strict=True)
    )
    model.reached["settled together"] += len(settlements) > 1
    assert list(told.settled) == expected, f"settlements were answered {told.settled}, not {expected}"
    assert told.state == model.state
    if slots == 0 or not model.server.open:
        assert not told.leases, "a closed queue, or a call that only settles, handed out leases"
        assert told.next_due_s is None
        return
    forgive(model, process.boot, now_ms)
    begun: list[float] = []
    if model.server.seqs.get(process.boot) == seq:
        _same_again(model, process, told, seq)
    else:
        sweep_if_due(model, now_ms, before, after, speaker=process.boot)
        model.server.seqs[process.boot] = seq
        assert len(told.leases) <= slots, f"{len(told.leases)} leases for {slots} slots"
        # No job waits elsewhere and none for its share: then each claimed one counts, whoever had its slot.
        alone = not process.own_lane and not after.sets.get("lanes")
        if alone and not any(job.band == "batch" for job in _claimable(model, process)):
            given_up = 0
        for lease in told.leases:
            job = model.jobs[lease.id]
            if job.suspect and not job.front:
                begun.append(job.waiting_from_ms + SUSPECT_WAIT_MS)
            _hand_out(model, process, lease, seq, now_ms, given_up=given_up > 0)
            given_up -= 1
        if told.leases:
            for turns in model.server.fairness.turns.values():
                turns.forget_paid_up()
        if len(told.leases) < slots:
            left = [job.id for job in _claimable(model, process)]
            assert not left, f"{process.boot} was left {slots - len(told.leases)} slots, and not given {left}"
        _check_flags(model, process, after)
    expected_s = next_due_s(after, now_ms, told, begun)
    assert told.next_due_s == expected_s, f"next due in {told.next_due_s}, not {expected_s}"


def _claimable(model: Model, process: Process) -> list[TrueJob]:
    blocked = model.suspect_runs()
    lanes = process.lanes
    return [job for job in model.queued() if job.lane in lanes and not (blocked and job.suspect)]


def _hand_out(model: Model, process: Process, lease: Lease, seq: int, now_ms: int, *, given_up: bool) -> None:
    """given_up: for a slot that a batch job has just left. It is no turn of the batch band, and does not count."""
    server = model.server
    job = model.jobs[lease.id]
    offered = _claimable(model, process)
    assert job in offered, f"{job.id} ({job.state.value}, lane {job.lane}) was not to be claimed by {process.boot}"
    batch_first = not given_up and (server.picks + 1) % BATCH_EVERY == 0
    order = ("batch", "interactive", "normal") if batch_first else BANDS
    model.reached["no turn for a slot given up"] += given_up and (server.picks + 1) % BATCH_EVERY == 0
    band = next(band for band in order if any(other.band == band for other in offered))
    first = min(other.place for other in offered if other.band == band)
    assert job.band == band, f"{job.id} of band {job.band} went before the {band} jobs"
    assert job.place - first < 1e-6, f"{job.id} at {job.place:g} went before the one at {first:g}"
    assert lease.fence not in model.fences, f"fence {lease.fence} was given twice"
    turns, shares = server.fairness.turns[band], server.fairness.shares[band]
    passed = [other.tag for other in model.queued() if (other.lane, other.band) == ("any", band)]
    # Virtual time does not pass what waits where this worker does not look.
    turns.claimed(min(job.tag, *passed) if process.own_lane and passed else job.tag)
    if not job.attempt:
        shares.served(job.entry)
    server.picks += not given_up
    model.reached["batch before its turn"] += (
        band == "batch" and order[0] == band and len({j.band for j in offered}) > 1
    )
    model.reached["suspect alone"] += job.suspect
    model.reached["begun anew"] += bool(job.tokens) and job.fingerprint != process.fingerprint
    model.fences.add(lease.fence)
    job.lease(
        boot=process.boot, seq=seq, fence=lease.fence, version=process.version, fingerprint=process.fingerprint,
        now_ms=now_ms, end_ms=now_ms + LEASE_MS,
    )  # fmt: skip
    assert (lease.attempt, lease.offset) == (job.attempt, job.offset)
    assert lease.data == job.entry.data


def _same_again(model: Model, process: Process, told: Claimed, seq: int) -> None:
    """A claim that is asked again gets what it got, less what is over since."""
    model.reached["claim asked again"] += 1
    mine = {(job.id, job.fence) for job in model.running() if job.boot == process.boot and job.seq == seq}
    assert {(lease.id, lease.fence) for lease in told.leases} == mine, "a repeated claim was told other leases"


def _check_flags(model: Model, process: Process, after: Snapshot) -> None:
    """The token of each lane that was read is there exactly when something is left to claim (Q7). Where no lane is
    named, none but `any` holds jobs, and none but it is read: a token of another one may linger."""
    claimable = {job.lane for job in _claimable(model, process)}
    alone = not process.own_lane and not after.sets.get("lanes")
    assert not alone or claimable <= {"any"}
    for lane in process.lanes:
        if not alone or lane == "any":
            assert after.has_token(lane) == (lane in claimable), f"the token of {lane} is wrong after a claim"
        model.server.owed.discard(lane)
    if process.own_lane:
        model.reached["claim of one lane"] += 1
        _check_others(model, after)


def _check_others(model: Model, after: Snapshot) -> None:
    """Whoever claims for one lane may have taken the token of another: it is there again."""
    for lane in ("any", "suspect"):
        waits = any(job.lane == lane for job in model.queued()) and not (lane == "suspect" and model.suspect_runs())
        assert not waits or after.has_token(lane), f"nobody is woken for {lane}"
        model.server.owed.discard(lane)


def next_due_s(after: Snapshot, now_ms: int, told: Claimed, begun: Sequence[float] = ()) -> float | None:
    """What a claim that answers `told` says of when to come back: at the latest when a lease that it gave would end.
    begun: what it saw in `waits`, and ended by giving leases."""
    times = [time for name in ("delayed", "deadlines", "leases", "waits") for time in after.zset(name).values()]
    times += begun
    if told.leases:
        times.append(now_ms + LEASE_MS)
    return max(0.0, min(times) - now_ms) / 1000 if times else None
