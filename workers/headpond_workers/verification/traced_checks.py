"""What the loaded engine says of itself, beside what the result names: weights, adapters, fingerprint, prompt, text."""

from __future__ import annotations

from collections.abc import Iterator

from headpond.provenance import AdapterDigest, Provenance
from headpond_workers.replay.run import How, Replay, While
from headpond_workers.verification.verdicts import Check, Verdict, compare, unknown


def traced_checks(made_by: Provenance, replay: Replay, *, embeds: bool) -> Iterator[Check]:
    """replay: of a process that was asked to trace."""
    traced = replay.traced
    if traced is None:
        reason = why_ended(replay)
        yield unknown("weights", reason, stored=made_by.weights_digest)
        yield unknown("fingerprint", reason, stored=made_by.fingerprint)
        if not embeds:
            yield unknown("prompt", reason, stored=made_by.prompt_digest)
        return
    now = Provenance.of_fields(traced.provenance)
    yield compare(
        "weights", made_by.weights_digest, now.weights_digest, reason="this engine does not say what it loads"
    )
    yield _adapters(made_by.adapters, now.adapters)
    yield compare("fingerprint", made_by.fingerprint, now.fingerprint)
    if not embeds:
        yield compare("prompt", made_by.prompt_digest, now.prompt_digest, reason=traced.refused or "it has no ids here")
    if traced.text_alike is not None:
        yield _text(alike=traced.text_alike, same_engine=made_by.fingerprint == now.fingerprint)


def why_ended(replay: Replay) -> str:
    """Why a process of a verification came to no end, in words."""
    doing = {
        While.LOADING: "while the model was loading",
        While.PREFILL: "before the first token",
        While.GENERATING: f"after {replay.made} tokens",
    }[replay.during]
    match replay.how:
        case How.FAILED:
            return replay.error
        case How.DIED:
            return f"the process died of {replay.signal} {doing}"
        case How.STALLED:
            return f"the process made no step for stall_timeout_s {doing}, and was killed"
        case How.LEFT:
            return f"the process left with status {replay.status} {doing}"
        case _:
            return replay.error or "it came to no end"


def engine_name(replay: Replay) -> str:
    return replay.engine or "the engine"


def _adapters(stored: tuple[AdapterDigest, ...], now: tuple[AdapterDigest, ...]) -> Check:
    if not stored and not now:
        return Check("adapters", Verdict.LEFT_OUT, reason="none was applied")
    if any(adapter.digest is None for adapter in stored):
        return unknown("adapters", "the result does not name the digest of its adapter", stored=_shown(stored))
    found = _shown(now)
    if _shown(stored) != found and any(adapter.digest is None for adapter in now):
        return Check("adapters", Verdict.DIFFERS, _shown(stored), found, "the model has no such adapter now")
    return compare("adapters", _shown(stored), found)


def _shown(adapters: tuple[AdapterDigest, ...]) -> str:
    return ", ".join(f"{adapter.name} {adapter.digest or '-'}" for adapter in adapters)


def _text(*, alike: bool, same_engine: bool) -> Check:
    if alike:
        return Check("text", Verdict.SAME)
    if not same_engine:
        return unknown("text", "this model has other tokens than the one that made them")
    return Check("text", Verdict.DIFFERS, reason="the stored text is not that of the stored tokens")
