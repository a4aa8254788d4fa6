"""What time alone brings about (Q8), and whose strike is taken back (Q11)."""

from __future__ import annotations

from collections.abc import Mapping

import msgpack

from headpond.jobs import JobState
from queue_machine.jobs import TrueJob
from queue_machine.model import (
    LEASE_MS,
    LOADING_MS,
    RETENTION_MS,
    SERVING_MS,
    STREAM_RETENTION_MS,
    SUSPECT_WAIT_MS,
    SWEEP_EVERY_MS,
    Model,
)
from queue_machine.snapshot import Snapshot


def forgive(model: Model, boot: str, now_ms: int) -> None:
    for job in model.queued():
        if job.struck_by == boot:
            job.forgive(now_ms, model.server.share)
            model.reached["strike forgiven"] += 1


def sweep_if_due(model: Model, now_ms: int, before: Snapshot, after: Snapshot, *, speaker: str) -> None:
    """What a claim does for time: nothing where nothing is due and somebody looked a moment ago."""
    last = model.server.last_tick_ms
    if last is None or not 0 <= now_ms - last < SWEEP_EVERY_MS or _is_due(model, now_ms, before):
        sweep(model, now_ms, before, after, speaker=speaker)
    else:
        model.reached["claim without a sweep"] += 1


def _is_due(model: Model, now_ms: int, before: Snapshot) -> bool:
    times: list[float] = [time for name, time in before.zset("waits").items() if not name.startswith("s:")]
    for job in model.jobs.values():
        if not job.state.ended and job.deadline_ms is not None:
            times.append(job.deadline_ms)
        if job.state is JobState.DELAYED:
            times.append(job.due_ms)
        elif job.state is JobState.RUNNING:
            times.append(job.lease_end_ms)
        elif job.state is JobState.QUEUED and job.suspect and not job.front:
            times.append(job.waiting_from_ms + SUSPECT_WAIT_MS)
    return any(time <= now_ms for time in times)


def sweep(
    model: Model, now_ms: int, before: Snapshot, after: Snapshot, *, speaker: str = "", renews: bool = False
) -> None:
    """All that is due. speaker: the boot whose call it is; it lives, so it gives no strike by silence. renews: the call
    has first written what that boot says of itself.

    Which versions were given up is read from `after`, and must be allowed by who served then.
    """
    if model.server.mending:
        model.reached["no sweep while it waits"] += 1
        return
    workers = (after if renews else before).hash("workers")
    moved_ms = _move_leases(model, now_ms)
    live = [job for job in model.jobs.values() if not job.state.ended]
    for job in live:
        if job.deadline_ms is not None and job.deadline_ms <= now_ms:
            model.end(job, JobState.EXPIRED, now_ms)
    due = [job for job in live if job.state is JobState.DELAYED and job.due_ms <= now_ms]
    # Their turns are reckoned from now.
    model.begin_to_wait(sorted(due, key=lambda job: (job.due_ms, job.id)), now_ms)
    for job in live:
        if job.state is JobState.RUNNING and job.lease_end_ms <= now_ms:
            silent = job.boot != speaker
            model.take_back(job, now_ms, fault=silent, silent=silent)
    _end_share(model, now_ms, moved_ms, workers, before, after)
    for job in live:
        if job.state is JobState.QUEUED:
            _end_waits(model, job, now_ms, moved_ms, workers, before, after)
    for job in list(model.jobs.values()):
        if job.stream_until_ms is not None and job.stream_until_ms <= now_ms:
            # Its result holds the same tokens. With storage the stream stays until the end is committed.
            kept = model.storage and not job.durable
            model.reached["stream dropped"] += not kept
            job.stream_until_ms = now_ms + STREAM_RETENTION_MS if kept else None
        if job.kept_from_ms is not None and job.kept_from_ms + RETENTION_MS <= now_ms:
            model.forget(job)


def _move_leases(model: Model, now_ms: int) -> int:
    """Where nobody looked for half a lease, or time went back, no worker can be blamed for silence, nor could one of a
    version have come. Returns by how many ms the waits moved."""
    server = model.server
    last = server.last_tick_ms
    server.last_tick_ms = now_ms
    if last is None:
        return 0
    back, late = now_ms < last, now_ms - last > LEASE_MS / 2
    if back or (late and not server.graced):
        for job in model.running():
            job.lease_end_ms = (now_ms if back else max(now_ms, job.lease_end_ms)) + LEASE_MS
        for job in model.queued():
            job.waiting_from_ms += now_ms - last
        server.graced = server.graced or late
        model.reached["leases moved"] += 1
        return now_ms - last
    return 0


def _end_waits(
    model: Model,
    job: TrueJob,
    now_ms: int,
    moved_ms: int,
    workers: Mapping[str, bytes],
    before: Snapshot,
    after: Snapshot,
) -> None:
    front_ms = job.waiting_from_ms + SUSPECT_WAIT_MS
    gone_ms = before.zset("waits").get(f"gone:{job.lane}", now_ms + 1) + moved_ms
    if job.suspect and front_ms <= now_ms:
        model.reached["suspect at the front"] += not job.front
        job.front = True
    version = version_of(job.lane)
    if not version or job.id not in after.run:
        return
    row = after.row(job.id)
    if job.entry.pinned:
        gave_up = row.state is JobState.FAILED and row.ended_ms == now_ms
    else:
        gave_up = row.state in (JobState.QUEUED, JobState.RUNNING) and row.lane != job.lane
    if gave_up:
        assert not serves(workers, version, now_ms), f"{job.id} gave up {version}, which is served"
        assert gone_ms <= now_ms, f"{job.id} gave up {version} without a wait"
        if job.entry.pinned:
            model.reached["version gone"] += 1
            model.end(job, JobState.FAILED, now_ms)
        else:
            # Whose wait as a suspect ended after this one is first in its new lane too.
            front = job.front and gone_ms <= front_ms
            model.reached["version given up"] += 1
            model.reached["share given up"] += not job.version
            job.served_by = ""
            job.wait(now_ms, model.server.share)
            model.server.fairness.shares[job.band].unsettle(job.entry.tenant)
            job.front = front


def serves(workers: Mapping[str, bytes], version: str, now_ms: int) -> bool:
    """Whether a worker of this version spoke of late, or one that may become such a worker loads its model."""
    for boot, row in workers.items():
        if ":" not in boot:
            its, silent_ms = msgpack.unpackb(row), now_ms - int(workers.get(f"{boot}:seen", b"0"))
            if (its[1] == version and silent_ms < SERVING_MS) or (its[7] == "loading" and silent_ms < LOADING_MS):
                return True
    return False


def _end_share(
    model: Model, now_ms: int, moved_ms: int, workers: Mapping[str, bytes], before: Snapshot, after: Snapshot
) -> None:
    """A trial that nobody has served for long enough has its share no longer."""
    share = model.server.share
    if share is None or after.meta("trial"):
        return
    version = share[0]
    waits = [before.zset("waits").get(f"gone:{lane}", now_ms + 1) for lane in (version, f"suspect@{version}")]
    assert min(waits) + moved_ms <= now_ms, f"{version} lost its share without a wait"
    assert not serves(workers, version, now_ms), f"{version} lost its share, and is served"
    model.server.share = None


def version_of(lane: str) -> str:
    return "" if lane == "any" else lane.removeprefix("suspect").removeprefix("@")


def is_suspect(lane: str) -> bool:
    return lane.startswith("suspect")
