"""From a job's request and the tokens that it has to what an engine is asked: the same for a worker and a replay."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from headpond.errors import PromptTooLong
from headpond.jobs import FinishReason
from headpond.requests import JobRequest
from headpond_workers.detokenizer import Detokenizer
from headpond_workers.engines.protocol import Engine, Finish, Sequence


@dataclass(frozen=True, slots=True)
class Continuation:
    """sequence: for the engine. text: turns its tokens into text, after those of earlier attempts."""

    sequence: Sequence
    text: Detokenizer


def continue_job(
    engine: Engine, asked: JobRequest, prompt: Seq[int], *, prior: tuple[int, ...], prior_text: str, seed: int
) -> Continuation | Finish:
    """What is left to do of a job; a Finish if nothing is.

    prompt: its token ids. prior: ids of earlier attempts, and prior_text what was shown of them.
    Raises PromptTooLong, CapabilityMissing.
    """
    context = engine.info.context_tokens
    if len(prompt) >= context:
        raise PromptTooLong(prompt_tokens=len(prompt), context_tokens=context)
    text = Detokenizer(engine.token_bytes, stop=asked.stop, stop_ids=asked.stop_token_ids, prior=prior)
    if text.prior_text != prior_text:
        # The last attempt cut its last token at a stop string, and was gone before it wrote the end.
        return Finish(FinishReason.STOP)
    left = min(asked.max_tokens, context - len(prompt)) - len(prior)
    if left <= 0:
        return Finish(FinishReason.LENGTH)
    sequence = Sequence(
        prompt=tuple(prompt),
        generated=prior,
        max_tokens=left,
        sampling=asked.sampling,
        seed=seed,
        adapter=asked.adapter,
        constraint=asked.constraint(),
    )
    engine.info.require_for(sequence)
    return Continuation(sequence, text)
