"""Constraints, samplers and embeddings on every engine of `engine_subjects`: what it has, it has whole; the rest is
refused by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine_conformance import Attempt, Subject, prompt_of, sequence, text_of
from engine_subjects import EMBEDDERS, SUBJECTS
from headpond.constraints import Constraint, ConstraintKind
from headpond.errors import CapabilityMissing, PromptTooLong, SequenceFailed
from headpond.jobs import FinishReason
from headpond.sampling import BASIC, Sampling
from headpond_workers.engines.protocol import Capability, Engine, Verdict
from schema_checker import admits

SCHEMA = {
    "type": "object",
    "properties": {
        "size": {"enum": ["small", "gr\u00f6\u00dfer"]},
        "count": {"type": "integer", "minimum": 1, "maximum": 99},
        "parts": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["size", "count", "parts"],
    "additionalProperties": False,
}
BOUND = Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(SCHEMA))
DIGITS = Constraint(ConstraintKind.GRAMMAR, 'root ::= [0-9]{3} "-" [a-f]{2}')
NEEDS = {ConstraintKind.GRAMMAR: Capability.GRAMMAR, ConstraintKind.JSON_SCHEMA: Capability.JSON_SCHEMA}
ASKED: dict[str, Any] = {
    "top_k": 5, "min_p": 0.1, "typical_p": 0.9, "repetition_penalty": 1.2, "presence_penalty": 0.5,
    "frequency_penalty": 0.5, "penalty_last_tokens": 8, "dry_multiplier": 0.8, "dry_base": 2.0,
    "dry_allowed_length": 3, "dry_last_tokens": 9, "dry_sequence_breakers": ("x",), "xtc_probability": 0.5,
    "xtc_threshold": 0.2, "mirostat": 2, "mirostat_tau": 4.0, "mirostat_eta": 0.2, "temperature_range": 0.3,
    "temperature_exponent": 1.5, "top_n_sigma": 1.0, "logit_bias": {"1": 1.0},
}  # fmt: skip
"""A value of each field of Sampling that is not its default."""


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Subject:
    chosen: Subject = request.param
    return chosen


@pytest.fixture(scope="module")
def engine(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    loaded = subject.load(tmp_path_factory.mktemp(subject.name))
    yield loaded
    loaded.close()


def has(engine: Engine, constraint: Constraint) -> bool:
    return NEEDS[constraint.kind] in engine.info.capabilities


# Constraints


@pytest.mark.parametrize("constraint", [BOUND, DIGITS], ids=["schema", "grammar"])
def test_a_constraint_is_kept_to_or_refused(subject: Subject, engine: Engine, constraint: Constraint) -> None:
    attempt = Attempt(engine, sequence(prompt_of(engine, subject.ends), max_tokens=150, constraint=constraint))
    if not has(engine, constraint):
        with pytest.raises(CapabilityMissing, match="cannot bind an answer to"):
            attempt.run()
        assert attempt.calls == []
        return
    attempt.run()
    assert attempt.finish is FinishReason.STOP
    if constraint is BOUND:
        assert admits(SCHEMA, json.loads(attempt.text))
    else:
        assert attempt.text[:3].isdigit()
        assert (attempt.text[3], len(attempt.text)) == ("-", 6)


def test_a_constrained_answer_that_is_cut_goes_on_to_its_end(subject: Subject, engine: Engine) -> None:
    if not has(engine, BOUND):
        return
    prompt = engine.encode(subject.ends)
    whole = Attempt(engine, sequence(prompt, max_tokens=150, constraint=BOUND)).run()
    assert whole.finish is FinishReason.STOP
    for k in range(0, len(whole.raw) + 1, max(1, len(whole.raw) // 3)):
        asked = sequence(prompt, generated=whole.raw[:k], max_tokens=150, constraint=BOUND)
        rest = Attempt(engine, asked).run()
        assert rest.finish is FinishReason.STOP
        assert admits(SCHEMA, json.loads(text_of(engine, whole.raw[:k] + rest.raw)))
        if Capability.EXACT_RESUME in engine.info.capabilities:
            assert whole.raw[:k] + rest.raw == whole.raw


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint(ConstraintKind.GRAMMAR, "root ::= ((("),
        Constraint(ConstraintKind.JSON_SCHEMA, '{"$ref": "https://example.com/schema"}'),
    ],
    ids=["grammar", "schema"],
)
def test_a_constraint_that_is_none_fails_its_sequence_alone(
    subject: Subject, engine: Engine, constraint: Constraint
) -> None:
    if not has(engine, constraint):
        return
    prompt = prompt_of(engine, subject.ends)
    attempt = Attempt(engine, sequence(prompt, constraint=constraint))
    with pytest.raises(SequenceFailed):
        attempt.run()
    assert attempt.raw == []
    assert Attempt(engine, sequence(prompt, max_tokens=3)).run().raw


# Samplers


def test_each_field_of_sampling_is_asked_for_here() -> None:
    assert ASKED.keys() | BASIC == Sampling.model_fields.keys()
    assert all(Sampling(**{name: value}).asks_for() == {name} for name, value in ASKED.items())


@pytest.mark.parametrize("name", sorted(ASKED))
def test_a_sampler_is_there_or_refused_by_its_name(subject: Subject, engine: Engine, name: str) -> None:
    sampling = {name: ASKED[name]}
    attempt = Attempt(
        engine, sequence(prompt_of(engine, subject.runs_on), max_tokens=3, temperature=subject.hot, **sampling)
    )
    if name in engine.info.sampling:
        assert 0 < len(attempt.run().raw) <= 3
        return
    with pytest.raises(CapabilityMissing, match=f"cannot sample with {name}"):
        attempt.run()
    assert attempt.calls == []


# Embeddings


def test_an_engine_that_generates_and_does_not_embed_has_no_embed(engine: Engine) -> None:
    if Capability.EMBEDDINGS not in engine.info.capabilities:
        assert not hasattr(engine, "embed")


@pytest.mark.parametrize("embedder", EMBEDDERS)
def test_an_engine_that_embeds_does_so_alike_each_time_and_refuses_to_generate(
    embedder: Subject, tmp_path: Path
) -> None:
    engine: Any = embedder.load(tmp_path)
    assert engine.info.capabilities == embedder.capabilities
    texts = ["ab", "abc12", "a" * 40]
    first, second = (engine.embed(texts, lambda: Verdict.GO) for _ in range(2))
    assert first == second
    assert len(first.vectors) == len(texts)
    assert len({len(vector) for vector in first.vectors}) == 1
    assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-6) for vector in first.vectors)
    assert first.tokens == sum(len(engine.encode(text)) for text in texts)
    assert engine.embed(texts, lambda: Verdict.STOP) is None
    with pytest.raises(PromptTooLong):
        engine.embed(["ab", "1x" * embedder.context_tokens], lambda: Verdict.GO)
    with pytest.raises(CapabilityMissing, match="it is loaded to embed"):
        Attempt(engine, sequence([1, 2])).run()
    engine.close()
