"""Devices that are full, by a ballast of the test's own: at loading, and amid a step."""

from __future__ import annotations

import re
from typing import Any

import pytest

from engine_conformance import Attempt, long_prompt, sequence
from gpu.device_memory import allocated_bytes, device_count, only_left
from gpu.model_under_test import ModelUnderTest, greedy_answer
from headpond.errors import EngineOutOfMemory, EngineUnavailable
from headpond_workers.engines.exllama.memory import DEVICE_RESERVE_BYTES, stored_bytes

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

SMALL_BYTES = 64 << 20
MARGINS_MIB = (1024, 512, 256, 128, 64, 32, 16, 8, 4, 2)


def test_a_device_too_small_for_the_weights_is_refused_with_what_is_free(model: ModelUnderTest) -> None:
    before = sum(allocated_bytes())
    left = model.weight_bytes // 2 // device_count()
    with only_left([left] * device_count()):
        with pytest.raises(EngineUnavailable, match=r"Free: [0-9.]+ [MG]iB on device 0.*No cache fits"), model.loaded():
            pytest.fail("it was loaded")
        assert sum(allocated_bytes()) - before > 0, "the ballast is still there"
    assert sum(allocated_bytes()) - before < SMALL_BYTES, "nothing stays of a load that failed"
    with model.loaded() as engine:
        assert "4" in greedy_answer(engine)


def test_the_settings_that_are_said_to_fit_do_fit(model: ModelUnderTest) -> None:
    context = min(8192, model.config()["max_position_embeddings"] // 256 * 256)
    slots = 8
    keys: dict[str, Any] = {"context_tokens": context, "slots": slots}
    measured = model.load_model(context_tokens=min(2048, context))
    demand = measured.demand
    measured.unload()
    cache_bytes = stored_bytes(model.kv_shape, "FP16", slots * context)
    left = demand.weight_bytes + demand.work_bytes + DEVICE_RESERVE_BYTES + cache_bytes * 6 // 10
    # Of a second and a third device nothing is left: the advice counts the room of all together.
    with only_left([left, *(SMALL_BYTES for _ in range(device_count() - 1))]):
        with pytest.raises(EngineUnavailable, match="What would fit: ") as refused, model.loaded(**keys):
            pytest.fail("it was loaded")
        advised = advised_keys(str(refused.value).partition("What would fit: ")[2])
        assert advised
        for changed in advised:
            with model.loaded(**keys | changed) as engine:
                assert "4" in greedy_answer(engine)


def advised_keys(advice: str) -> list[dict[str, Any]]:
    """The choices that an error names, as keys of the model's table."""
    choices: list[dict[str, Any]] = [{"cache": name} for name in re.findall(r'(?:^|; or )cache = "(\w+)"', advice)]
    for slots, tokens in re.findall(r"slots = (\d+) with cache_tokens = (\d+)", advice):
        choices.append({"slots": int(slots), "cache_tokens": int(tokens)})
    return choices


def test_a_step_without_memory_fails_its_sequence_and_the_engine_goes_on(model: ModelUnderTest) -> None:
    context = min(8192, model.config()["max_position_embeddings"] // 256 * 256)
    with model.loaded(context_tokens=context, chunk_tokens=2048) as engine:
        prompt = long_prompt(engine, "Name a colour.", tokens=context - 32)
        for margin_mib in MARGINS_MIB:
            # Each time another prompt: pages of one that was read are not read again.
            asked = sequence((*prompt[margin_mib % 7 :], *prompt[: margin_mib % 7]), max_tokens=8)
            with only_left([margin_mib << 20] * device_count()):
                try:
                    Attempt(engine, asked).run()
                except EngineOutOfMemory as error:
                    said = str(error)
                    break
        else:
            pytest.fail(f"every step found its memory, down to {MARGINS_MIB[-1]} MiB")
        assert said.startswith("The device is out of memory.")
        assert "Free: " in said
        assert "lower chunk_tokens" in said
        assert Attempt(engine, asked).run().raw
        assert "4" in greedy_answer(engine)
