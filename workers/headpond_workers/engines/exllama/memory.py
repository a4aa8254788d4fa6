"""How many bytes an exllamav2 model needs on its devices, and what would fit there instead. Pure arithmetic.

Caches are exact: what exllamav2 0.3.2 allocates, to the byte. Weights are the sum of the file's tensors without the
embedding, which stays in host memory. The work space of a device is an estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from headpond.tables import PAGE_TOKENS

CacheType = Literal["FP16", "Q8", "Q6", "Q4"]
CACHE_TYPES: tuple[CacheType, ...] = get_args(CacheType)
"""The most exact first."""

SCALED_ELEMENTS = 32
"""So many neighbouring elements of a quantised cache share one FP16 scale."""

DEVICE_RESERVE_BYTES = 448 << 20
"""What exllamav2 itself leaves free on a device while it splits a model: 192 MiB for activations, 256 MiB in hand."""

_OUT_OF_MEMORY = ("out of memory", "Insufficient VRAM", "CUBLAS_STATUS_ALLOC_FAILED")
"""Of CUDA and HIP themselves, of exllamav2's split, and of cuBLAS; torch's own error is a class."""

# Elements that one stored item holds, for keys and for values; FP16 items have two bytes, all others one.
_ELEMENTS_PER_ITEM: dict[CacheType, tuple[int, int]] = {"FP16": (1, 1), "Q8": (1, 1), "Q6": (1, 2), "Q4": (2, 2)}


@dataclass(frozen=True, slots=True)
class KvShape:
    """The keys (and the values) of one token: `layers` tensors of kv_heads * head_dim elements."""

    layers: int
    kv_heads: int
    head_dim: int


def stored_bytes(shape: KvShape, cache: CacheType, tokens: int) -> int:
    """Bytes of a cache of so many tokens, on all devices together: keys, values, and their scales."""
    per_key, per_value = _ELEMENTS_PER_ITEM[cache]
    items = shape.head_dim // per_key + shape.head_dim // per_value
    scales = 0 if cache == "FP16" else 2 * (shape.head_dim // SCALED_ELEMENTS)
    head_bytes = items * (2 if cache == "FP16" else 1) + scales * 2
    return shape.layers * shape.kv_heads * head_bytes * tokens


def unpacked_bytes(shape: KvShape, cache: CacheType, tokens: int) -> int:
    """Bytes on every device beside a quantised cache: one layer of it in FP16, in which attention works."""
    return 0 if cache == "FP16" else 2 * 2 * shape.kv_heads * shape.head_dim * tokens


def held_tokens(cache_tokens: int, *, slots: int, drafting: bool) -> int:
    """Tokens that the cache must hold; a multiple of 256.

    drafting: a draft model writes keys and values of guessed tokens behind the sequence. One page more for every
    slot keeps sequences as long as without it.
    """
    return cache_tokens + (slots * PAGE_TOKENS if drafting else 0)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a model, its cache and its draft model ask of the devices.

    weight_bytes: of all weights that go to a device. work_bytes: on each device, for activations. shapes: of the
    model, and of the draft model if there is one. cache_tokens: as configured, without the room for drafts.
    """

    weight_bytes: int
    work_bytes: int
    shapes: tuple[KvShape, ...]
    cache: CacheType
    slots: int
    context_tokens: int
    cache_tokens: int

    def cache_bytes(self, cache: CacheType, tokens: int, *, slots: int, devices: int) -> int:
        """Bytes of all caches of that type, for `tokens` configured tokens, on so many devices together."""
        held = held_tokens(tokens, slots=slots, drafting=len(self.shapes) > 1)
        return sum(
            stored_bytes(shape, cache, held) + devices * unpacked_bytes(shape, cache, held) for shape in self.shapes
        )


