"""The producer of `generate`: a process that submits jobs and reads all their streams, with AsyncClient.

Set-up: {"url", "model"}. Request: {"prompts", "max_tokens"}: all prompts at once; see runs.Run for the answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from child import Serving, serve
from runs import Run, digest_of_tokens

from headpond import AsyncClient


@contextmanager
def producer(setup: dict[str, Any]) -> Iterator[Serving]:
    with asyncio.Runner() as runner:
        client = AsyncClient(setup["url"])
        try:
            runner.run(client.models())
            yield lambda request: runner.run(
                _run(client, setup["model"], request["prompts"], request["max_tokens"])
            ).to_answer()
        finally:
            runner.run(client.close())


async def _run(client: AsyncClient, model: str, prompts: list[str], max_tokens: int) -> Run:
    async def one(prompt: str) -> tuple[list[int], float]:
        began = time.monotonic()
        job = await client.submit(model, prompt, max_tokens=max_tokens, temperature=0.0)
        tokens: list[int] = []
        first = 0.0
        async for chunk in job.stream():
            if not tokens:
                first = time.monotonic()
            tokens.extend(chunk.token_ids)
        return tokens, first - began

    began = time.monotonic()
    answers = await asyncio.gather(*(one(prompt) for prompt in prompts))
    seconds = time.monotonic() - began
    return Run(
        seconds=seconds,
        tokens=sum(len(ids) for ids, _ in answers),
        digests=[digest_of_tokens(ids) for ids, _ in answers],
        first_token_s=[first for _, first in answers],
    )


if __name__ == "__main__":
    serve(producer)
