"""Verify one job: compare what its result names with what its request, its model's files and the engine give now.

The model is loaded in a process of its own, as `headpond replay` does, with every digest of weights taken from their
bytes. Where that engine gives the same tokens again, the job is run once more, alone, and its tokens are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from headpond.bundle import Bundle, BundleVectors, new_bundle, release
from headpond.errors import MalformedDocument
from headpond.jobs import JobState, Priority, Result
from headpond.provenance import Provenance
from headpond.requests import JobRequest
from headpond.tables import ModelTable, OpenAIModel
from headpond.wire import Header
from headpond_workers.replay.events import Event
from headpond_workers.replay.run import WITHOUT_A_WORD, log_tail, run_replay
from headpond_workers.verification.rerun import rerun_check
from headpond_workers.verification.stored_checks import request_check, request_checks
from headpond_workers.verification.stored_job import StoredJob
from headpond_workers.verification.traced_checks import traced_checks
from headpond_workers.verification.verdicts import Check, Verdict, Verification, compare, unknown

_UPSTREAM = "another server made the answer, and names no digest"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job is verified. model: a table of `config`. log: takes what engine and process write. on_event: hears of
    each event of that process."""

    config: Path
    model: str
    table: ModelTable
    log: IO[bytes]
    on_event: Callable[[Event], None]


def verify(
    job: StoredJob, place: Place, *, version_check: Callable[[Provenance, Result], Check | None]
) -> Verification:
    """Every check of one job. version_check: of the version's document in storage; None where there is none to make.

    What cannot be read is a check that cannot be told, not an error.
    """
    try:
        header, request = job.asked()
    except MalformedDocument as error:
        return Verification(job.id, (unknown("request", str(error)),), job.state.value)
    try:
        result = job.result()
    except MalformedDocument as error:
        checks = (request_check(header, request, None), unknown("result", f"the stored result is damaged: {error}"))
        return Verification(job.id, checks, job.state.value)
    made_by = None if result is None else result.provenance
    if result is None or made_by is None:
        checks = (request_check(header, request, None), unknown("provenance", _nameless(job, result)))
        return Verification(job.id, checks, job.state.value, *_told(result))
    found = [*request_checks(job.id, header, request, made_by)]
    if result.id != job.id:
        found.append(Check("result", Verdict.DIFFERS, result.id, job.id, "the stored result is of another job"))
    if (of_version := version_check(made_by, result)) is not None:
        found.append(of_version)
    if isinstance(place.table, OpenAIModel) or made_by.upstream_model is not None:
        return Verification(job.id, (*found, *_upstream_checks(place.table, made_by)), job.state.value, *_told(result))
    if header.turn is not None and job.shown is None:
        found.append(unknown("prompt", f"it is a turn of a session: {job.why_not}", stored=made_by.prompt_digest))
        return Verification(job.id, tuple(found), job.state.value, *_told(result))
    try:
        bundle = _bundle(job, header, job.shown or request, result, made_by)
    except MalformedDocument as error:
        found.append(unknown("result", f"the stored result is damaged: {error}"))
        return Verification(job.id, tuple(found), job.state.value, *_told(result))
    replay = run_replay(
        bundle,
        config=place.config,
        model=place.model,
        from_start=True,
        any_fingerprint=True,
        stall_timeout_s=place.table.stall_timeout_s,
        log=place.log,
        on_event=place.on_event,
        trace=True,
    )
    found += traced_checks(made_by, replay, embeds=request.input is not None)
    found.append(rerun_check(result, replay, bundle))
    died = log_tail(place.log) if replay.how in WITHOUT_A_WORD else []
    return Verification(job.id, tuple(found), job.state.value, *_told(result), died=tuple(died))


def _nameless(job: StoredJob, result: Result | None) -> str:
    if not job.state.ended:
        return f"the job has not ended: it is {job.state.value}"
    if result is None or job.state not in (JobState.FINISHED, JobState.FAILED):
        return f"no worker ended this job ({job.state.value}), so nothing names what made its tokens"
    return "the result does not say what made it: a release before this one wrote it"


def _told(result: Result | None) -> tuple[str, int]:
    return ("", 0) if result is None else (result.version, len(result.token_ids))


def _upstream_checks(table: ModelTable, made_by: Provenance) -> Iterator[Check]:
    found = table.upstream_model if isinstance(table, OpenAIModel) else None
    yield compare("upstream model", made_by.upstream_model, found, reason="this table is no proxy")
    for name in ("weights", "prompt"):
        yield unknown(name, _UPSTREAM)
    yield Check("tokens", Verdict.LEFT_OUT, reason="they were made by another server, which is not asked again")


def _bundle(job: StoredJob, header: Header, request: JobRequest, result: Result, made_by: Provenance) -> Bundle:
    """Raises MalformedDocument for numbers that are no token ids."""
    # Only an answer can be compared: without a fingerprint the process says what it is, and makes no tokens.
    fingerprint = made_by.fingerprint if result.state is JobState.FINISHED else ""
    return new_bundle(
        headpond=release(),
        exported_ms=0,
        id=job.id,
        state=job.state,
        tenant=header.tenant,
        priority=Priority.NORMAL,
        pinned=header.pinned,
        request=request,
        seed=request.seed_for(job.id),
        token_ids=result.token_ids,
        text=result.text,
        fingerprint=fingerprint,
        version=result.version,
        submitted_ms=0,
        ended_ms=0,
        leases=result.attempts,
        strikes=0,
        faults=0,
        attempts=(),
        last_error="",
        embeddings=None if result.embeddings is None else BundleVectors.of(result.embeddings),
    )
