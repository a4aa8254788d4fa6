"""The forward pass of the stand-in: the next token's logits follow from all ids before it, as the cache holds them.

Instead of keys and values a page of the cache keeps the ids that were run through it. A page that is stale, moved,
or shared where it must not be so gives other logits, and shows in the answer.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from exllamav3_cpu.calls import Calls

PAGE_TOKENS = 256

PassListener = Callable[[str, list[int]], None]

before_pass: list[PassListener] = []
"""Called with "prefill" or "decode", and all ids of a row, before a row's pass; may raise, as a kernel would."""
spoiled: list[int] = []
"""A row that holds any of these ids gets logits that are no numbers."""


def logits_after(ids: list[int], vocab_size: int) -> torch.Tensor:
    """Shape (vocab_size,), float32: decided by the ids alone."""
    if not set(spoiled).isdisjoint(ids):
        return torch.full((vocab_size,), float("nan"))
    seed = zlib.crc32(torch.tensor(ids, dtype=torch.int32).numpy().tobytes())
    return torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed)) * 2


def greedy(prompt: list[int], wanted: int, *, end_ids: frozenset[int], vocab_size: int) -> list[int]:
    """What a greedy answer must be."""
    ids = list(prompt)
    while len(ids) < len(prompt) + wanted:
        following = int(logits_after(ids, vocab_size).half().argmax())
        if following in end_ids:
            break
        ids.append(following)
    return ids[len(prompt) :]


def install(exllamav3: Any, calls: Calls) -> None:
    """Give the package's Model and Cache the stand-in's pass, and torch the semblance of a device.

    calls: what is replaced here is checked against the signature of what was there.
    """
    loading, warming = (inspect.signature(getattr(exllamav3.Model, name)) for name in ("load_gen", "warmup"))

    def load_gen(self: Any, *arguments: Any, **options: Any) -> Iterator[tuple[int, int]]:
        calls.check("Model.load_gen", loading, self, *arguments, **options)
        for cache in (reference() for reference in self.cache_weakrefs.values()):
            cache.held_ids = torch.full((cache.max_num_tokens // PAGE_TOKENS, PAGE_TOKENS), -1)
            cache.initialized = True
        self.output_device = torch.device("cpu")
        if options["callback"] is not None:
            for done in range(len(self.modules)):
                options["callback"](done + 1, len(self.modules))
                yield done + 1, len(self.modules)

    def warmup(self: Any, *arguments: Any, **options: Any) -> list[str]:
        calls.check("Model.warmup", warming, self, *arguments, **options)
        return []

    def copy_page(self: Any, target: Any, from_page: int, to_page: int, tokens: int) -> None:
        target.held_ids[to_page, :tokens] = self.held_ids[from_page, :tokens]

    def prefill(self: Any, input_ids: torch.Tensor, params: dict[str, Any]) -> None:
        for row in range(input_ids.shape[0]):
            _run("prefill", input_ids, params, row)

    def forward(self: Any, input_ids: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
        rows = [
            [logits_after(history, self.config.vocab_size) for history in _run("decode", input_ids, params, row)]
            for row in range(input_ids.shape[0])
        ]
        return torch.stack([torch.stack(row) for row in rows]).half()

    exllamav3.Model.load_gen = load_gen
    exllamav3.Model.prefill = prefill
    exllamav3.Model.forward = forward
    exllamav3.Model.warmup = warmup
    exllamav3.Cache.copy_page = copy_page
    exllamav3.Cache.get_all_tensors = lambda self: [self.held_ids]
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.empty_cache = lambda: None
    torch.cuda.is_available = lambda: True
    for name in ("empty", "zeros"):
        setattr(torch, name, _without_pinning(getattr(torch, name)))


def _run(stage: str, input_ids: torch.Tensor, params: dict[str, Any], row: int) -> list[list[int]]:
    """Run one row of new ids through the cache. Returns what lies before each next token."""
    held, table = params["cache"].held_ids, params["block_table"][row].tolist()
    start, new = int(params["cache_seqlens"][row]), input_ids[row].tolist()

    def ids_before(position: int) -> list[int]:
        pages = table[: -(-position // PAGE_TOKENS)]
        return [int(token) for page in pages for token in held[page].tolist()][:position]

    for listener in before_pass:
        listener(stage, ids_before(start) + new)
    for position, token in enumerate(new, start):
        held[table[position // PAGE_TOKENS], position % PAGE_TOKENS] = token
    return [ids_before(position + 1) for position in range(start, start + len(new))] if stage == "decode" else []


def _without_pinning(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def made(*shape: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        return make(*shape, **options)

    return made
