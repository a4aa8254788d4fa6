"""What a model needs on its devices: the arithmetic equals what exllamav2 allocates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exllamav2_cpu.availability import require_exllamav2

require_exllamav2()

from exllamav2_cpu import checkpoints, harness  # noqa: E402
from headpond.tables import ExLlamaV2Model  # noqa: E402
from headpond_workers.engines.exllama.memory import (  # noqa: E402
    CACHE_TYPES,
    DEVICE_RESERVE_BYTES,
    CacheType,
    Demand,
    KvShape,
    held_tokens,
    is_out_of_memory,
    stored_bytes,
    unpacked_bytes,
    what_fits,
    what_frees,
)
from headpond_workers.engines.exllamav2.loading import LoadedModel, load_model  # noqa: E402
from headpond_workers.engines.formats.checkpoint_folder import check_checkpoint  # noqa: E402

GIB = 1 << 30
LLAMA_3_8B = KvShape(layers=32, kv_heads=8, head_dim=128)


@pytest.fixture(scope="module", autouse=True)
def stand_in() -> harness.Harness:
    return harness.install()


def load(tmp_path: Path, **settings: Any) -> LoadedModel:
    table = ExLlamaV2Model.model_validate(
        {
            "engine": "exllamav2",
            "path": checkpoints.tiny(),
            "context_tokens": 512,
            "chunk_tokens": 256,
            "slots": 2,
            **settings,
        }
    )
    folder = check_checkpoint(table.path, digest_cache=tmp_path)
    return load_model(table, folder, {}, on_layer=lambda done, total: None)


def demand(*, weight_gib: float, cache: CacheType = "FP16", slots: int = 4, context_tokens: int = 8192) -> Demand:
    return Demand(
        weight_bytes=int(weight_gib * GIB),
        work_bytes=0,
        shapes=(LLAMA_3_8B,),
        cache=cache,
        slots=slots,
        context_tokens=context_tokens,
        cache_tokens=slots * context_tokens,
    )


def tensor_bytes(tensors: list[Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("cache", CACHE_TYPES)
def test_the_count_of_a_cache_equals_what_exllamav2_allocates(cache: CacheType, tmp_path: Path) -> None:
    loaded = load(tmp_path, cache=cache)
    shape = loaded.demand.shapes[0]
    tokens = loaded.cache.max_seq_len

    assert tokens == 1024
    assert stored_bytes(shape, cache, tokens) == tensor_bytes(loaded.cache.all_tensors())
    unpacked = [tensor for pair in getattr(loaded.cache, "temp_tensors", {}).values() for tensor in pair]
    assert unpacked_bytes(shape, cache, tokens) == tensor_bytes(unpacked)
    loaded.unload()


@pytest.mark.parametrize("cache", CACHE_TYPES)
def test_the_count_includes_the_cache_of_a_draft_model(cache: CacheType, tmp_path: Path) -> None:
    loaded = load(tmp_path, cache=cache, draft={"path": checkpoints.tiny()})
    allocated = [
        tensor
        for each in (loaded.cache, loaded.draft_cache)
        for tensor in (
            *each.all_tensors(),
            *(part for pair in getattr(each, "temp_tensors", {}).values() for part in pair),
        )
    ]

    needed = loaded.demand.cache_bytes(cache, loaded.demand.cache_tokens, slots=2, devices=1)
    assert needed == tensor_bytes(allocated)
    loaded.unload()


def test_the_count_of_the_weights_equals_what_goes_to_the_device(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    weights = [
        tensor
        for module in loaded.model.modules[1:]
        for part in (*module.submodules, module)
        for tensor in (getattr(getattr(part, "linear", None), "weight", None), getattr(part, "weight", None))
        if tensor is not None
    ]
    on_device = {tensor.data_ptr(): tensor for tensor in weights}

    # The output layer is padded to a multiple of 32 tokens.
    padding = loaded.model.modules[-1].padding * loaded.config.hidden_size * 2
    assert loaded.demand.weight_bytes == tensor_bytes(list(on_device.values())) - padding
    loaded.unload()


def test_a_token_of_llama_3_8b_takes_128_kib_in_fp16_and_36_in_q4() -> None:
    assert stored_bytes(LLAMA_3_8B, "FP16", 1) == 128 << 10
    assert stored_bytes(LLAMA_3_8B, "Q4", 1) == 36 << 10


def test_a_cache_for_drafts_has_one_page_more_for_each_slot() -> None:
    assert held_tokens(2048, slots=4, drafting=False) == 2048
    assert held_tokens(2048, slots=4, drafting=True) == 2048 + 4 * 256


def test_a_coarser_cache_is_proposed_where_it_fits() -> None:
    # 32768 tokens: 4 GiB at FP16, 2.1 GiB and one unpacked layer at Q8.
    text = what_fits(demand(weight_gib=4), [7 * GIB])

    assert 'cache = "Q8"' in text
    assert "weights need 4.00 GiB" in text
    assert "cache of 32768 tokens at FP16 needs 4.00 GiB" in text
    assert "7.00 GiB on device 0" in text


def test_fewer_slots_are_proposed_with_the_same_context() -> None:
    text = what_fits(demand(weight_gib=4), [4 * GIB + DEVICE_RESERVE_BYTES + 2 * GIB])

    assert "slots = 2 with cache_tokens = 16384" in text


def test_a_shorter_context_is_proposed_where_not_even_one_sequence_fits() -> None:
    text = what_fits(demand(weight_gib=4, slots=1), [4 * GIB + DEVICE_RESERVE_BYTES + GIB // 4])

    assert "slots = 1 and context_tokens = 2048 with cache_tokens = 2048" in text
    assert 'cache = "Q4", slots = 1 and context_tokens = ' in text


@pytest.mark.parametrize("cache", CACHE_TYPES)
@pytest.mark.parametrize("free_gib", [4.6, 5, 6, 7, 8])
def test_what_is_proposed_fits_by_the_same_count(cache: CacheType, free_gib: float) -> None:
    short = demand(weight_gib=4, cache=cache, slots=16)
    free = [int(free_gib * GIB)]
    room = free[0] - DEVICE_RESERVE_BYTES - short.weight_bytes
    text = what_fits(short, free)

    if "What would fit: " not in text:
        assert short.cache_bytes(cache, short.cache_tokens, slots=16, devices=1) <= room or "No cache fits" in text
        return
    for choice in text.split("What would fit: ")[1].removesuffix(".").split("; or "):
        words = choice.replace(" with ", ", ").replace(" and ", ", ").split(", ")
        chosen = dict(word.split(" = ") for word in words)
        proposed: Any = chosen.get("cache", cache).strip('"')
        tokens = int(chosen.get("cache_tokens", short.cache_tokens))
        slots = int(chosen.get("slots", short.slots))
        assert tokens % 256 == 0
        assert short.cache_bytes(proposed, tokens, slots=slots, devices=1) <= room, choice


def test_weights_that_leave_no_room_are_said_to() -> None:
    assert "No cache fits beside these weights" in what_fits(demand(weight_gib=16), [8 * GIB])


def test_several_devices_are_counted_together_each_with_its_work_space() -> None:
    assert "No cache fits" in what_fits(demand(weight_gib=8), [8 * GIB])
    assert "What would fit" in what_fits(demand(weight_gib=8, slots=8), [8 * GIB, 8 * GIB])


def test_a_model_that_fits_by_the_count_is_not_told_to_shrink() -> None:
    text = what_fits(demand(weight_gib=4), [24 * GIB])

    assert "By this count it fits" in text
    assert "What would fit" not in text


def test_a_step_without_memory_is_answered_with_what_frees_some() -> None:
    text = what_frees(demand(weight_gib=4), [GIB // 4])

    assert 'cache = "Q8", which frees' in text
    assert "lower chunk_tokens" in text
    assert "256.0 MiB on device 0" in text


def test_only_errors_of_memory_are_taken_for_such() -> None:
    import torch

    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert is_out_of_memory(RuntimeError("Insufficient VRAM for model and cache"))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
