"""The last check: the job was run once more, alone, and its tokens or vectors are compared with the stored ones."""

from __future__ import annotations

from headpond.bundle import Bundle
from headpond.jobs import JobState, Result
from headpond_workers.engines.protocol import Capability
from headpond_workers.replay.run import How, Replay
from headpond_workers.verification.traced_checks import engine_name, why_ended
from headpond_workers.verification.verdicts import Check, Verdict, unknown

FURTHEST = 1e-6
"""Of two numbers of a vector: a result holds them in single precision."""


def rerun_check(result: Result, replay: Replay, bundle: Bundle) -> Check:
    """DIFFERS only where the engine promises the same tokens whatever ran beside them (EXACT_RESUME)."""
    name = "tokens" if result.embeddings is None else "vectors"
    traced = replay.traced
    if traced is None:
        return unknown(name, "the model could not be loaded")
    can = set(traced.capabilities)
    if result.state is not JobState.FINISHED:
        return Check(name, Verdict.LEFT_OUT, reason=f"the job {result.state.value}: it has no answer to compare")
    if not can & {Capability.SEEDED.value, Capability.EXACT_RESUME.value}:
        return Check(
            name,
            Verdict.LEFT_OUT,
            reason=f"not run again: {engine_name(replay)} does not promise the same tokens twice",
        )
    if traced.refused:
        return unknown(name, "the request could not be rendered")
    if replay.how is How.REFUSED:
        return Check(name, Verdict.LEFT_OUT, reason="not run again: this is not the model that made them")
    if replay.how is not How.FINISHED:
        return unknown(name, why_ended(replay))
    if result.embeddings is not None:
        return _vectors(replay, bundle)
    difference = _difference(result, replay)
    made = f"{len(replay.token_ids)} tokens, {replay.reason}"
    stored = f"{len(result.token_ids)} tokens, {result.finish_reason.value}"
    if not difference:
        return Check(name, Verdict.SAME, stored, made)
    if Capability.EXACT_RESUME.value in can:
        return Check(name, Verdict.DIFFERS, stored, made, difference)
    return Check(
        name,
        Verdict.UNKNOWN,
        stored,
        made,
        f"{difference}. {engine_name(replay)} promises the same tokens only to a job that runs alone and in one go",
    )


def _difference(result: Result, replay: Replay) -> str:
    pairs = enumerate(zip(result.token_ids, replay.token_ids, strict=False))
    for at, (stored, made) in pairs:
        if stored != made:
            return f"token {at} is {made} now, and {stored} in the result"
    if len(result.token_ids) != len(replay.token_ids):
        return f"{len(replay.token_ids)} tokens now, and {len(result.token_ids)} in the result"
    if replay.reason != result.finish_reason.value:
        return f"it ends by '{replay.reason}' now, and by '{result.finish_reason.value}' in the result"
    return ""


def _vectors(replay: Replay, bundle: Bundle) -> Check:
    made = replay.embedded
    if made is None or bundle.embeddings is None:
        return unknown("vectors", "no vectors came of it")
    stored = f"{len(bundle.embeddings.vectors())} of {bundle.embeddings.dimensions} numbers"
    found = f"{made.texts} of {made.dimensions} numbers"
    if made.furthest is None or made.furthest > FURTHEST:
        told = "of another shape" if made.furthest is None else f"a number is {made.furthest:.2g} away"
        return Check("vectors", Verdict.DIFFERS, stored, found, told)
    return Check("vectors", Verdict.SAME, stored, found)
