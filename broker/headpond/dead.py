"""What an operator does about quarantined jobs: list, show, retry, drop, and export as a replay bundle."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from headpond import upkeep
from headpond.bundle import MAX_BUNDLE_ATTEMPTS, Bundle, BundleVectors, new_bundle, release
from headpond.errors import InvalidRequest, JobGone, MalformedDocument, NotCommitted, NotQuarantined
from headpond.folding import fold_tokens
from headpond.jobs import JOB_SLUG, JobId, JobState, Priority
from headpond.keys import queue_keys
from headpond.operations import Submitted
from headpond.queue import JobQueue
from headpond.requests import JobRequest, parse_request
from headpond.submission import GENERATE, is_refused, raise_refusals, submission_of
from headpond.turns import Turn
from headpond.whole_request import whole_request
from headpond.wire import Attempt, Header, RunRow, unpack_attempts, unpack_entry, unpack_result, unpack_run

_RETRY = re.compile(r"(.+)\.retry([1-9][0-9]{0,5})")
_PAGE = 20
"""Jobs whose requests are read at once: each may have a megabyte."""
_KEPT_SLUG_CHARS = 90


@dataclass(frozen=True, slots=True)
class DeadJob:
    """One line of the list. ended_ms: server time. attempts: leases. tokens: that were made. reason: why it was
    quarantined. last_error: how its last lease ended. damage: why the rest could not be read; '' if it could."""

    id: str
    ended_ms: int
    attempts: int = 0
    strikes: int = 0
    faults: int = 0
    tokens: int = 0
    tenant: str = ""
    reason: str = ""
    last_error: str = ""
    damage: str = ""


@dataclass(frozen=True, slots=True)
class Retried:
    """id: of the job that runs the request again. new: False if an earlier retry had submitted it."""

    id: str
    new: bool


def retry_id(job_id: JobId) -> JobId:
    """`<slug>.retry1` of a job, `<slug>.retry2` of that one: it follows from the id, so a repeat finds the same job."""
    found = _RETRY.fullmatch(job_id.slug)
    slug, count = (found[1], int(found[2]) + 1) if found else (job_id.slug, 1)
    new = f"{slug}.retry{count}"
    if not JOB_SLUG.fullmatch(new):
        # No room for the suffix: the cut name keeps its own digest, so that two long names stay two.
        new = f"{slug[:_KEPT_SLUG_CHARS]}.{hashlib.sha256(slug.encode()).hexdigest()[:12]}.retry{count}"
    return JobId(job_id.model, new)


class DeadJobs:
    """The quarantined jobs of one queue. Thread-safe. Every method raises RedisUnavailable."""

    def __init__(self, queue: JobQueue, *, max_queued: int = 0) -> None:
        self._queue = queue
        self._max_queued = max_queued

    def jobs(self, *, limit: int = 1000) -> list[DeadJob]:
        """The latest ones first."""
        ended = self._queue.dead(limit=limit)
        return [job for at in range(0, len(ended), _PAGE) for job in self._page(ended[at : at + _PAGE])]

    def _page(self, ended: Sequence[tuple[str, int]]) -> Iterator[DeadJob]:
        ids = [job_id for job_id, _ in ended]
        runs, attempts, data = (self._entries(name, ids) for name in ("run", "attempts", "data"))
        for (job_id, ended_ms), run, log, entry in zip(ended, runs, attempts, data, strict=True):
            try:
                yield _listed(job_id, ended_ms, run, log, entry)
            except MalformedDocument as error:
                # One bad row must not hide the others.
                yield DeadJob(job_id, ended_ms, damage=str(error))

    def _entries(self, hash_name: str, ids: Sequence[str]) -> Sequence[bytes | None]:
        key = queue_keys(self._queue.name).named(hash_name)
        return cast("list[bytes | None]", self._queue.server.read("HMGET", key, *ids))

    def show(self, job_id: str) -> Bundle:
        """All that is known of any job that Redis holds, quarantined or not. Raises JobGone, MalformedDocument."""
        return bundle_of(self._queue, job_id)

    def retry(self, job_id: str) -> Retried:
        """Submit a quarantined job's request again, under the id that `retry_id` gives, with the same seed, tenant,
        priority and version; then list the old one no more. It stays readable until its retention ends. A turn of a
        session is the next one then.

        May be repeated. Raises JobGone, NotQuarantined, QueueFull, IdConflict, SessionConflict, MalformedDocument.
        """
        row = self._row(job_id)
        if row.state is not JobState.DEAD:
            raise NotQuarantined(job_id, state=row.state.value)
        header, request = _request_of(self._queue, job_id)
        if request.input is None:  # What embeds has no seed.
            sampling = request.sampling.model_copy(update={"seed": request.seed_for(job_id)})
            request = request.model_copy(update={"sampling": sampling})
        submission = submission_of(
            retry_id(JobId.parse(job_id)),
            request,
            tenant=header.tenant,
            band=_band(header),
            pinned=header.pinned,
            max_queued=self._max_queued,
            turn=header.turn,
        )
        (answer,) = self._queue.submit([submission.entry], max_queued=self._max_queued)
        if is_refused([answer]):
            raise_refusals([submission], [answer], retry_after_s=self._queue.retry_after_s(), many=False)
        # Submitted first: a crash between the two leaves it listed, and a repeat finds the same job.
        self._queue.run(upkeep.forget_dead(job_id))
        return Retried(str(submission.id), answer is Submitted.NEW)

    def drop(self, job_id: str) -> None:
        """Remove all of a quarantined job, now. Raises JobGone, NotQuarantined, NotCommitted."""
        answer = self._queue.run(upkeep.drop_dead(job_id))
        if answer is upkeep.DeadAnswer.GONE:
            raise JobGone(job_id)
        if answer is upkeep.DeadAnswer.UNCOMMITTED:
            raise NotCommitted(job_id)
        if answer is upkeep.DeadAnswer.ALIVE:
            raise NotQuarantined(job_id, state=self._row(job_id).state.value)

    def _row(self, job_id: str) -> RunRow:
        row = self._queue.run_row(job_id)
        if row is None:
            raise JobGone(job_id)
        return row


def _listed(job_id: str, ended_ms: int, run: bytes | None, log: bytes | None, entry: bytes | None) -> DeadJob:
    if run is None or entry is None:
        raise MalformedDocument("run row" if run is None else "data entry", "it is gone")
    row, (header, _) = unpack_run(run), unpack_entry(entry)
    attempts = () if log is None else unpack_attempts(log)
    return DeadJob(
        id=job_id,
        ended_ms=ended_ms,
        attempts=row.attempt,
        strikes=row.strikes,
        faults=row.faults,
        tokens=row.offset,
        tenant=header.tenant,
        reason=row.reason,
        last_error=attempts[-1].reason if attempts else row.reason,
    )


def _request_of(queue: JobQueue, job_id: str) -> tuple[Header, JobRequest]:
    data = queue.data(job_id)
    if data is None:
        raise JobGone(job_id)
    header, call = unpack_entry(data)
    if call.actor != GENERATE:
        raise MalformedDocument("call", f"'{call.actor[:100]}' is an actor of its own, and no job of a model")
    try:
        return header, parse_request(call.kwargs.get("request"))
    except InvalidRequest as error:
        raise MalformedDocument("request", str(error)) from error


def _band(header: Header) -> Priority:
    try:
        return Priority(header.band)
    except ValueError as error:
        raise MalformedDocument("data header", str(error)) from error


def bundle_of(queue: JobQueue, job_id: str) -> Bundle:
    """All that Redis holds of one job; of a session's, with the whole conversation as it was shown.

    Raises JobGone, MalformedDocument, RedisUnavailable, CommitGone if the conversation cannot be told any more.

    Of a job that runs, the tokens may be some more than its attempts tell of.
    """
    row = queue.run_row(job_id)
    if row is None:
        raise JobGone(job_id)
    header, request = _request_of(queue, job_id)
    document = queue.result(job_id)
    embeddings: BundleVectors | None = None
    told: Turn | None = None
    if document is not None:
        result = unpack_result(document, durable=row.durable)
        ids, text, told = result.token_ids, result.text, result.turn
        if result.embeddings is not None:
            embeddings = BundleVectors.of(result.embeddings)
    else:
        tokens = fold_tokens(queue.events(job_id))
        ids, text = tokens.ids, "".join(tokens.pieces)
    if header.turn is not None:
        request = whole_request(queue, job_id, row.state, header.turn, request, told)
    ended = queue.attempts(job_id)
    attempts = [*ended, *_last_lease(row, ended)]
    return new_bundle(
        headpond=release(),
        exported_ms=int(time.time() * 1000),
        id=job_id,
        state=row.state,
        tenant=header.tenant,
        priority=_band(header),
        pinned=header.pinned,
        request=request,
        seed=request.seed_for(job_id),
        token_ids=ids,
        text=text,
        fingerprint=row.fingerprint,
        version=row.served_by or (attempts[-1].version if attempts else ""),
        submitted_ms=row.submitted_ms,
        ended_ms=row.ended_ms,
        leases=row.attempt,
        strikes=row.strikes,
        faults=row.faults,
        attempts=[_bundled(attempt) for attempt in attempts[-MAX_BUNDLE_ATTEMPTS:]],
        last_error=next((a.reason for a in reversed(attempts) if a.reason), row.reason),
        embeddings=embeddings,
    )


def _last_lease(row: RunRow, ended: Sequence[Attempt]) -> Iterator[Attempt]:
    """The lease that runs, or that ended the job: the log has only those that ended without an end of the job."""
    if row.attempt and (not ended or ended[-1].attempt < row.attempt):
        yield Attempt(
            row.attempt, row.worker, row.host, row.served_by, row.fingerprint, row.claimed_ms, row.ended_ms,
            row.state.value, row.claimed_offset, row.offset, row.reason,
        )  # fmt: skip


def _bundled(attempt: Attempt) -> dict[str, Any]:
    return {
        "attempt": attempt.attempt,
        "worker": attempt.boot,
        "host": attempt.host,
        "version": attempt.version,
        "fingerprint": attempt.fingerprint,
        "claimed_ms": attempt.claimed_ms,
        "ended_ms": attempt.ended_ms,
        "how": attempt.how,
        "from_offset": attempt.from_offset,
        "to_offset": attempt.to_offset,
        "reason": attempt.reason,
    }
