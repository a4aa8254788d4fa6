"""One model on real devices: what it answers, what it takes of them, and how it is spread over several.

The conformance suite runs on the same model: tests/test_engine_conformance.py, subject exllamav2-gpu.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine_conformance import Attempt, prompt_of, sequence
from engine_subjects import GPU_MODEL
from exllamav2_cpu import processes, reference
from gpu.device_memory import allocated_bytes, device_count
from gpu.model_under_test import CONTEXT_TOKENS, QUESTION, ModelUnderTest, greedy_answer
from headpond_workers.engines.exllama.memory import CACHE_TYPES, CacheType, stored_bytes, unpacked_bytes

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

SMALL_BYTES = 64 << 20
"""What libraries keep on a device for themselves, such as the work space of cuBLAS."""
PAGE_TOKENS = 256
NEAR = 0.1
"""How far apart two logits may be that rounding to 16 bits may put in the other order."""
PAGED_AND_NOT = pytest.mark.parametrize("keys", [{"paged": True}, {"paged": False}], ids=["paged", "unpaged"])


@PAGED_AND_NOT
@pytest.mark.parametrize("cache", CACHE_TYPES)
def test_a_certain_answer_is_given_with_every_cache(
    model: ModelUnderTest, cache: CacheType, keys: dict[str, Any]
) -> None:
    with model.loaded(cache=cache, **keys) as engine:
        assert "4" in greedy_answer(engine)


@PAGED_AND_NOT
def test_greedy_tokens_are_the_likeliest_ones_to_transformers(model: ModelUnderTest, keys: dict[str, Any]) -> None:
    if model.is_exl2 or model.config()["architectures"] != ["LlamaForCausalLM"]:
        pytest.skip(f"gpu: {GPU_MODEL} is no plain Llama checkpoint, which transformers could load too")
    pytest.importorskip("transformers", reason="gpu: transformers is not installed")
    with model.loaded(**keys) as engine:
        prompts = [prompt_of(engine, message) for message in (QUESTION, "Tell me a long story about a river.")]
        answers = [Attempt(engine, sequence(prompt, max_tokens=100)).run().raw for prompt in prompts]
    whole = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    computed = reference.reference(model.folder, whole, new_tokens=0)
    behind: list[float] = []
    for prompt, answer, logits in zip(prompts, answers, computed.logits, strict=True):
        told = logits[len(prompt) - 1 : len(prompt) + len(answer) - 1]
        behind += (told.max(dim=-1).values - told[range(len(answer)), answer]).tolist()
    assert len(behind) > 60
    assert max(behind) < NEAR
    assert sum(each == 0 for each in behind) >= 0.95 * len(behind)


@pytest.mark.parametrize("cache", CACHE_TYPES)
def test_a_cache_takes_what_was_calculated(model: ModelUnderTest, cache: CacheType) -> None:
    # A gibibyte if it were FP16: what torch and its libraries take for themselves is little beside that.
    more = (1 << 30) // stored_bytes(model.kv_shape, "FP16", 1) // PAGE_TOKENS * PAGE_TOKENS
    taken: dict[int, int] = {}
    used = 0  # devices that the model lies on
    for tokens in (CONTEXT_TOKENS, CONTEXT_TOKENS + more):
        with model.loaded(cache=cache, cache_tokens=tokens):
            allocated = allocated_bytes()
            taken[tokens] = sum(allocated)
            used = sum(each > model.weight_bytes // 100 for each in allocated)
    expected = stored_bytes(model.kv_shape, cache, more) + used * unpacked_bytes(model.kv_shape, cache, more)
    assert taken[CONTEXT_TOKENS + more] - taken[CONTEXT_TOKENS] == pytest.approx(expected, rel=0.02)


def test_a_closed_engine_gives_its_memory_back(model: ModelUnderTest) -> None:
    before = sum(allocated_bytes())
    for _ in range(2):
        with model.loaded() as engine:
            assert sum(allocated_bytes()) - before > model.weight_bytes // 2
            assert greedy_answer(engine)
        assert sum(allocated_bytes()) - before < SMALL_BYTES


def test_devices_chooses_what_the_process_sees(model: ModelUnderTest) -> None:
    last = device_count() - 1
    environment = processes.environment(CUDA_DEVICE_ORDER="PCI_BUS_ID")

    def seen(*devices: str) -> dict[str, Any]:
        arguments = ["-m", "gpu.visible_devices", str(model.folder), str(model.digest_cache), *devices]
        said: dict[str, Any] = json.loads(processes.run_python(arguments, env=environment).splitlines()[-1])
        return said

    everything, one = seen(), seen(str(last))

    assert len(everything["uuids"]) == last + 1
    assert one["uuids"] == [everything["uuids"][last]]
    assert "4" in one["answer"]


# Over two devices


def assert_spread(model: ModelUnderTest, before: list[int]) -> None:
    """The first two devices hold a fifth of the weights each, at least."""
    more = [now - then for now, then in zip(allocated_bytes(), before, strict=True)]
    assert min(more[:2]) > model.weight_bytes // 5, more


def test_gpu_split_spreads_the_layers(spread_model: ModelUnderTest) -> None:
    before = allocated_bytes()
    # Half of the weights and a tenth of them to spare, for whole layers and work space.
    share = spread_model.weight_bytes * 0.6 / (1 << 30) + 0.5
    split = [share, share]
    with spread_model.loaded(gpu_split=split) as engine:
        assert_spread(spread_model, before)
        assert "4" in greedy_answer(engine)
    assert sum(allocated_bytes()) - sum(before) < 2 * SMALL_BYTES


def test_a_reserve_moves_layers_to_the_next_device(spread_model: ModelUnderTest) -> None:
    import torch

    before = allocated_bytes()
    free = [torch.cuda.mem_get_info(index)[0] for index in range(device_count())]
    reserve = [(free[0] - spread_model.weight_bytes // 2 - (512 << 20)) >> 20, *(64 for _ in free[1:])]
    with spread_model.loaded(autosplit_reserve_mib=[max(0, mib) for mib in reserve]) as engine:
        assert_spread(spread_model, before)
        assert "4" in greedy_answer(engine)


@pytest.mark.parametrize("cache", CACHE_TYPES)
def test_tensor_parallel_splits_every_layer(spread_exl2_model: ModelUnderTest, cache: CacheType) -> None:
    before = allocated_bytes()
    with spread_exl2_model.loaded(tensor_parallel=True, cache=cache) as engine:
        assert_spread(spread_exl2_model, before)
        assert "4" in greedy_answer(engine)
    assert sum(allocated_bytes()) - sum(before) < 2 * SMALL_BYTES
