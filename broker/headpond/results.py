"""The result of an ended job, from its worker's document, or from its stream where no worker ended it."""

from __future__ import annotations

from headpond.errors import JobCancelled, JobEnded, JobExpired, JobFailed, JobQuarantined
from headpond.folding import fold_tokens
from headpond.jobs import FinishReason, JobState, Result, Timings, Usage
from headpond.replies import StreamEntry
from headpond.turns import Turn
from headpond.wire import RunRow, unpack_result

_REASONS = {
    JobState.CANCELLED: FinishReason.CANCELLED,
    JobState.EXPIRED: FinishReason.EXPIRED,
    JobState.DEAD: FinishReason.QUARANTINED,
}
_ERRORS: dict[JobState, type[JobEnded]] = {
    JobState.FAILED: JobFailed,
    JobState.CANCELLED: JobCancelled,
    JobState.EXPIRED: JobExpired,
    JobState.DEAD: JobQuarantined,
}


def build_result(job_id: str, row: RunRow, document: bytes | None, entries: list[StreamEntry]) -> Result:
    """document: the worker's result, None if it wrote none; then entries hold the job's whole stream."""
    if document is not None:
        return unpack_result(document, durable=row.durable)
    tokens = fold_tokens(entries)
    ran_s = max(0, row.ended_ms - row.claimed_ms) / 1000 if row.claimed_ms else 0.0
    queued_until_ms = row.claimed_ms or row.ended_ms
    return Result(
        id=job_id,
        state=row.state,
        text="".join(tokens.pieces),
        token_ids=tokens.ids,
        finish_reason=_REASONS.get(row.state, FinishReason.ERROR),
        usage=Usage(0, len(tokens.ids)),
        timings=Timings(queued_s=max(0, queued_until_ms - row.submitted_ms) / 1000, generate_s=ran_s),
        model=job_id.partition("/")[0],
        attempts=row.attempt,
        durable=row.durable,
        error=row.reason or None,
        pieces=tokens.pieces,
        turn=Turn(row.session) if row.session else None,
    )


def answer(result: Result) -> Result:
    """Return a result that is an answer. Raises JobFailed, JobCancelled, JobExpired or JobQuarantined."""
    error = _ERRORS.get(result.state)
    if error is not None:
        raise error(result)
    return result
