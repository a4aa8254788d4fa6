"""The peer of the step gap: a process that steps the same batch in a bare loop, and only collects ids.

Set-up: {"step_s", "sequences", "most_gaps"}. Request: {"prompts", "max_tokens"}: all prompts at once; the answer is
{"run": a runs.Run, "times": a stepwise_batch.StepTimes}.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from child import Answer, Serving, serve
from runs import Run, digest_of_tokens
from stepwise_batch import StepTimes, StepwiseBatch, TimedBatch, prompt_ids

from headpond.jobs import Sampling
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
        run = _run(batch, request["prompts"], request["max_tokens"])
        return {"run": run.to_answer(), "times": ended.pop().to_answer()}

    yield generate


def _run(batch: TimedBatch, prompts: list[str], max_tokens: int) -> Run:
    began = time.monotonic()
    first_s: list[float] = []
    ids: dict[object, list[int]] = {}
    for prompt in prompts:
        ids[batch.admit(Sequence(prompt_ids(prompt), (), max_tokens, Sampling(temperature=0.0), seed=0))] = []
    running = len(ids)
    while running:
        for step in batch.step():
            ids[step.handle].extend(step.ids)
            running -= step.finish is not None
        if not first_s:
            first_s = [time.monotonic() - began] * len(ids)
    return Run(
        seconds=time.monotonic() - began,
        tokens=sum(map(len, ids.values())),
        digests=[digest_of_tokens(made) for made in ids.values()],
        first_token_s=first_s,
    )


if __name__ == "__main__":
    serve(bare_loop)
