"""exllamav2's own generator over the tiny checkpoint, without headpond's loop around it.

`python -m exllamav2_generators TOKENS FILE...` loads each file of keys and values in a process of its own and prints
what came of it: a JSON list of {kind, loaded, cached_tokens, ids}. FILE is KIND=PATH.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from exllamav2_cpu import checkpoints, harness

harness.install()

import torch  # noqa: E402
from exllamav2 import (  # noqa: E402
    ExLlamaV2,
    ExLlamaV2Cache,
    ExLlamaV2Cache_Q4,
    ExLlamaV2Cache_Q6,
    ExLlamaV2Cache_Q8,
    ExLlamaV2Config,
    ExLlamaV2Tokenizer,
)
from exllamav2.generator import ExLlamaV2DynamicGenerator, ExLlamaV2Sampler  # noqa: E402

from exllamav2_cpu.tiny_corpus import STORY  # noqa: E402
from headpond_workers.engines.exllamav2.page_links import linked_job_class  # noqa: E402
from headpond_workers.engines.exllamav2.prefixes import (  # noqa: E402
    PrefixFingerprint,
    fingerprint_of,
    import_prefix,
)

CACHES = {
    "FP16": ExLlamaV2Cache,
    "Q8": ExLlamaV2Cache_Q8,
    "Q6": ExLlamaV2Cache_Q6,
    "Q4": ExLlamaV2Cache_Q4,
}
PAGE_TOKENS = 256
CONTEXT_TOKENS = 2048
CHUNK_TOKENS = 256
WEIGHTS = "5f" * 32
DRAFT_TOKENS = 4


@cache
def model(*, sdpa: bool = True) -> Any:
    config = ExLlamaV2Config(str(checkpoints.tiny()))
    config.max_seq_len = CONTEXT_TOKENS + DRAFT_TOKENS
    config.max_input_len = CHUNK_TOKENS
    config.max_attention_size = CHUNK_TOKENS**2
    config.no_sdpa = not sdpa
    loaded = ExLlamaV2(config)
    loaded.load()
    return loaded


@cache
def tokenizer() -> Any:
    return ExLlamaV2Tokenizer(model().config)


def generator(kind: str = "FP16", *, pages: int = 16, paged: bool = True, draft: bool = False) -> Any:
    """A new one with an empty cache of so many pages; unpaged: of one page as long as all of them."""
    target = model(sdpa=paged)

    def new_cache() -> Any:
        return CACHES[kind](target, max_seq_len=pages * PAGE_TOKENS)

    return ExLlamaV2DynamicGenerator(
        model=target,
        cache=new_cache(),
        tokenizer=tokenizer(),
        max_batch_size=4 if paged else 1,
        paged=paged,
        # The model drafts for itself: every guess is right where the caches are.
        draft_model=target if draft else None,
        draft_cache=new_cache() if draft else None,
        num_draft_tokens=DRAFT_TOKENS,
    )


def story(tokens: int, *, skipped: int = 0) -> tuple[int, ...]:
    """Ids of the text that the checkpoint goes on with for ever."""
    ids = tokenizer().encode(STORY * (2 + (tokens + skipped) // 60))[0].tolist()
    return tuple(ids[skipped : skipped + tokens])


@dataclass(frozen=True)
class Answer:
    ids: tuple[int, ...]
    cached_tokens: int
    accepted_draft_tokens: int


def start(generator: Any, ids: tuple[int, ...], *, new: int = 12, seed: int = 1) -> Any:
    """Queue a job at a temperature at which the answer hangs on every logit and every draw."""
    settings = ExLlamaV2Sampler.Settings(temperature=3.0, top_k=0, top_p=0.0, token_repetition_penalty=1.0)
    job = linked_job_class()(
        input_ids=torch.tensor([ids], dtype=torch.long), max_new_tokens=new, seed=seed, gen_settings=settings
    )
    generator.enqueue(job)
    return job


def finish(generator: Any, *jobs: Any) -> list[Answer]:
    """Step until all jobs have ended; the answers of `jobs`, from this call on."""
    ids: dict[Any, list[int]] = {job: [] for job in jobs}
    ends: dict[Any, dict[str, Any]] = {}
    while generator.num_remaining_jobs():
        for result in generator.iterate():
            if "token_ids" in result:
                ids.setdefault(result["job"], []).extend(result["token_ids"][0].tolist())
            if result["eos"]:
                ends[result["job"]] = result
    return [
        Answer(tuple(ids[job]), ends[job]["cached_tokens"], ends[job].get("accepted_draft_tokens", 0)) for job in jobs
    ]


def answer(generator: Any, ids: tuple[int, ...], *, new: int = 12, seed: int = 1) -> Answer:
    return finish(generator, start(generator, ids, new=new, seed=seed))[0]


def fingerprint(generator: Any, **changes: Any) -> PrefixFingerprint:
    draft_digest = WEIGHTS if generator.draft_model is not None else None
    return fingerprint_of(generator, weights_digest=WEIGHTS, draft_digest=draft_digest, **changes)


def main(tokens: int, files: list[str]) -> None:
    outcomes = []
    for kind, _, path in (each.partition("=") for each in files):
        fresh = generator(kind)
        loaded = import_prefix(fresh, Path(path), fingerprint=fingerprint(fresh))
        found = answer(fresh, story(tokens))
        outcomes.append({"kind": kind, "loaded": loaded, "cached_tokens": found.cached_tokens, "ids": list(found.ids)})
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
