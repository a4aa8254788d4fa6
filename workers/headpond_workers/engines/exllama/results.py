"""What exllamav2's and exllamav3's generators report of one job in one iteration, as a Step.

Both give a dict a job and iteration. `text` in it is lossy for UTF-8 and not used. Ids stand in `token_ids`, shape
(1, n), once the text they belong to is complete; at a stop token they stand in `held` instead, those of an
incomplete character and the stop token itself, which comes last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headpond.errors import EngineError, EngineOutOfMemory, SequenceFailed
from headpond.jobs import FinishReason
from headpond_workers.engines.exllama.batch_generator import Step
from headpond_workers.engines.exllama.memory import is_out_of_memory

_FINISH = {
    "stop_token": FinishReason.STOP,
    "stop_string": FinishReason.STOP,
    "end_filter": FinishReason.STOP,
    "max_new_tokens": FinishReason.LENGTH,
}
_DETAILS = {
    "time_enqueued": "enqueued_s",
    "time_prefill": "prefill_s",
    "time_generate": "generate_s",
    "cached_tokens": "cached_tokens",
    "accepted_draft_tokens": "accepted_draft_tokens",
    "rejected_draft_tokens": "rejected_draft_tokens",
}


def step_of(result: Mapping[str, Any], handle: object) -> Step | None:
    """The step that one result stands for; None if it brings nothing: started, prefill, or held ids.

    A job that its generator gave up on (exllamav3 alone says so) becomes a Step with EngineOutOfMemory or
    SequenceFailed. Raises EngineError for a result that neither package makes of the jobs that headpond gives it.
    """
    stage = result["stage"]
    if stage == "error":
        return Step(handle, error=_failure(result["error"]))
    if stage != "streaming":
        return None
    ids = _ids(result)
    if not result["eos"]:
        return Step(handle, ids) if ids else None
    reason = result["eos_reason"]
    if reason not in _FINISH:
        raise EngineError(f"The generator ended a job for the reason {reason!r}, which headpond does not know.")
    if reason == "stop_token":
        ids += _ids(result.get("held", {}))
        if not ids or ids[-1] != result["eos_triggering_token_id"]:
            raise EngineError("The generator met a stop token and did not hand it over as the last one held.")
        ids = ids[:-1]
    details = {name: float(result[key]) for key, name in _DETAILS.items() if key in result}
    return Step(handle, ids, _FINISH[reason], details)


def _ids(part: Mapping[str, Any]) -> tuple[int, ...]:
    tokens = part.get("token_ids")
    return () if tokens is None else tuple(tokens[0].tolist())


def _failure(cause: Exception) -> EngineError:
    failure: EngineError
    if is_out_of_memory(cause):
        failure = EngineOutOfMemory(f"The device has no memory left for this sequence ({cause}).")
    else:
        failure = SequenceFailed(f"The engine gave up on this sequence ({type(cause).__name__}: {cause}).")
    failure.__cause__ = cause
    return failure
