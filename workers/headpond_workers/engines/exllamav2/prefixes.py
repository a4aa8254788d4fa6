"""Keys and values of a prompt, from exllamav2's cache to a file and back. The format: docs/kv-format.md.

Bytes a token: those of the cache, for FP16 4 * layers * kv_heads * head_dim (Llama 3 8B: 128 KiB), and 8 for its id.
Each direction holds a prefix once in host memory.

Two steps each, so that running sequences wait for the copy between device and host alone:

    save:  taken = take_prefix(generator, ids)                    in the generator's thread, between two steps
           save_prefix(taken, path, fingerprint=...)              in any thread
    load:  stored = read_prefix(generator, path, fingerprint=...) in any thread
           place_prefix(generator, stored)                        in the generator's thread, between two steps
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headpond_workers.engines.exllamav2.pages import PageTable, Span
from headpond_workers.engines.exllamav2.prefix_file import (
    IDS,
    StoredPrefix,
    TensorLayout,
    read_prefix_file,
    write_prefix_file,
)

log = logging.getLogger(__name__)

_KINDS = ("key_states", "value_states", "key_scales", "value_scales")


@dataclass(frozen=True, slots=True)
class PrefixFingerprint:
    """All that decides keys and values of given ids, by name. Two that are equal may load each other's files.

    weights_digest, adapter_digest, draft_digest: of the checkpoint folders. engine: package and version. cache: FP16,
    Q8, Q6 or Q4. rope: settings of the rotary positions. adapter, adapter_scaling: None without an adapter.
    """

    weights_digest: str
    engine: str
    cache: str
    rope: str
    adapter: str | None
    adapter_digest: str | None
    adapter_scaling: float | None
    draft_digest: str | None
    page_tokens: int
    layers: int
    kv_heads: int
    head_dim: int


def fingerprint_of(
    generator: Any,
    *,
    weights_digest: str,
    adapter: tuple[str, str, float] | None = None,
    draft_digest: str | None = None,
) -> PrefixFingerprint:
    """The fingerprint of what this generator (ExLlamaV2DynamicGenerator) computes.

    adapter: name, digest and scaling of the one in use. draft_digest: given exactly if there is a draft model.
    """
    config = generator.model.config
    name, digest, scaling = adapter if adapter is not None else (None, None, None)
    return PrefixFingerprint(
        weights_digest=weights_digest,
        engine=f"exllamav2 {importlib.metadata.version('exllamav2')}",
        cache=_cache_kind(generator.cache),
        rope=_rope(config),
        adapter=name,
        adapter_digest=digest,
        adapter_scaling=None if scaling is None else float(scaling),
        draft_digest=draft_digest,
        page_tokens=generator.page_size,
        layers=config.num_hidden_layers,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
    )


@dataclass(frozen=True, slots=True)
class TakenPrefix:
    """Keys and values in host memory. tensors: as in layout, shape (n, *token_shape), for ids, shape (n,)."""

    ids: tuple[int, ...]
    layout: tuple[TensorLayout, ...]
    tensors: tuple[Any, ...]


def export_prefix(generator: Any, ids: Sequence[int], path: Path, *, fingerprint: PrefixFingerprint) -> int:
    """Both steps of saving. Returns how many of ids, shape (n,), the file covers; 0: nothing is held, no file.

    Raises EngineError if the file cannot be written. Between two steps of the generator, in its thread.
    """
    taken = take_prefix(generator, ids)
    if taken is None:
        return 0
    save_prefix(taken, path, fingerprint=fingerprint)
    return len(taken.ids)


def import_prefix(generator: Any, path: Path, *, fingerprint: PrefixFingerprint) -> int:
    """Both steps of loading. Returns how many tokens of the file are on the device now; 0: there was no free page.

    Raises PrefixRefused, and changes nothing, for a file that is damaged or was made by something else. Between two
    steps of the generator, in its thread.
    """
    return place_prefix(generator, read_prefix(generator, path, fingerprint=fingerprint))


def held_tokens(generator: Any, ids: Sequence[int]) -> int:
    """How many of ids, shape (n,), the device holds, from the first on. Where `take_prefix` may be called."""
    import torch

    spans = PageTable(generator).held(torch.tensor([list(ids)], dtype=torch.long))
    return spans[-1].end if spans else 0


def take_prefix(generator: Any, ids: Sequence[int]) -> TakenPrefix | None:
    """Copy what the device holds of ids, shape (n,), to host memory; None if that is nothing.

    Between two steps of the generator, in its thread; sequences may be running. Changes nothing.
    """
    import torch

    spans = PageTable(generator).held(torch.tensor([list(ids)], dtype=torch.long))
    if not spans:
        return None
    covered = spans[-1].end
    layout = []
    copies = []
    with torch.inference_mode():
        _synchronise(generator)
        for tensor_layout, tensor in _cache_tensors(generator):
            copy = torch.empty((covered, *tensor_layout.token_shape), dtype=tensor.dtype)
            for span in spans:
                copy[span.begin : span.end].copy_(_in_page(generator, tensor, span))
            layout.append(tensor_layout)
            copies.append(copy)
    return TakenPrefix(tuple(ids[:covered]), tuple(layout), tuple(copies))


def save_prefix(taken: TakenPrefix, path: Path, *, fingerprint: PrefixFingerprint) -> None:
    """Write the file. Raises EngineError if that fails; the file is whole or absent then. In any thread."""
    size_bytes = write_prefix_file(
        path,
        fingerprint=asdict(fingerprint),
        ids=taken.ids,
        layout=taken.layout,
        tensors=(memoryview(tensor.numpy()).cast("B") for tensor in taken.tensors),
    )
    log.info("kv_prefix_saved tokens=%d bytes=%d", len(taken.ids), size_bytes)


def read_prefix(generator: Any, path: Path, *, fingerprint: PrefixFingerprint) -> StoredPrefix:
    """Read a file into host memory and check all of it. Raises PrefixRefused.

    In any thread, also while the generator runs: of the generator only its shapes are looked at.
    """
    return read_prefix_file(
        path,
        fingerprint=asdict(fingerprint),
        layout=[layout for layout, _ in _cache_tensors(generator)],
        max_tokens=generator.max_total_tokens,
    )


def place_prefix(generator: Any, stored: StoredPrefix) -> int:
    """Put a checked file's pages onto the device; return how many of its tokens are there, those before included.

    Between two steps of the generator, in its thread; sequences may be running, and their pages are left alone. With
    too few free pages the leading whole pages are placed, as many as fit.
    """
    import torch

    tokens = len(stored.ids)
    with torch.inference_mode():
        sources = [(_view(stored, layout, tensor.dtype), tensor) for layout, tensor in _cache_tensors(generator)]

        def write(span: Span) -> None:
            for source, target in sources:
                _in_page(generator, target, span).copy_(source[span.begin : span.end])

        _synchronise(generator)
        covered = PageTable(generator).place(_view(stored, IDS, torch.long).unsqueeze(0), write)
        _synchronise(generator)
    log.info("kv_prefix_loaded tokens=%d of=%d", covered, tokens)
    return covered


def _cache_tensors(generator: Any) -> Iterator[tuple[TensorLayout, Any]]:
    """The cache's tensors, shape (1, cache tokens, heads, items) each, and what they are called in a file.

    Those of the draft model's cache follow.
    """
    for prefix, cache in (("", generator.cache), ("draft.", generator.draft_cache)):
        if cache is None:
            continue
        parallel = getattr(cache, "caches", None)
        for number, part in enumerate([cache] if parallel is None else parallel):
            if part is None:  # a device without heads of its own
                continue
            part_prefix = prefix if parallel is None else f"{prefix}part{number}."
            for kind in _KINDS:
                for layer, tensor in enumerate(getattr(part, kind)):
                    layout = TensorLayout(f"{part_prefix}{kind}.{layer}", _dtype(tensor), tuple(tensor.shape[2:]))
                    yield layout, tensor


def _dtype(tensor: Any) -> str:
    return {"torch.float16": "F16", "torch.uint8": "U8"}[str(tensor.dtype)]


def _in_page(generator: Any, tensor: Any, span: Span) -> Any:
    """The span's tokens in one of the cache's tensors, shape (tokens, heads, items)."""
    first = span.page.page_index * generator.page_size
    return tensor[0, first : first + span.tokens]


def _view(stored: StoredPrefix, layout: TensorLayout, dtype: Any) -> Any:
    """A tensor of the file, shape (n, *token_shape), without a copy."""
    import torch

    shape = (len(stored.ids), *layout.token_shape)
    count = layout.token_bytes * len(stored.ids) // dtype.itemsize
    return torch.frombuffer(stored.data, dtype=dtype, count=count, offset=stored.begins[layout.name]).view(shape)


def _synchronise(generator: Any) -> None:
    """Wait for the devices: forward passes run in streams of their own, copies in the present one."""
    import torch

    for device in {tensor.device for _, tensor in _cache_tensors(generator)}:
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def _cache_kind(cache: Any) -> str:
    parts = getattr(cache, "caches", None)
    whole = cache if parts is None else next(part for part in parts if part is not None)
    return type(whole).__name__.removeprefix("ExLlamaV2Cache").removeprefix("_") or "FP16"


def _rope(config: Any) -> str:
    settings = (
        f"base {config.rotary_embedding_base}, scale {config.scale_pos_emb or 1.0}, "
        f"alpha {config.scale_alpha_value or 1.0}"
    )
    if config.alt_rope_method in ("su", "yarn"):
        # These turn by other angles where the context is longer than the model was first trained for.
        settings += f", {config.alt_rope_method} for {config.max_seq_len} tokens"
    return settings
