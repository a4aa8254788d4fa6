"""32 jobs together on one model: tokens a second of the engine, beside exllamav2's generator called directly.

Both load the same table and answer the same prompts. They take turns, each with a load of its own, and turn about
which of them begins, so that neither has the better hour. What was measured is printed and written to
build/gpu-throughput.json.
"""

from __future__ import annotations

import importlib.metadata
import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from engine_conformance import GREEDY, Attempt, prompt_of, sequence
from gpu.model_under_test import ModelUnderTest
from headpond_workers.engines.exllamav2.engine import ExLlamaV2Engine
from headpond_workers.engines.exllamav2.sampling import settings_of
from headpond_workers.engines.formats.hf_vocabulary import read_hf_vocabulary

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

REPORT = Path(__file__).parents[2] / "build" / "gpu-throughput.json"
JOBS = 32
TOKENS = 256
PAIRS = 4
LEAST_SHARE = 0.8
"""A loop that costs a fifth of the tokens is a defect, whatever the device."""
KEYS: dict[str, Any] = {"slots": JOBS, "context_tokens": 512, "chunk_tokens": 512}


def of_the_engine(model: ModelUnderTest, prompts: Sequence[tuple[int, ...]]) -> float:
    """Tokens a second."""
    with model.loaded(**KEYS) as engine:
        attempts = [Attempt(engine, sequence(prompt, max_tokens=TOKENS)) for prompt in prompts]
        with ThreadPoolExecutor(JOBS) as pool:
            began = time.perf_counter()
            for running in [pool.submit(attempt.run) for attempt in attempts]:
                running.result()
            seconds = time.perf_counter() - began
    made = [len(attempt.raw) for attempt in attempts]
    assert sum(made) >= JOBS * TOKENS // 2, "the answers ended too early to measure anything"
    return sum(made) / seconds


def prompts_of(engine: ExLlamaV2Engine) -> list[tuple[int, ...]]:
    # The number first: else the jobs would share the pages of one prompt.
    return [prompt_of(engine, f"{number}. Tell me a long story about a river.") for number in range(JOBS)]


def of_exllamav2(model: ModelUnderTest, prompts: Sequence[tuple[int, ...]]) -> float:
    """Tokens a second of ExLlamaV2DynamicGenerator, driven as its own examples do."""
    loaded = model.load_model(**KEYS)
    try:
        import torch
        from exllamav2.generator import ExLlamaV2DynamicJob

        end_ids = sorted(read_hf_vocabulary(model.folder).end_ids)
        generator = loaded.new_generator()
        generator.warmup()
        began = time.perf_counter()
        for prompt in prompts:
            generator.enqueue(
                ExLlamaV2DynamicJob(
                    input_ids=torch.tensor([prompt]),
                    max_new_tokens=TOKENS,
                    gen_settings=settings_of(GREEDY),
                    stop_conditions=end_ids,
                )
            )
        made = 0
        while generator.num_remaining_jobs():
            made += sum(result["token_ids"].shape[-1] for result in generator.iterate() if "token_ids" in result)
        seconds = time.perf_counter() - began
        # Its threads would stay until the process ends, beside those of the pairs that follow.
        generator.sampling_pool.shutdown()
    finally:
        loaded.unload()
    assert made > 0
    return made / seconds


@pytest.mark.timeout(3600)
def test_32_jobs_together_lose_little_to_the_loop(model: ModelUnderTest) -> None:
    import torch

    with model.loaded() as engine:
        prompts = prompts_of(engine)
    engine_rates: list[float] = []
    direct_rates: list[float] = []
    for pair in range(PAIRS):
        turns = [(engine_rates, of_the_engine), (direct_rates, of_exllamav2)]
        for rates, measure in turns if pair % 2 == 0 else reversed(turns):
            rates.append(measure(model, prompts))
    shares = [engine / direct for engine, direct in zip(engine_rates, direct_rates, strict=True)]
    report = {
        "device": torch.cuda.get_device_name(0),
        "devices": torch.cuda.device_count(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "exllamav2": importlib.metadata.version("exllamav2"),
        "model": model.folder.name,
        "weight_bytes": model.weight_bytes,
        "jobs": JOBS,
        "max_tokens": TOKENS,
        "engine_tokens_per_s": [round(rate, 1) for rate in engine_rates],
        "exllamav2_tokens_per_s": [round(rate, 1) for rate in direct_rates],
        "share": round(statistics.median(shares), 4),
    }
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"\n{REPORT.name}: {json.dumps(report)}")
    assert report["share"] >= LEAST_SHARE
