"""The peer of the step gap: a process that steps the same batch in a bare loop, and only collects ids.

Set-up: {"step_s", "sequences", "most_gaps"}. Request: {"prompts", "max_tokens"}: all prompts at once; the answer is
{"digests": of the ids of each prompt, "times": a stepwise_batch.StepTimes}.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from child import Answer, Serving, serve
from runs import digest_of_tokens
from stepwise_batch import StepTimes, StepwiseBatch, TimedBatch, prompt_ids

from headpond.sampling import Sampling
from headpond_workers.engines.protocol import Sequence


@contextmanager
def bare_loop(setup: dict[str, Any]) -> Iterator[Serving]:
    ended: list[StepTimes] = []
    batch = TimedBatch(
        StepwiseBatch(step_s=setup["step_s"]),
        sequences=setup["sequences"],
        most=setup["most_gaps"],
        ended=ended.append,
    )

    def generate(request: dict[str, Any]) -> Answer:
        digests = _run(batch, request["prompts"], request["max_tokens"])
        return {"digests": digests, "times": asdict(ended.pop())}

    yield generate


def _run(batch: TimedBatch, prompts: list[str], max_tokens: int) -> list[str]:
    ids: dict[object, list[int]] = {}
    for prompt in prompts:
        ids[batch.admit(Sequence(prompt_ids(prompt), (), max_tokens, Sampling(temperature=0.0), seed=0))] = []
    running = len(ids)
    while running:
        for step in batch.step():
            ids[step.handle].extend(step.ids)
            running -= step.finish is not None
    return [digest_of_tokens(made) for made in ids.values()]


if __name__ == "__main__":
    serve(bare_loop)
