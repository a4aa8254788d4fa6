"""exllamav2 called directly, without headpond's engine. Import it after `harness.install`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import exllamav2
import torch
from exllamav2.generator import ExLlamaV2DynamicGenerator, ExLlamaV2DynamicJob, ExLlamaV2Sampler

CACHES: Mapping[str, Any] = {
    "FP16": exllamav2.ExLlamaV2Cache,
    "Q8": exllamav2.ExLlamaV2Cache_Q8,
    "Q6": exllamav2.ExLlamaV2Cache_Q6,
    "Q4": exllamav2.ExLlamaV2Cache_Q4,
}
CHUNK_TOKENS = 256
CONTEXT_TOKENS = 2048
CACHE_TOKENS = 4096
SLOTS = 4


@dataclass(slots=True)
class Outcome:
    """What one job gave. last: the result that ended it."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    last: dict[str, Any] = field(default_factory=dict)
    stages: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model and its tokenizer; caches and generators are made for it as often as wanted."""

    model: Any
    tokenizer: Any

    def cache(self, kind: str = "FP16", *, tokens: int = CACHE_TOKENS) -> Any:
        return CACHES[kind](self.model, max_seq_len=tokens)

    def generator(self, kind: str = "FP16", *, tokens: int = CACHE_TOKENS, **options: Any) -> Any:
        """A generator over a new cache. options: of ExLlamaV2DynamicGenerator."""
        options.setdefault("max_batch_size", SLOTS if options.get("paged", True) else 1)
        cache = self.cache(kind, tokens=tokens)
        return ExLlamaV2DynamicGenerator(model=self.model, cache=cache, tokenizer=self.tokenizer, **options)

    def encode(self, text: str) -> Any:
        """(1, n) ids; special tokens in the text are taken for what they are."""
        return self.tokenizer.encode(text, encode_special_tokens=True)

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(torch.tensor(ids, dtype=torch.long))
        return text


def configuration(folder: Path, *, context_tokens: int = CONTEXT_TOKENS, chunk_tokens: int = CHUNK_TOKENS) -> Any:
    """An ExLlamaV2Config for a model of that folder."""
    config = exllamav2.ExLlamaV2Config(str(folder))
    config.max_seq_len = context_tokens
    config.max_input_len = chunk_tokens
    config.max_attention_size = chunk_tokens**2
    config.arch_compat_overrides()
    return config


def load(folder: Path, *, gpu_split: Sequence[float] | None = None, context_tokens: int = CONTEXT_TOKENS) -> Loaded:
    """gpu_split: GiB of weights of each device."""
    config = configuration(folder, context_tokens=context_tokens)
    model = exllamav2.ExLlamaV2(config)
    model.load(gpu_split)
    return Loaded(model, exllamav2.ExLlamaV2Tokenizer(config))


def greedy() -> Any:
    return ExLlamaV2Sampler.Settings.greedy()


def hot() -> Any:
    """Flat enough that every random number matters."""
    return ExLlamaV2Sampler.Settings(temperature=3.0, top_k=0, top_p=0.0, min_p=0.0, token_repetition_penalty=1.0)


def job(ids: Any, max_new_tokens: int, settings: Any = None, **options: Any) -> Any:
    """ids: (1, n). settings: greedy if None. options: of ExLlamaV2DynamicJob."""
    return ExLlamaV2DynamicJob(
        input_ids=ids, max_new_tokens=max_new_tokens, gen_settings=settings or greedy(), **options
    )


def run(generator: Any, *jobs: Any) -> list[Outcome]:
    """Run the jobs together to their ends."""
    outcomes = {each: Outcome() for each in jobs}
    for each in jobs:
        generator.enqueue(each)
    while generator.num_remaining_jobs():
        for result in generator.iterate():
            outcome = outcomes[result["job"]]
            outcome.stages.append(result["stage"])
            outcome.text += result.get("text", "")
            if "token_ids" in result:
                outcome.ids += result["token_ids"][0].tolist()
            if result["eos"]:
                outcome.last = result
    return [outcomes[each] for each in jobs]
