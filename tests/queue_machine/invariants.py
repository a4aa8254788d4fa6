"""What is true at every moment of a queue: the numbers are those of the protocol's invariants."""

from __future__ import annotations

from collections import Counter, defaultdict

from headpond.jobs import JobState
from headpond.operations import Entry
from headpond.switching import parse_outcomes
from queue_machine.answers import BANDS
from queue_machine.jobs import TrueJob
from queue_machine.model import RETENTION_MS, SUSPECT_WAIT_MS, Model
from queue_machine.reader import StreamReader
from queue_machine.snapshot import Snapshot
from queue_machine.sweeping import is_suspect


def check(model: Model, now: Snapshot) -> None:
    """Raises AssertionError. now: what the server holds. Readers read on, and the journal is followed."""
    _rows_are_true(model, now)
    _each_job_is_in_one_place(model, now)
    _one_suspect_at_a_time(model, now)
    _readers_get_every_token_once(model, now)
    _each_end_is_journalled_once(model, now)
    _work_wakes_somebody(model, now)
    _workers_are_told(model, now)
    _turns_are_true(model, now)
    _no_tenant_lags(model)
    _trials_are_over(model, now)


def _rows_are_true(model: Model, now: Snapshot) -> None:
    """2, 5, 7: fences, ended states, strikes and offsets are what the calls so far make them."""
    assert now.run.keys() == model.jobs.keys(), f"rows of {now.run.keys() ^ model.jobs.keys()} are too many or too few"
    assert now.hash("data").keys() == model.jobs.keys()
    for job_id, job in model.jobs.items():
        differences = job.differences(now.row(job_id))
        assert not differences, f"{job_id} (true, found): {differences}"
    results = {job.id: job.result for job in model.jobs.values() if job.result is not None}
    assert now.hash("result") == results


def _each_job_is_in_one_place(model: Model, now: Snapshot) -> None:
    """1: in one lane, or delayed, or leased, or ended; and no set names what is not there."""
    places: dict[str, dict[str, float]] = defaultdict(dict)
    for job in model.jobs.values():
        _place(job, places)
    for name in {*places, *(name for name in now.zsets if not name.startswith(("fair:", "waits", "preempts")))}:
        found, true = now.zset(name), places.get(name, {})
        if found != true:
            near = found.keys() == true.keys() and all(abs(true[x] - score) < 1e-6 for x, score in found.items())
            assert near, f"{name} holds {dict(found)}, not {true}"
    held: dict[str, dict[str, bytes]] = defaultdict(dict)
    for job in model.running():
        held[f"held:{job.boot}"][job.id] = f"{job.seq}:{job.fence}".encode()
    for job in model.queued():
        if job.struck_by:
            held[f"struck:{job.struck_by}"][job.id] = str(job.strikes_before).encode()
    found_held = {name: value for name, value in now.hashes.items() if name.startswith(("held:", "struck:"))}
    assert found_held == held, f"workers hold {found_held}, not {dict(held)}"
    told = {job_id for job_id in now.zset("preempts") if job_id in model.jobs}
    assert all(model.jobs[job_id].state is JobState.RUNNING for job_id in told)
    assert len(told) == len(now.zset("preempts"))


def _place(job: TrueJob, places: dict[str, dict[str, float]]) -> None:
    if job.state is JobState.QUEUED:
        places[f"ready:{job.lane}:{job.band}"][job.id] = job.place
    elif job.state is JobState.DELAYED:
        places["delayed"][job.id] = job.due_ms
    elif job.state is JobState.RUNNING:
        places["leases"][job.id] = job.lease_end_ms
    elif job.listed:
        places["dead"][job.id] = job.ended_ms
    if job.state.ended:
        if job.kept_from_ms is not None:
            places["ended"][job.id] = job.kept_from_ms + RETENTION_MS
        if job.stream_until_ms is not None:
            places["streams"][job.id] = job.stream_until_ms
    elif job.deadline_ms is not None:
        places["deadlines"][job.id] = job.deadline_ms


def _one_suspect_at_a_time(model: Model, now: Snapshot) -> None:
    """Q11: from the second strike on a job waits apart, its wait ends, and only one of them runs."""
    alone = [job.id for job in model.running() if job.alone]
    assert len(alone) <= 1, f"suspects {alone} run at once"
    assert now.meta("suspect") == (alone[0] if alone else "")
    waits = now.zset("waits")
    suspects = {
        f"s:{job.id}": float(job.waiting_from_ms + SUSPECT_WAIT_MS)
        for job in model.queued()
        if job.suspect and not job.front
    }
    assert {name: time for name, time in waits.items() if name.startswith("s:")} == suspects
    for lane, _, members in now.ready():
        if lane != "any" and members:
            assert lane in now.sets["lanes"], f"{lane} holds jobs and is not named"
            asked = lane == "suspect" or f"lane:{lane}" in waits or f"gone:{lane}" in waits
            assert asked, f"nobody asks whether {lane} is served"


