"""Results of exllamav2's and exllamav3's generators as steps.

tests/exllama_recorded.json holds what the real generators gave on a CPU, without the jobs and with ids as lists: an
answer that ends amid a character, one that is cut at its length, and with exllamav3 a prompt that fails.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headpond.errors import EngineError, EngineOutOfMemory, SequenceFailed
from headpond.jobs import FinishReason
from headpond_workers.engines.exllama.batch_generator import Step
from headpond_workers.engines.exllama.results import step_of

RECORDED: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "exllama_recorded.json").read_text("utf-8")
)
HANDLE = object()
V2, V3 = sorted(RECORDED)
END_ID = 2


def result(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded result with its ids in an array again, shape (1, n), as the packages give them in a tensor."""
    made = {key: result(value) if isinstance(value, dict) else value for key, value in plain.items()}
    if "token_ids" in made:
        made["token_ids"] = np.array(made["token_ids"])
    if "error" in made:
        made["error"] = ValueError(plain["error"]["message"])
    return made


def steps(package: str, serial: int) -> list[Step]:
    every = [step_of(result(each), HANDLE) for each in RECORDED[package] if each["serial"] == serial]
    return [step for step in every if step is not None]


@pytest.mark.parametrize(
    ("package", "ids"),
    [(V2, (45, 113, 292, 133, 343, 17, 114, 230)), (V3, (96, 162, 115, 180, 159, 102, 221, 217, 148))],
)
def test_an_answer_keeps_the_ids_held_for_a_character_and_loses_the_end_token(
    package: str, ids: tuple[int, ...]
) -> None:
    made = steps(package, 0)
    assert tuple(token for step in made for token in step.ids) == ids
    assert END_ID not in ids
    assert made[-1].ids == ids[-1:], "held until the end token came"
    assert [step.finish for step in made] == [None] * (len(made) - 1) + [FinishReason.STOP]


@pytest.mark.parametrize(("package", "ids"), [(V2, (211, 240, 277)), (V3, (225, 248, 10))])
def test_an_answer_that_is_cut_has_all_its_ids(package: str, ids: tuple[int, ...]) -> None:
    made = steps(package, 1)
    assert tuple(token for step in made for token in step.ids) == ids
    assert made[-1].finish is FinishReason.LENGTH
    assert len(made[-1].ids) == 2, "one of them was held"


@pytest.mark.parametrize("package", [V2, V3])
def test_results_without_new_ids_are_no_steps(package: str) -> None:
    silent = [each for each in RECORDED[package] if "token_ids" not in each and not each["eos"]]
    assert {each["stage"] for each in silent} == {"started", "prefill", "streaming"}
    assert [step_of(result(each), HANDLE) for each in silent] == [None] * len(silent)


@pytest.mark.parametrize("package", [V2, V3])
def test_the_last_step_tells_what_was_measured(package: str) -> None:
    ended = next(each for each in RECORDED[package] if each.get("eos_reason") == "stop_token")
    step = step_of(result(ended), HANDLE)
    assert step is not None
    assert step.details == {
        "enqueued_s": ended["time_enqueued"],
        "prefill_s": ended["time_prefill"],
        "generate_s": ended["time_generate"],
        "cached_tokens": 0.0,
    }


def test_counts_of_a_draft_model_are_told_where_they_are_there() -> None:
    ended = {**RECORDED[V2][-1], "accepted_draft_tokens": 5, "rejected_draft_tokens": 2}
    step = step_of(result(ended), HANDLE)
    assert step is not None
    assert step.details["accepted_draft_tokens"] == 5.0
    assert step.details["rejected_draft_tokens"] == 2.0


def test_a_step_names_the_sequence_by_its_handle() -> None:
    assert {id(step.handle) for package in RECORDED for step in steps(package, 0)} == {id(HANDLE)}


def test_a_job_that_its_generator_gave_up_on_fails_alone_with_the_cause() -> None:
    (failed,) = steps(V3, 2)
    assert isinstance(failed.error, SequenceFailed)
    assert isinstance(failed.error.__cause__, ValueError)
    assert "a bad chunk" in str(failed.error)
    assert (failed.ids, failed.finish) == ((), None)


def test_a_job_that_found_no_memory_may_be_tried_again() -> None:
    error = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    step = step_of({"stage": "error", "eos": True, "serial": 1, "error": error}, HANDLE)
    assert step is not None
    assert isinstance(step.error, EngineOutOfMemory)
    assert step.error.__cause__ is error


def test_an_end_for_an_unknown_reason_is_an_error() -> None:
    ended = {**RECORDED[V3][-3], "eos_reason": "boredom"}
    with pytest.raises(EngineError, match="boredom"):
        step_of(result(ended), HANDLE)


def test_a_stop_token_that_is_not_the_last_one_held_is_an_error_rather_than_a_lost_token() -> None:
    ended = next(each for each in RECORDED[V2] if each.get("eos_reason") == "stop_token")
    with pytest.raises(EngineError, match="stop token"):
        step_of(result({**ended, "held": {"token_ids": [[END_ID, 230]]}}), HANDLE)
    with pytest.raises(EngineError, match="stop token"):
        step_of(result({key: value for key, value in ended.items() if key != "held"}), HANDLE)
