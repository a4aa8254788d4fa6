"""The three functions of flash-attn 2.7 that exllamav2 calls, in plain torch with float64 inside.

Shapes: q (batch, tokens, heads, head_dim); k and v (batch, tokens, kv_heads, head_dim). The causal mask is aligned to
the bottom right: the last query sees all keys.
"""

from __future__ import annotations

from typing import Any

import torch

VERSION = "2.7.4"
PAGE_MULTIPLE = 256
UNLIMITED = (-1, -1)


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = UNLIMITED,
    softcap: float = 0.0,
) -> torch.Tensor:
    """Attention of each row of the batch."""
    _no_dropout(dropout_p)
    rows = range(q.shape[0])
    return torch.stack([_attend(q[b], k[b], v[b], softmax_scale, causal, window_size, softcap) for b in rows])


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = UNLIMITED,
    softcap: float = 0.0,
) -> torch.Tensor:
    """Attention of sequences that lie behind each other; cu_seqlens are their bounds, from 0."""
    _no_dropout(dropout_p)
    of_q, of_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    parts = []
    for n in range(len(of_q) - 1):
        queries, keys = slice(of_q[n], of_q[n + 1]), slice(of_k[n], of_k[n + 1])
        parts.append(_attend(q[queries], k[keys], v[keys], softmax_scale, causal, window_size, softcap))
    return torch.cat(parts)


def flash_attn_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    rotary_cos: torch.Tensor | None = None,
    rotary_sin: torch.Tensor | None = None,
    cache_seqlens: torch.Tensor | int | None = None,
    cache_batch_idx: torch.Tensor | None = None,
    cache_leftpad: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = UNLIMITED,
    softcap: float = 0.0,
) -> torch.Tensor:
    """Attention to a cache, after appending k and v to it where they are given.

    Caches: (batch, tokens, kv_heads, head_dim), or (pages, page_size, kv_heads, head_dim) with a block_table
    (batch, pages of a sequence). cache_seqlens: tokens that each sequence has in the cache before the call.
    """
    for value, name in (
        (rotary_cos, "rotary_cos"),
        (rotary_sin, "rotary_sin"),
        (cache_batch_idx, "cache_batch_idx"),
        (cache_leftpad, "cache_leftpad"),
    ):
        if value is not None:
            raise NotImplementedError(f"flash_attn_with_kvcache: {name} has no CPU stand-in")
    if block_table is not None and k_cache.shape[1] % PAGE_MULTIPLE:
        raise RuntimeError("Paged KV cache block size must be divisible by 256")
    attended = []
    for row in range(q.shape[0]):
        past = _past_tokens(cache_seqlens, row, k_cache)
        pages = torch.tensor([row]) if block_table is None else block_table[row].long()
        total = past
        if k is not None and v is not None:
            total = past + k.shape[1]
            positions = torch.arange(past, total)
            page_size = k_cache.shape[1]
            where = (pages[positions // page_size], positions % page_size)
            k_cache[where] = k[row]
            v_cache[where] = v[row]
        keys, values = _gather(k_cache, pages, total), _gather(v_cache, pages, total)
        attended.append(_attend(q[row], keys, values, softmax_scale, causal, window_size, softcap))
    return torch.stack(attended)


ENTRIES = (flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache)


def _past_tokens(cache_seqlens: Any, row: int, cache: torch.Tensor) -> int:
    if cache_seqlens is None:
        return int(cache.shape[1])
    return int(cache_seqlens[row]) if isinstance(cache_seqlens, torch.Tensor) else int(cache_seqlens)


def _gather(cache: torch.Tensor, pages: torch.Tensor, tokens: int) -> torch.Tensor:
    """The first `tokens` of a sequence that lies in `pages`: (tokens, kv_heads, head_dim)."""
    used = -(-tokens // cache.shape[1])
    return cache[pages[:used]].flatten(0, 1)[:tokens]


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float | None,
    causal: bool,
    window: tuple[int, int],
    softcap: float,
) -> torch.Tensor:
    """q (Q, heads, head_dim), k and v (K, kv_heads, head_dim); returns the shape and type of q.

    In float64, whose rounding does not reach the result: that of float32 differs with the number of queries and with
    the processor, as they choose the kernel, and shows in the last bit of an fp16 now and then.
    """
    queries, heads, head_dim = q.shape
    keys, kv_heads, _ = k.shape
    grouped = q.double().view(queries, kv_heads, heads // kv_heads, head_dim).permute(1, 2, 0, 3)
    scores = grouped @ k.double().permute(1, 2, 0).unsqueeze(1)
    scores *= head_dim**-0.5 if scale is None else scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    hidden = _mask(queries, keys, causal, window)
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    mixed = scores.softmax(-1) @ v.double().permute(1, 0, 2).unsqueeze(1)
    return mixed.permute(2, 0, 1, 3).reshape(queries, heads, head_dim).to(q.dtype)


def _mask(queries: int, keys: int, causal: bool, window: tuple[int, int]) -> torch.Tensor | None:
    """True (Q, K) where a query does not see a key; None if all see all."""
    before, after = window
    if (not causal or queries == 1) and before < 0 and after < 0:
        return None
    query_at = torch.arange(queries).view(-1, 1) + (keys - queries)
    key_at = torch.arange(keys).view(1, -1)
    hidden = torch.zeros(queries, keys, dtype=torch.bool)
    if causal:
        hidden |= key_at > query_at
    if before >= 0:
        hidden |= key_at < query_at - before
    if after >= 0:
        hidden |= key_at > query_at + after
    return hidden


def _no_dropout(dropout_p: float) -> None:
    if dropout_p:
        raise NotImplementedError("flash-attn: dropout has no CPU stand-in")
