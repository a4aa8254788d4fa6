"""One model on real devices: what it answers, what it takes of them, and how it is spread over several.

The conformance suite runs on the same model: tests/test_engine_conformance.py, subject exllamav2-gpu.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from exllamav2_cpu import processes
from gpu.device_memory import allocated_bytes, device_count
from gpu.model_under_test import ModelUnderTest, greedy_answer
from headpond_workers.engines.exllamav2_memory import CACHE_TYPES, CacheType, stored_bytes, unpacked_bytes

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

SMALL_BYTES = 64 << 20
"""What libraries keep on a device for themselves, such as the work space of cuBLAS."""


@pytest.mark.parametrize("keys", [{"paged": True}, {"paged": False}], ids=["paged", "unpaged"])
@pytest.mark.parametrize("cache", CACHE_TYPES)
def test_a_certain_answer_is_given_with_every_cache(
    model: ModelUnderTest, cache: CacheType, keys: dict[str, Any]
) -> None:
    with model.loaded(cache=cache, **keys) as engine:
        assert "4" in greedy_answer(engine)


@pytest.mark.parametrize("cache", CACHE_TYPES)
def test_a_cache_takes_what_was_calculated(model: ModelUnderTest, cache: CacheType) -> None:
    taken: dict[int, int] = {}
    used = 0  # devices that the model lies on
    for tokens in (2048, 8192):
        with model.loaded(cache=cache, cache_tokens=tokens):
            allocated = allocated_bytes()
            taken[tokens] = sum(allocated)
            used = sum(each > model.weight_bytes // 100 for each in allocated)
    more = 8192 - 2048
    expected = stored_bytes(model.kv_shape, cache, more) + used * unpacked_bytes(model.kv_shape, cache, more)
    assert taken[8192] - taken[2048] == pytest.approx(expected, rel=0.02)


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
