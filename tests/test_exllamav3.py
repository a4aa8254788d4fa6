"""The engine exllamav3 over the package's own generator, on a CPU, with a stand-in for the forward pass.

One child process runs all of it (see tests/exllamav3_cpu) and prints what came out.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from exllamav2_cpu.availability import require_exllamav2

require_exllamav2()

from exllamav2_cpu import checkpoints  # noqa: E402
from exllamav2_cpu.processes import run_python  # noqa: E402
from headpond_workers.engines.exllamav3 import skip_draws  # noqa: E402

pytestmark = pytest.mark.slow

RECORDED = json.loads((Path(__file__).parent / "exllama_recorded.json").read_text("utf-8"))["exllamav3 1.6.5"]
NEIGHBOURS_LIVE = ["prefill", "prefill_memory", "decode_once", "decode_always", "decode_memory", "not_finite"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Any:
    digest_cache = tmp_path_factory.mktemp("digests")
    return json.loads(run_python(["-m", "exllamav3_cpu.scenarios", str(checkpoints.tiny()), str(digest_cache)]))


def test_every_call_fits_the_signatures_of_the_package(ran: Any) -> None:
    assert ran["unknown"] == [], "keywords that the package takes and drops"
    called = {name: set(parameters) - {"self"} for name, parameters in ran["calls"].items()}
    assert called == {
        "Config.from_directory": {"directory"},
        "Model.from_config": {"config"},
        "Model.load_gen": {"callback", "generator", "max_batch_size", "max_chunk_size", "use_per_device"},
        "Model.warmup": {"cache", "max_batch_size", "max_chunk_size"},
        "Model.unload": set(),
        "Cache.__init__": {"model", "max_num_tokens", "layer_type", "max_batch_size", "k_bits", "v_bits"},
        "Tokenizer.from_config": {"config"},
        "Generator.__init__": {"model", "cache", "tokenizer", "max_batch_size", "max_chunk_size"},
        "Generator.enqueue": {"job"},
        "Generator.cancel": {"job"},
        "Generator.iterate": set(),
        "Generator.num_remaining_jobs": set(),
        "Generator.close": set(),
        "Job.__init__": {
            *("input_ids", "max_new_tokens", "min_new_tokens", "sampler", "seed", "stop_conditions", "token_healing")
        },
        "CustomSampler.__init__": {"steps"},
        "SS_LogitBias.__init__": {"logit_bias"},
        "SS_MinP.__init__": {"min_p"},
        "SS_Temperature.__init__": {"temperature"},
        "SS_TopK.__init__": {"top_k"},
        "SS_TopP.__init__": {"top_p"},
    }


def test_sequences_beyond_the_slots_each_get_their_own_answer(ran: Any) -> None:
    assert [each["ids"] for each in ran["together"]] == [each["expected"] for each in ran["together"]]
    assert [each["finish"] for each in ran["together"]] == ["length"] * 5


def test_an_answer_ends_at_the_end_token_and_without_it(ran: Any) -> None:
    ended = ran["ends_by_itself"]
    assert ended["finish"] == "stop"
    assert ended["ids"] == ended["expected"]
    assert not set(ended["ids"]) & set(ended["end_ids"])
    assert "prefill_s" in ended["details"]


def test_a_drawn_answer_resumed_after_k_ids_goes_on_with_the_same_draws(ran: Any) -> None:
    whole, resumed = ran["resumed"]["whole"], ran["resumed"]["resumed"]
    assert {int(k): ids for k, ids in resumed.items()} == {k: whole[k:] for k in (1, 7, 23)}
    assert ran["resumed"]["other_seed"] != whole


def test_top_k_min_p_and_biases_are_kept_and_other_settings_refused(ran: Any) -> None:
    sampled = ran["sampled"]
    assert sampled["top_k 1"] == sampled["min_p 1"] == sampled["greedy"]
    assert set(sampled["forced"]) == set(sampled["forced and drawn"]) == {77}
    assert len(sampled["whole"]) == 30
    assert sampled["resumed"] == [sampled["whole"]] * 2
    assert (sampled["no token"]["error"], "logit_bias names 352" in sampled["no token"]["message"]) == (
        "SequenceFailed",
        True,
    )
    assert [each["error"] for each in sampled["refused"]] == ["CapabilityMissing"] * 3


def test_draws_are_skipped_as_the_package_makes_them() -> None:
    ours, theirs = random.Random(7), random.Random(7)
    skip_draws(ours, 100)
    for _ in range(100):
        theirs.randint(0, (1 << 32) - 1)
    assert ours.getstate() == theirs.getstate()


def test_a_cancelled_sequence_leaves_its_neighbour_and_its_slot(ran: Any) -> None:
    cancelled = ran["cancelled"]
    assert cancelled["stopped"]["finish"] == "cancelled"
    assert cancelled["stopped"]["ids"] == cancelled["expected"][:5]
    assert cancelled["neighbour"]
    assert cancelled["after"] == cancelled["expected"]


@pytest.mark.parametrize("fault", NEIGHBOURS_LIVE)
def test_a_fault_of_one_sequence_leaves_its_neighbours_as_they_would_have_been(ran: Any, fault: str) -> None:
    for neighbour in ran["faults"][fault]["neighbours"]:
        assert neighbour.get("finish") == "length"
        assert neighbour["ids"] == neighbour["expected"]


@pytest.mark.parametrize(
    ("fault", "error", "cause"),
    [
        ("prefill", "SequenceFailed", "ValueError"),
        ("prefill_memory", "EngineOutOfMemory", "OutOfMemoryError"),
        ("decode_always", "ValueError", "NoneType"),
        ("decode_memory", "EngineOutOfMemory", "OutOfMemoryError"),
        ("not_finite", "SequenceFailed", "NonFiniteLogits"),
    ],
)
def test_a_fault_ends_the_sequence_that_it_belongs_to(ran: Any, fault: str, error: str, cause: str) -> None:
    marked = ran["faults"][fault]["marked"]
    assert (marked.get("error"), marked.get("cause")) == (error, cause)


def test_a_step_that_fails_once_costs_nobody_anything(ran: Any) -> None:
    assert ran["faults"]["decode_once"]["marked"]["ids"] == ran["faults"]["decode_once"]["expected"]


@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_a_failed_device_breaks_the_engine_for_all(ran: Any, stage: str) -> None:
    broken = ran[f"broken_{stage}"]
    outcomes = [*broken["neighbours"], broken["marked"]]
    assert [outcome.get("error") for outcome in outcomes] == ["EngineBroken"] * 3
    assert all("illegal memory access" in outcome["message"] for outcome in outcomes)


def test_what_the_model_cannot_take_is_refused_before_the_device_sees_it(ran: Any) -> None:
    refused = ran["refused"]
    assert refused["no_token"]["error"] == "SequenceFailed"
    assert refused["too_long"]["error"] == "PromptTooLong"
    assert refused["adapter"]["error"] == "CapabilityMissing"
    assert "cannot serve adapters" in refused["adapter"]["message"]
    assert (refused["cut_at_the_context"]["finish"], len(refused["cut_at_the_context"]["ids"])) == ("length", 3)


def test_text_and_template_are_those_of_the_checkpoint(ran: Any) -> None:
    assert ran["texts"]["bytes"] == "héllo"
    assert ran["texts"]["rendered"]


def test_no_capability_is_claimed(ran: Any) -> None:
    assert ran["info"] == {"capabilities": [], "context_tokens": 1024, "other_cache_other_fingerprint": True}


def test_the_recorded_results_are_what_the_generator_gives(ran: Any) -> None:
    """But for times and the count of jobs before."""

    def timeless(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        kept = [{key: each for key, each in result.items() if not key.startswith("time_")} for result in results]
        first = min(result["serial"] for result in kept)
        return [{**result, "serial": result["serial"] - first} for result in kept]

    assert timeless(ran["recorded"]["results"]) == timeless(RECORDED)
    assert ran["recorded"]["ended"]["ids"][-1] != 2


def test_a_model_that_cannot_be_loaded_is_unloaded_and_explained(ran: Any) -> None:
    told = ran["not_loaded"]["told"]
    assert ran["not_loaded"]["unloads"] == 3
    assert "Lower cache_tokens" in told["memory"]
    assert "Lower cache_tokens" in told["split"]
    assert "AssertionError: Unknown architecture. Choose an EXL3 checkpoint" in told["checkpoint"]


def test_what_is_missing_is_said_by_name(tmp_path: Path) -> None:
    told = json.loads(run_python(["-m", "exllamav3_cpu.preflight", str(tmp_path)]))
    assert "sees no CUDA device" in told["no_device"]
    assert "cannot be imported" in told["no_extension"]
    assert "needs the package exllamav3, which is not installed" in told["no_package"]
    assert "CUDA toolkit" in told["no_package"]
