"""The KV cache's kernels: quantised storage, page moves, matching of prefixes. In plain torch.

Keys and values are quantised in groups of 32 along head_dim, each with an fp16 scale. Unlike the real kernels there
is no Hadamard rotation before it: sizes and shapes are the same, the stored bytes and the error are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch

GROUP = 32
_BITS = {4: (4, 4), 6: (8, 4), 8: (8, 8)}
"""Cache width -> bits of keys and of values. What exllamav2 calls Q6 is 8-bit keys and 4-bit values."""


class _Span(NamedTuple):
    row: int
    tokens: slice


def fp16_to_q_kv(
    k_in: torch.Tensor,
    k_out: torch.Tensor,
    k_scales: torch.Tensor,
    v_in: torch.Tensor,
    v_out: torch.Tensor,
    v_scales: torch.Tensor,
    batch_size: int,
    offset: int,
    width: int,
    page_size: int,
    cache_seqlens: torch.Tensor,
    block_table: torch.Tensor,
    wbits: int,
) -> None:
    """Quantise what the last forward pass wrote. Tensors (batch, tokens, heads, head_dim), all in place.

    Unpaged: tokens offset to offset + width of each row. Paged: `width` tokens after each sequence's cache_seqlens.
    """
    k_bits, v_bits = _BITS[wbits]
    for row, tokens in _spans(batch_size, offset, width, page_size, cache_seqlens, block_table, new=True):
        k_out[row, tokens], k_scales[row, tokens] = _quantise(k_in[row, tokens], k_bits)
        v_out[row, tokens], v_scales[row, tokens] = _quantise(v_in[row, tokens], v_bits)


def q_to_fp16_kv(
    k_in: torch.Tensor,
    k_out: torch.Tensor,
    k_scales: torch.Tensor,
    v_in: torch.Tensor,
    v_out: torch.Tensor,
    v_scales: torch.Tensor,
    batch_size: int,
    offset: int,
    width: int,
    page_size: int,
    cache_seqlens: torch.Tensor,
    block_table: torch.Tensor,
    wbits: int,
) -> None:
    """The reverse. Paged: all tokens of each sequence before its cache_seqlens."""
    k_bits, v_bits = _BITS[wbits]
    for row, tokens in _spans(batch_size, offset, width, page_size, cache_seqlens, block_table, new=False):
        k_out[row, tokens] = _dequantise(k_in[row, tokens], k_scales[row, tokens], k_bits)
        v_out[row, tokens] = _dequantise(v_in[row, tokens], v_scales[row, tokens], v_bits)


def cache_rotate(cache: torch.Tensor, order: torch.Tensor, temp: torch.Tensor) -> None:
    """Move whole pages: page order[i] receives page order[i + 1], the last one the first. cache (pages, ...)."""
    pages = [int(page) for page in order.tolist()]
    kept = temp.view(-1)
    kept.copy_(cache[pages[0]])
    for target, source in pairwise(pages):
        cache[target].copy_(cache[source])
    cache[pages[-1]].copy_(kept)


def count_match(a: torch.Tensor, b: torch.Tensor, max_a: int) -> int:
    """How many leading ids a (1, n) and b (1, m) share, at most max_a."""
    compared = min(int(max_a), b.shape[1], a.shape[1])
    differing = (a[0, :compared] != b[0, :compared]).nonzero()
    return int(differing[0, 0]) if len(differing) else compared


def _quantise(values: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    groups = values.float().unflatten(-1, (-1, GROUP))
    largest = 2 ** (bits - 1) - 1
    scales = (groups.abs().amax(-1) / largest).half()
    steps = (groups / scales.float().clamp(min=1e-8).unsqueeze(-1)).round().clamp(-largest, largest)
    stored = steps.add(largest + 1).flatten(-2).byte()
    if bits == 4:
        stored = stored[..., 0::2] | (stored[..., 1::2] << 4)
    return stored, scales


def _dequantise(stored: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    if bits == 4:
        stored = torch.stack((stored & 15, stored >> 4), -1).flatten(-2)
    steps = (stored.float() - 2 ** (bits - 1)).unflatten(-1, (-1, GROUP))
    return (steps * scales.float().unsqueeze(-1)).flatten(-2).half()


def _spans(
    batch_size: int,
    offset: int,
    width: int,
    page_size: int,
    cache_seqlens: torch.Tensor,
    block_table: torch.Tensor,
    *,
    new: bool,
) -> Iterator[_Span]:
    """The cache rows and token ranges of one call; a paged cache is one row, cut at the ends of pages."""
    if not page_size:
        for row in range(batch_size):
            yield _Span(row, slice(offset, offset + width))
        return
    for sequence in range(block_table.shape[0]):
        past = int(cache_seqlens[sequence])
        at, end = (past, past + width) if new else (0, past)
        while at < end:
            page = at // page_size
            cut = min(end, (page + 1) * page_size)
            shift = (int(block_table[sequence, page]) - page) * page_size
            yield _Span(0, slice(at + shift, cut + shift))
            at = cut
