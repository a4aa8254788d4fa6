"""A process that keeps a model busy, and counts: as soon as one of its jobs has ended, the next one is submitted.

Set-up: {"url", "model", "prompts", "max_tokens"}: as many jobs at once as there are prompts, of so many tokens each.
The first ones are shorter, each by another length, so that jobs do not end together. Request: {}; answer: {"at_s":
on time.monotonic(), "tokens": that have come so far}.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from child import Answer, Serving, serve

from headpond import AsyncClient

END_TIMEOUT_S = 10.0


class _Steady:
    def __init__(self) -> None:
        self.tokens = 0

    async def run(self, url: str, model: str, prompts: list[str], max_tokens: int) -> None:
        client = AsyncClient(url)
        try:
            async with asyncio.TaskGroup() as tasks:
                for number, prompt in enumerate(prompts, 1):
                    first = max(1, max_tokens * number // len(prompts))
                    tasks.create_task(self._ask(client, model, prompt, first, max_tokens))
        finally:
            await client.close()

    async def _ask(self, client: AsyncClient, model: str, prompt: str, first: int, max_tokens: int) -> None:
        length = first
        while True:
            job = await client.submit(model, prompt, max_tokens=length, temperature=0.0)
            async for chunk in job.stream():
                self.tokens += len(chunk.token_ids)
            length = max_tokens


@contextmanager
def steady_producer(setup: dict[str, Any]) -> Iterator[Serving]:
    steady, loop = _Steady(), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="asking", daemon=True)
    thread.start()
    asking = asyncio.run_coroutine_threadsafe(
        steady.run(setup["url"], setup["model"], setup["prompts"], setup["max_tokens"]), loop
    )

    def count(_request: dict[str, Any]) -> Answer:
        if asking.done():
            asking.result()  # raises what ended it
        return {"at_s": time.monotonic(), "tokens": steady.tokens}

    try:
        yield count
    finally:
        # The process ends now, so nothing has to be put away.
        asking.cancel()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(END_TIMEOUT_S)


if __name__ == "__main__":
    serve(steady_producer)