def what_fits(demand: Demand, free_bytes: Sequence[int]) -> str:
    """Sentences for people: what the model needs, what is free, and which settings would fit.

    free_bytes: of each device, shape (devices,), while nothing of the model is loaded.
    """
    devices = len(free_bytes)
    cache_bytes = demand.cache_bytes(demand.cache, demand.cache_tokens, slots=demand.slots, devices=devices)
    work_bytes = demand.work_bytes + DEVICE_RESERVE_BYTES
    room = sum(max(0, free - work_bytes) for free in free_bytes) - demand.weight_bytes
    needs = (
        f"The weights need {readable(demand.weight_bytes)}, the cache of {demand.cache_tokens} tokens at "
        f"{demand.cache} needs {readable(cache_bytes)}, and work space about {readable(work_bytes)} on each device. "
        f"Free: {_free(free_bytes)}."
    )
    if cache_bytes <= room:
        return (
            f"{needs} By this count it fits: another process may have taken memory in the meantime, or one device is "
            "full before the others are. See nvidia-smi, lower chunk_tokens, or set gpu_split."
        )
    choices = _choices(demand, room, devices)
    if not choices:
        return (
            f"{needs} No cache fits beside these weights: free the devices (see nvidia-smi), name more of them in "
            "devices, or take a smaller quantisation of the model."
        )
    return f"{needs} What would fit: {'; or '.join(choices)}."


def _choices(demand: Demand, room: int, devices: int) -> list[str]:
    """Settings under which the cache needs at most `room` bytes, the least loss first."""

    def fits(cache: CacheType, tokens: int, slots: int) -> bool:
        return demand.cache_bytes(cache, tokens, slots=slots, devices=devices) <= room

    choices = []
    coarser = CACHE_TYPES[CACHE_TYPES.index(demand.cache) + 1 :]
    for cache in coarser:
        if fits(cache, demand.cache_tokens, demand.slots):
            choices.append(f'cache = "{cache}"')
            break
    # Fewer tokens for all slots together; each sequence may still be as long as before.
    whole = next((n for n in range(demand.slots - 1, 0, -1) if fits(demand.cache, n * demand.context_tokens, n)), 0)
    if whole:
        choices.append(f"slots = {whole} with cache_tokens = {whole * demand.context_tokens}")
    if choices:
        return choices
    for cache in (demand.cache, *coarser):
        tokens = _most_tokens(demand, cache, room, devices)
        if tokens:
            kept = "" if cache == demand.cache else f'cache = "{cache}", '
            choices.append(f"{kept}slots = 1 and context_tokens = {tokens} with cache_tokens = {tokens}")
    return choices


def _most_tokens(demand: Demand, cache: CacheType, room: int, devices: int) -> int:
    """The most tokens, a multiple of 256, of a cache for one slot within `room` bytes; at most one context."""
    page_bytes = sum(
        stored_bytes(shape, cache, PAGE_TOKENS) + devices * unpacked_bytes(shape, cache, PAGE_TOKENS)
        for shape in demand.shapes
    )
    pages = room // page_bytes - (len(demand.shapes) > 1)
    return max(0, min(pages * PAGE_TOKENS, demand.context_tokens))


def what_frees(demand: Demand, free_bytes: Sequence[int]) -> str:
    """Sentences for people after a step of a loaded model found no memory: what is free now, and what to change.

    free_bytes: of each device, shape (devices,), while the model is loaded.
    """
    devices = len(free_bytes)
    cache_bytes = demand.cache_bytes(demand.cache, demand.cache_tokens, slots=demand.slots, devices=devices)
    advice = ["lower chunk_tokens"]
    for cache in CACHE_TYPES[CACHE_TYPES.index(demand.cache) + 1 :]:
        less = demand.cache_bytes(cache, demand.cache_tokens, slots=demand.slots, devices=devices)
        if less < cache_bytes:
            advice.append(f'write cache = "{cache}", which frees {readable(cache_bytes - less)}')
            break
    if demand.cache_tokens > demand.context_tokens:
        advice.append(f"lower cache_tokens (now {demand.cache_tokens}; {demand.context_tokens} hold one sequence)")
    return (
        f"The weights take {readable(demand.weight_bytes)} and the cache {readable(cache_bytes)}. "
        f"Free: {_free(free_bytes)}. To leave more room for a step: {', or '.join(advice)}."
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, or exllamav2's own count of it, said that it is full."""
    if type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def _free(free_bytes: Sequence[int]) -> str:
    return ", ".join(f"{readable(free)} on device {index}" for index, free in enumerate(free_bytes)) or "no device"


def readable(size_bytes: int) -> str:
    """A size for people, in units of 1024 as gpu_split counts them."""
    if size_bytes < 1 << 30:
        return f"{size_bytes / (1 << 20):.1f} MiB"
    return f"{size_bytes / (1 << 30):.2f} GiB"
