"""From a job and the engine that ran it to the provenance of its result: the same for a worker and a verification."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

from headpond.provenance import AdapterDigest, Provenance, digest_of_ids
from headpond.requests import JobRequest
from headpond.sampling import Sampling
from headpond_workers.engines.protocol import EngineInfo


def provenance_of(
    info: EngineInfo,
    asked: JobRequest,
    *,
    job_id: str,
    prompt: Seq[int] | None,
    request_digest: str = "",
    model_digest: str = "",
) -> Provenance:
    """prompt: the token ids that the engine was given, before those of earlier attempts; None if it was given none.
    request_digest: from the job's entry. model_digest: of the version that is served; '' if it is none."""
    embeds = asked.input is not None
    return Provenance(
        engine=info.engine,
        fingerprint=info.fingerprint,
        weights_digest=info.weights_digest or None,
        model_digest=model_digest or None,
        adapters=adapters_of(info, asked),
        request_digest=request_digest or None,
        prompt_digest=None if prompt is None else _digest(prompt),
        sampling={} if embeds else applied(asked.sampling),
        seed=None if embeds else asked.seed_for(job_id),
        upstream_model=info.upstream_model or None,
    )


def adapters_of(info: EngineInfo, asked: JobRequest) -> tuple[AdapterDigest, ...]:
    """Those that a request has applied. digest: None for one that the engine does not know, or not by its digest."""
    if asked.adapter is None:
        return ()
    digests = dict(zip(info.adapters, info.adapter_digests, strict=False))
    return (AdapterDigest(asked.adapter, digests.get(asked.adapter)),)


def applied(sampling: Sampling) -> dict[str, Any]:
    """How tokens were chosen: temperature and top_p, and what else was not at its default. An engine refuses a setting
    that it lacks, so what was asked for is what was applied. Values as JSON has them."""
    # One call of pydantic's compiled part: this is done for every job.
    asked = sampling.model_dump(mode="json", exclude_defaults=True)
    asked |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
    asked.pop("seed", None)
    return dict(sorted(asked.items()))


def _digest(ids: Seq[int]) -> str | None:
    try:
        return digest_of_ids(ids)
    except OverflowError:
        # An engine of somebody else's, whose ids are no ids here: its answer is none the worse for it.
        return None
