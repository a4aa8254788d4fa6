"""A process with exllamav2's real package on the CPU harness of the tests, as one of two sides.

Set-up: {"side", "checkpoint", "context_tokens", "slots"}. Side "headpond" calls ExLlamaV2Engine.generate from one
thread a prompt. Side "direct" loads the same model with the same settings, and calls iterate() of exllamav2's own
generator in a bare loop. Request: {"prompts", "max_tokens"}: all prompts at once; see runs.Run for the answer. Prompts
are plain text, and are ids before the time begins.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

from child import BenchmarkError, Serving, serve
from direct_engine import call_together
from machine import ROOT
from runs import Run, digest_of_tokens

from headpond.sampling import Sampling
from headpond.tables import ExLlamaV2Model
from headpond_workers.models.prepare import digest_cache

GREEDY = Sampling(temperature=0.0)
CHUNK_TOKENS = 256


class Side(StrEnum):
    HEADPOND = "headpond"
    DIRECT = "direct"


Runs = Callable[[list[str], int], Run]


@contextmanager
def side(setup: dict[str, Any]) -> Iterator[Serving]:
    _install_harness()
    settings = ExLlamaV2Model(
        engine="exllamav2",
        path=Path(setup["checkpoint"]),
        context_tokens=setup["context_tokens"],
        slots=setup["slots"],
        chunk_tokens=CHUNK_TOKENS,
    )
    with _SIDES[Side(setup["side"])](settings) as run:
        yield lambda request: run(request["prompts"], request["max_tokens"]).to_answer()


def _install_harness() -> None:
    # Before torch starts any thread of its own. More of them would fight over the cores with the other side.
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(ROOT / "tests"))
    from exllamav2_cpu import harness

    try:
        harness.install()
    except RuntimeError as error:
        raise BenchmarkError(str(error)) from error


@contextmanager
def _headpond(settings: ExLlamaV2Model) -> Iterator[Runs]:
    from headpond_workers.engines.exllamav2.engine import ExLlamaV2Engine

    engine = ExLlamaV2Engine(settings, digest_cache=digest_cache())
    with ThreadPoolExecutor(settings.slots) as threads:

        def run(prompts: list[str], max_tokens: int) -> Run:
            ids = {prompt: engine.encode(prompt) for prompt in prompts}
            return call_together(engine, threads, prompts, max_tokens, ids_of=ids.__getitem__)

        yield run
    engine.close()


@contextmanager
def _direct(settings: ExLlamaV2Model) -> Iterator[Runs]:
    from headpond_workers.engines.exllamav2.loading import load_model
    from headpond_workers.engines.formats.checkpoint_folder import check_checkpoint
    from headpond_workers.engines.formats.hf_vocabulary import read_hf_vocabulary

    folder = check_checkpoint(settings.local_path, digest_cache=digest_cache())
    vocabulary = read_hf_vocabulary(folder.path)
    loaded = load_model(settings, folder, {}, on_layer=lambda _done, _total: None)
    generator = loaded.new_generator()
    end_ids = sorted(vocabulary.end_ids)

    # As headpond's loop: in a thread of its own, whose memory the C library handles unlike the first thread's.
    with ThreadPoolExecutor(1) as thread:

        def run(prompts: list[str], max_tokens: int) -> Run:
            ids = [vocabulary.encode(prompt) for prompt in prompts]
            return thread.submit(_iterate, generator, ids, max_tokens, end_ids).result()

        yield run
    loaded.unload()


def _iterate(generator: Any, prompts: list[list[int]], max_tokens: int, end_ids: list[int]) -> Run:
    """What exllamav2's own examples do, with the sampling that headpond asks for."""
    import torch
    from exllamav2.generator import ExLlamaV2DynamicJob

    from headpond_workers.engines.exllamav2.sampling import settings_of

    began = time.monotonic()
    ids: dict[Any, list[int]] = {}
    first_s: dict[Any, float] = {}
    for prompt in prompts:
        job = ExLlamaV2DynamicJob(
            input_ids=torch.tensor([prompt], dtype=torch.long),
            max_new_tokens=max_tokens,
            gen_settings=settings_of(GREEDY),
            seed=0,
            stop_conditions=end_ids,
        )
        generator.enqueue(job)
        ids[job] = []
    while generator.num_remaining_jobs():
        for result in generator.iterate():
            if "token_ids" in result:
                ids[result["job"]].extend(result["token_ids"][0].tolist())
                first_s.setdefault(result["job"], time.monotonic() - began)
    return Run(
        seconds=time.monotonic() - began,
        tokens=sum(map(len, ids.values())),
        digests=[digest_of_tokens(made) for made in ids.values()],
        first_token_s=[first_s[job] for job in ids],
    )


_SIDES = {Side.HEADPOND: _headpond, Side.DIRECT: _direct}


if __name__ == "__main__":
    serve(side)
