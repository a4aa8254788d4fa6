"""The peer of `generate`: a process that loads the engine and calls it, with nothing in between.

Set-up: {"config", "model"}: a headpond.toml and a model of it, loaded as a worker loads it. Request: {"prompts",
"max_tokens"}: all prompts at once, a thread each; see runs.Run for the answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from child import Answer, Serving, serve
from runs import Run, digest_of_tokens

from headpond.requests import Message
from headpond.sampling import Sampling
from headpond.settings import load_settings
from headpond_workers.engines.protocol import Engine, Sequence, Verdict
from headpond_workers.loading import load_engine


@contextmanager
def direct(setup: dict[str, Any]) -> Iterator[Serving]:
    settings = load_settings(Path(setup["config"])).model(setup["model"])
    engine = load_engine(settings, workers_on_host=1)
    with ThreadPoolExecutor(engine.info.slots) as threads:

        def generate(request: dict[str, Any]) -> Answer:
            return call_together(
                engine, threads, request["prompts"], request["max_tokens"], ids_of=lambda prompt: _ids(engine, prompt)
            ).to_answer()

        yield generate


def _ids(engine: Engine, prompt: str) -> list[int]:
    return engine.render((Message(role="user", content=prompt),))


def call_together(
    engine: Engine,
    threads: ThreadPoolExecutor,
    prompts: list[str],
    max_tokens: int,
    *,
    ids_of: Callable[[str], Seq[int]],
) -> Run:
    """Call `generate` once for each prompt, all at once, in a thread each."""
    together = threading.Barrier(len(prompts) + 1)

    def one(prompt: str) -> tuple[list[int], float]:
        together.wait()
        # A worker makes ids of a prompt too, within what is measured.
        ids = ids_of(prompt)
        tokens: list[int] = []
        first = 0.0

        def emit(new: Seq[int]) -> Verdict:
            nonlocal first
            if new and not tokens:
                first = time.monotonic()
            tokens.extend(new)
            return Verdict.GO

        sequence = Sequence(tuple(ids), (), max_tokens, Sampling(temperature=0.0), seed=0)
        began = time.monotonic()
        engine.generate(sequence, emit)
        return tokens, first - began

    calls = [threads.submit(one, prompt) for prompt in prompts]
    began = time.monotonic()
    together.wait()
    answers = [call.result() for call in calls]
    seconds = time.monotonic() - began
    return Run(
        seconds=seconds,
        tokens=sum(len(ids) for ids, _ in answers),
        digests=[digest_of_tokens(ids) for ids, _ in answers],
        first_token_s=[first for _, first in answers],
    )


if __name__ == "__main__":
    serve(direct)