def _readers_get_every_token_once(model: Model, now: Snapshot) -> None:
    """3, 4: whoever reads, from whenever on, has what the job has. 5: one end."""
    for job in model.jobs.values():
        stream = now.streams.get(f"events:{job.id}")
        reader = model.readers.get(job.id)
        if stream is None:
            dropped = job.state.ended and job.stream_until_ms is None and job.result is not None
            assert dropped or (not job.state.ended and not job.tokens), f"{job.id} has no stream"
            continue
        if reader is None:
            reader = model.readers[job.id] = StreamReader(job.serial)
        reader.read(stream.entries)
        if not reader.lagging:
            assert reader.tokens == job.tokens, f"a reader of {job.id} has {reader.tokens}, not {job.tokens}"
        assert reader.end is (job.state if job.state.ended else None), f"{job.id}: its stream ended {reader.end}"


def _each_end_is_journalled_once(model: Model, now: Snapshot) -> None:
    """5, S1: one entry for each submit, each end, each lease that ended without one, and each job that was dropped by
    somebody, written with it, above all those before."""
    journal = now.streams.get("journal")
    entries = journal.entries if journal else ()
    assert Counter((kind, job_id.decode()) for _, kind, job_id in entries) == Counter(model.written), (
        f"the journal tells {entries}, not {model.written}"
    )
    model.written.clear()
    for journal_id, kind, job_id in entries:
        assert journal_id.startswith(f"{model.server.inc}-"), f"{journal_id} is not of incarnation {model.server.inc}"
        model.server.journal[journal_id] = (kind, job_id.decode())
        model.journal_seen = journal_id
    assert (journal.length if journal else 0) == len(model.server.journal)


def _work_wakes_somebody(model: Model, now: Snapshot) -> None:
    """6: where something can be claimed there is a wake token, or somebody took it and will claim."""
    for name, tokens in now.lists.items():
        assert len(tokens) == 1, f"{name} holds {len(tokens)} tokens"
    if not model.server.open:
        return
    blocked = model.suspect_runs()
    for lane, _, members in now.ready():
        if members and not (blocked and is_suspect(lane)):
            assert now.has_token(lane) or lane in model.server.owed, f"{lane} can be claimed from, and nobody is woken"


def _workers_are_told(model: Model, now: Snapshot) -> None:
    """Q10: a worker whose job was cancelled or expired finds a notice. Notices go by themselves after a minute."""
    found = {name.removeprefix("notice:") for name in now.lists if name.startswith("notice:")}
    assert model.told <= found, f"{model.told - found} were not told that jobs of theirs ended"
    assert found <= model.server.noticed, f"{found - model.server.noticed} were told of nothing"
    model.told.clear()


def _turns_are_true(model: Model, now: Snapshot) -> None:
    """Q6: virtual time, until when each tenant has paid, and the time between two ends."""
    for band in BANDS:
        turns, found = model.server.fairness.turns[band], now.zset(f"fair:{band}")
        near = found.keys() == turns.paid.keys() and all(abs(turns.paid[x] - paid) < 1e-6 for x, paid in found.items())
        assert near, f"tenants of {band} have paid until {dict(found)}, not {turns.paid}"
        assert abs(now.number(f"v:{band}") - turns.v) < 1e-6, f"{band} is at {now.meta(f'v:{band}')}, not {turns.v}"
    assert now.number("picks") == model.server.picks
    assert now.number("end_ms") == (model.server.end_ms or 0)
    assert abs(now.number("end_gap_ms") - (model.server.end_gap_ms or 0)) < 0.02


def _no_tenant_lags(model: Model) -> None:
    """10: of tenants that have jobs waiting, none lags in served cost by more than one largest job."""
    waiting: dict[str, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for job in model.queued():
        if not job.attempt and job.lane == "any":
            waiting[job.band][job.entry.tenant].append(job.entry)
    for band, shares in model.server.fairness.shares.items():
        late = shares.observe(waiting[band], model.server.fairness.turns[band])
        assert not late, f"{band}: {late}"
        model.reached["tenants apart"] += any(race.most - race.least > 0 for race in shares.races.values())


def _trials_are_over(model: Model, now: Snapshot) -> None:
    """Q5: nobody waits for a version that is neither named nor bound; ends are noted while a trial has its share."""
    share = model.server.share
    assert now.meta("trial") == (f"{share[0]}:{share[1]}" if share else "")
    alias = now.hash("switch")
    named = {alias[name].decode() for name in ("target", "trial") if name in alias}
    for job in model.queued():
        stray = not job.version and job.lane not in ("any", "suspect", *named)
        assert not stray, f"{job.id} waits in {job.lane}, and {named} are served"
    outcomes = {name.encode(): value for name, value in now.hash("outcomes").items()}
    found = sorted((o.id, o.version, o.state.value) for o in parse_outcomes(outcomes)) if outcomes else []
    assert found == sorted(model.server.outcomes), f"ended as {found}, not {model.server.outcomes}"
