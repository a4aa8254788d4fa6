"""Every sampler that a request may ask for: how it reaches llama.cpp, and that it takes effect there."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from headpond.errors import SequenceFailed
from headpond.sampling import Sampling
from headpond_workers.engines.llamacpp.engine import LlamaCppEngine
from headpond_workers.engines.llamacpp.sampling import HAS, sampling_fields
from llama_engines import run, smollm2, table, text_of

TOKENS = 49_152


def fields(**sampling: Any) -> dict[str, Any]:
    return sampling_fields(Sampling(**sampling), vocabulary=TOKENS, context_tokens=256)


# How it reaches llama.cpp


def test_the_order_of_samplers_is_the_one_that_is_stated() -> None:
    every = fields(
        repetition_penalty=1.1, dry_multiplier=1.0, top_n_sigma=1.0, temperature=0.7, top_k=5, typical_p=0.9, top_p=0.9,
        min_p=0.1, xtc_probability=0.5,
    )  # fmt: skip
    assert every["samplers"] == [
        "penalties", "dry", "top_n_sigma", "temperature", "top_k", "typ_p", "top_p", "min_p", "xtc",
    ]  # fmt: skip


def test_what_is_not_asked_for_is_off_and_said_to_be_so() -> None:
    plain = fields()
    assert plain["samplers"] == ["temperature"]
    off = {
        "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "top_n_sigma": -1.0, "repeat_penalty": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "dry_multiplier": 0.0, "xtc_probability": 0.0,
        "mirostat": 0, "dynatemp_range": 0.0, "logit_bias": [], "ignore_eos": False,
    }  # fmt: skip
    assert {name: plain[name] for name in off} == off


def test_a_greedy_request_keeps_what_changes_logits_and_drops_what_only_cuts() -> None:
    greedy = fields(temperature=0.0, top_k=5, min_p=0.5, presence_penalty=1.0, dry_multiplier=1.0)
    assert greedy["samplers"] == ["penalties", "dry", "top_k"]
    assert greedy["top_k"] == 1


def test_zero_is_all_of_the_sequence_for_llama_cpp_too() -> None:
    assert (fields()["repeat_last_n"], fields()["dry_penalty_last_n"]) == (256, 256)
    assert fields(penalty_last_tokens=1 << 24)["repeat_last_n"] == 256, "llama.cpp would allocate as much"
    assert fields(penalty_last_tokens=9)["repeat_last_n"] == 9
    assert fields(dry_last_tokens=8)["dry_penalty_last_n"] == 8
    assert fields(dry_sequence_breakers=())["dry_sequence_breakers"], "llama.cpp wants one"


def test_every_field_of_sampling_is_there() -> None:
    assert HAS | {"temperature", "top_p", "seed"} == frozenset(Sampling.model_fields)


@pytest.mark.parametrize("token", [TOKENS, (1 << 32) - 1])
def test_a_bias_for_what_is_no_token_is_refused(token: int) -> None:
    with pytest.raises(
        SequenceFailed, match=f"logit_bias names the token {token}; this model has the tokens 0 to 49151"
    ):
        fields(logit_bias={str(token): 1.0})


@pytest.mark.parametrize(
    ("beside", "named"),
    [({"top_k": 5}, "top_k"), ({"top_p": 0.5}, "top_p"), ({"presence_penalty": 1.0, "min_p": 0.1}, "min_p, presence_")],
)
def test_mirostat_refuses_what_llama_cpp_would_drop_in_silence(beside: dict[str, Any], named: str) -> None:
    with pytest.raises(SequenceFailed, match=f"it takes no {named}"):
        fields(mirostat=2, **beside)
    assert fields(mirostat=2, mirostat_tau=3.0, logit_bias={"1": 1.0})["mirostat"] == 2


# That it takes effect


@pytest.fixture(scope="module")
def engine() -> Iterator[LlamaCppEngine]:
    path = smollm2()
    loaded = LlamaCppEngine(table(path), path)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def exact_engine() -> Iterator[LlamaCppEngine]:
    path = smollm2()
    loaded = LlamaCppEngine(table(path, exact=True), path)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def prompt(engine: LlamaCppEngine) -> tuple[int, ...]:
    return tuple(engine.encode("Once upon a time, there was a river"))


@pytest.fixture(scope="module")
def greedy(engine: LlamaCppEngine, prompt: tuple[int, ...]) -> list[int]:
    return run(engine, prompt)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "narrow",
    [
        {"top_k": 1},
        {"min_p": 1.0},
        {"top_p": 1e-6},
        {"top_n_sigma": 1e-3},
        {"mirostat": 2, "mirostat_tau": 1e-3, "mirostat_eta": 1.0, "temperature": 0.3},
        {"temperature": 1e-4},
    ],
    ids=lambda narrow: next(iter(narrow)),
)
def test_what_leaves_only_the_likeliest_token_is_greedy(
    engine: LlamaCppEngine, prompt: tuple[int, ...], greedy: list[int], narrow: dict[str, Any]
) -> None:
    assert run(engine, prompt, **{"temperature": 1.0, **narrow})[0] == greedy


def first_tokens(engine: LlamaCppEngine, prompt: tuple[int, ...], *, draws: int = 16, **sampling: Any) -> Counter[int]:
    """What is drawn first, over several seeds."""
    return Counter(
        run(engine, prompt, max_tokens=1, seed=seed, **{"temperature": 1.0, **sampling})[0][0] for seed in range(draws)
    )


@pytest.fixture(scope="module")
def opening(engine: LlamaCppEngine) -> tuple[int, ...]:
    """A text that can go on in many ways."""
    return tuple(engine.encode("The best animal of all is the"))


@pytest.fixture(scope="module")
def hot(engine: LlamaCppEngine, opening: tuple[int, ...]) -> Counter[int]:
    return first_tokens(engine, opening)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bound", "most"),
    [({"top_k": 3}, 3), ({"min_p": 0.5}, 4), ({"top_n_sigma": 0.4}, 8), ({"typical_p": 0.05}, 8), ({"top_p": 0.2}, 8)],
    ids=lambda part: next(iter(part)) if isinstance(part, dict) else "",
)
def test_a_bound_leaves_fewer_tokens_to_draw(
    engine: LlamaCppEngine, opening: tuple[int, ...], hot: Counter[int], bound: dict[str, Any], most: int
) -> None:
    assert len(hot) > 9
    bounded = first_tokens(engine, opening, **bound)
    assert len(bounded) <= most


@pytest.mark.slow
def test_a_token_with_a_bias_of_minus_100_is_banned_and_one_with_100_is_forced(
    engine: LlamaCppEngine, prompt: tuple[int, ...], greedy: list[int]
) -> None:
    banned = run(engine, prompt, logit_bias={str(token): -100.0 for token in greedy[:3]})[0]
    assert not set(banned) & set(greedy[:3])
    assert run(engine, prompt, max_tokens=4, logit_bias={str(greedy[5]): 100.0})[0] == [greedy[5]] * 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "penalty", [{"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"repetition_penalty": 10.0}]
)
def test_a_penalty_makes_an_answer_repeat_itself_less(engine: LlamaCppEngine, penalty: dict[str, float]) -> None:
    prompt = engine.encode("one two one two one two one two one two one two")
    plain = run(engine, prompt, max_tokens=16)[0]
    assert len(set(plain)) <= 4, "the model repeats what it sees"
    penalised = run(engine, prompt, max_tokens=16, **penalty)[0]
    assert penalised != plain
    if "presence_penalty" not in penalty:  # which is the same for a token that was there once
        assert len(set(penalised)) > len(set(plain))


@pytest.mark.slow
def test_a_penalty_looks_at_as_many_of_the_last_tokens_as_it_is_told(engine: LlamaCppEngine) -> None:
    prompt = engine.encode("one two one two one two one two one two one two")
    last, last_eight = (
        run(engine, prompt, max_tokens=6, repetition_penalty=10.0, penalty_last_tokens=tokens)[0] for tokens in (1, 8)
    )
    # What was there just now is left out, and what was there before it comes again.
    assert all(one != two for one, two in itertools.pairwise(last))
    assert len(set(last)) == 2
    assert len(set(last_eight)) > 2


@pytest.mark.slow
def test_dry_ends_a_repetition_that_has_gone_on_for_too_long(engine: LlamaCppEngine) -> None:
    prompt = engine.encode("one two one two one two one two one two one two")
    plain = run(engine, prompt, max_tokens=8)[0]
    strict = {"dry_multiplier": 5.0, "dry_allowed_length": 1}
    assert run(engine, prompt, max_tokens=8, **strict)[0] != plain
    assert run(engine, prompt, max_tokens=8, **strict, dry_last_tokens=1)[0] == plain
    breakers = (" one", " two", "one", "two")
    assert run(engine, prompt, max_tokens=4, **strict, dry_sequence_breakers=breakers)[0] == plain[:4]
    assert run(engine, prompt, max_tokens=8, **strict, dry_sequence_breakers=())[0] != plain


@pytest.mark.slow
def test_xtc_with_probability_1_leaves_out_the_likeliest_token(
    engine: LlamaCppEngine, opening: tuple[int, ...]
) -> None:
    likeliest = run(engine, opening, max_tokens=1)[0][0]
    drawn = first_tokens(engine, opening, xtc_probability=1.0, xtc_threshold=0.01, temperature=0.7)
    assert likeliest not in drawn
    assert likeliest in first_tokens(engine, opening, xtc_probability=0.0, xtc_threshold=0.01, temperature=0.7)


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_draws_more_boldly_with_a_higher_tau(engine: LlamaCppEngine, version: int) -> None:
    prompt = engine.encode("The best animal of all is the")
    shy = {tuple(run(engine, prompt, max_tokens=12, seed=s, mirostat=version, mirostat_tau=0.01, mirostat_eta=1.0,
                     temperature=1.0)[0]) for s in range(6)}  # fmt: skip
    bold = {tuple(run(engine, prompt, max_tokens=12, seed=s, mirostat=version, mirostat_tau=9.0, temperature=1.0)[0])
            for s in range(6)}  # fmt: skip
    assert len(bold) == 6
    assert shy != bold


@pytest.mark.slow
def test_dynamic_temperature_reaches_from_cold_to_hot(engine: LlamaCppEngine, opening: tuple[int, ...]) -> None:
    # With an exponent so large, the temperature is that of the lower end, however unsure the model is.
    cold = first_tokens(engine, opening, temperature=1.0, temperature_range=0.99, temperature_exponent=10.0)
    warm = first_tokens(engine, opening, temperature=1.0)
    hot = first_tokens(engine, opening, temperature=1.0, temperature_range=1.0, temperature_exponent=0.01)
    assert len(cold) < len(warm) < len(hot)


@pytest.mark.slow
@pytest.mark.parametrize(
    "penalties",
    [
        {"repetition_penalty": 1.3},
        {"presence_penalty": 1.5, "frequency_penalty": 0.5},
        {"repetition_penalty": 1.5, "penalty_last_tokens": 6},
        {"dry_multiplier": 2.0, "dry_allowed_length": 1},
        {"logit_bias": {"827": -100.0}},
        {"repetition_penalty": 1.2, "temperature": 0.9, "top_k": 40, "min_p": 0.02},
        {"xtc_probability": 0.5, "temperature": 0.9},
        {"mirostat": 2, "temperature": 0.9},
    ],
    ids=lambda penalties: next(iter(penalties)),
)
def test_penalties_see_what_earlier_attempts_generated(exact_engine: LlamaCppEngine, penalties: dict[str, Any]) -> None:
    prompt = exact_engine.encode("one two one two one two one two one two")
    whole, finish = run(exact_engine, prompt, max_tokens=24, **penalties)
    assert whole != run(exact_engine, prompt, max_tokens=24)[0]
    for k in (1, 17):
        rest, end = run(exact_engine, prompt, generated=whole[:k], max_tokens=24 - k, **penalties)
        assert whole[:k] + rest == whole, f"resumed after {k} ids: {text_of(exact_engine, rest)}"
        assert end is finish
