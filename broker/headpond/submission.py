"""From a producer's arguments to a queue entry, and from the queue's answer to an error. No I/O."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headpond.errors import IdConflict, InvalidRequest, QueueFull, UnknownModel
from headpond.jobs import JobId, JobRequest, parse_request
from headpond.models import ModelRow
from headpond.operations import Entry, Submitted
from headpond.wire import Call, pack_data

GENERATE = "generate"
"""The actor that runs a job; its one argument is `request`."""

MAX_DEADLINE_S = 10 * 365 * 86400.0


@dataclass(frozen=True, slots=True)
class Submission:
    """One checked request, ready to enqueue."""

    id: JobId
    request: JobRequest
    entry: Entry
    max_queued: int


def prepare(
    model: str,
    prompt: str | None,
    messages: Sequence[Mapping[str, str]] | None,
    *,
    known: Mapping[str, ModelRow],
    job_id: str | None,
    delay: float,
    deadline: float | None,
    **options: Any,
) -> Submission:
    """Check everything that can be checked without the model. Raises InvalidRequest, UnknownModel."""
    row = known.get(model)
    if row is None:
        raise UnknownModel(model[:100], known)
    new_id = JobId.new(model) if job_id is None else JobId.parse(job_id)
    if new_id.model != model:
        raise InvalidRequest(
            f"The id '{job_id}' is of the model '{new_id.model}', not of '{model}': write {model}/{new_id.slug}",
            field="id",
        )
    if not 0 <= delay <= MAX_DEADLINE_S:
        raise InvalidRequest(f"delay={delay}: seconds from now, 0 or more", field="delay")
    if deadline is not None and not 0 < deadline <= MAX_DEADLINE_S:
        raise InvalidRequest(f"deadline={deadline}: seconds from now, more than 0", field="deadline")
    sampling = {key: options.pop(key) for key in ("temperature", "top_p", "seed") if key in options}
    for key in ("temperature", "top_p"):
        if type(sampling.get(key)) is int:  # 0 and 1 are floats to a person
            sampling[key] = float(sampling[key])
    stop = options.pop("stop", ())
    request = parse_request(
        {
            "prompt": prompt,
            "messages": _listed(messages),
            "sampling": sampling,
            "stop": [stop] if isinstance(stop, str) else _listed(stop),
            "stop_token_ids": _listed(options.pop("stop_token_ids", ())),
            **options,
        }
    )
    call = Call(GENERATE, (), {"request": request.model_dump(mode="json")}, {}, int(time.time() * 1000))
    digest = request.digest()
    entry = Entry(
        id=str(new_id),
        data=pack_data(call, digest=digest, tenant="", band="normal", lane="any"),
        digest=digest,
        delay_s=delay,
        deadline_s=deadline,
    )
    return Submission(new_id, request, entry, row.max_queued)


def _listed(values: object) -> object:
    """A sequence as a list, its mappings as dicts. Anything else is left for the request's own check to refuse."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        return values
    return [dict(value) if isinstance(value, Mapping) else value for value in values]


def accepted(submission: Submission, answer: Submitted) -> None:
    """Raises IdConflict or QueueFull if the queue did not take the job."""
    if answer is Submitted.CONFLICT:
        raise IdConflict(str(submission.id))
    if answer is Submitted.FULL:
        # Not measured yet: the time in which one job of a usual length ends.
        raise QueueFull(submission.id.model, limit=submission.max_queued, retry_after_s=5.0)
