"""What a result says of what made it: the document, the digests, and what each engine knows."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headpond.errors import MalformedDocument
from headpond.jobs import FinishReason, JobState, Result
from headpond.provenance import MAX_ADAPTERS, AdapterDigest, Provenance, digest_of_ids
from headpond.requests import JobRequest
from headpond.sampling import Sampling
from headpond.tables import ScriptedModel
from headpond.wire import RESULT_SCHEMA, pack, pack_result, unpack, unpack_result
from headpond_workers.engines.protocol import Capability, EngineInfo
from headpond_workers.engines.scripted import ScriptedEngine
from headpond_workers.made_by import applied, provenance_of

INFO = EngineInfo(
    "llamacpp",
    "f" * 64,
    2048,
    4,
    frozenset({Capability.ADAPTERS}),
    ("pirate", "poet"),
    adapter_digests=("a" * 64, "b" * 64),
    weights_digest="c" * 64,
)
words = st.text(st.characters(codec="utf-8"), max_size=40)
provenances = st.builds(
    Provenance,
    engine=words,
    fingerprint=words,
    weights_digest=st.none() | words,
    model_digest=st.none() | words,
    adapters=st.lists(st.builds(AdapterDigest, words, st.none() | words), max_size=3).map(tuple),
    request_digest=st.none() | words,
    prompt_digest=st.none() | words,
    sampling=st.dictionaries(words, st.floats(allow_nan=False) | st.integers(0, 1000) | st.lists(words), max_size=4),
    seed=st.none() | st.integers(0, (1 << 32) - 1),
    upstream_model=st.none() | words,
)


def result_with(made_by: Provenance | None) -> Result:
    return Result("chat/a", JobState.FINISHED, "", (), FinishReason.STOP, provenance=made_by)


@given(provenances)
def test_a_provenance_comes_back_with_its_result(made_by: Provenance) -> None:
    assert unpack_result(pack_result(result_with(made_by)), durable=False).provenance == made_by


def test_a_result_of_a_release_without_provenance_is_read_and_an_older_reader_passes_over_one() -> None:
    packed = pack_result(result_with(None))
    assert b"provenance" not in packed
    assert unpack_result(packed, durable=False).provenance is None
    fields = unpack(pack_result(result_with(Provenance(engine="x", fingerprint="y"))), kind=RESULT_SCHEMA)
    assert unpack(packed, kind=RESULT_SCHEMA) == {key: fields[key] for key in fields if key != "provenance"}


def test_a_field_that_a_later_release_adds_is_passed_over() -> None:
    fields = Provenance(engine="x", fingerprint="y").fields()
    assert Provenance.of_fields(fields | {"phase_of_the_moon": 3}) == Provenance.of_fields(fields)


@pytest.mark.parametrize(
    "damage",
    [
        {"engine": 1},
        {"fingerprint": "x" * 301},
        {"weights_digest": b"bytes"},
        {"adapters": "pirate"},
        {"adapters": [["pirate"]]},
        {"adapters": [[1, "a"]]},
        {"adapters": [["pirate", 1]]},
        {"adapters": [["p", "a"]] * (MAX_ADAPTERS + 1)},
        {"sampling": []},
        {"sampling": {str(n): n for n in range(65)}},
        {"seed": -1},
        {"seed": True},
        {"seed": 1.0},
        {"seed": 1 << 64},
    ],
    ids=lambda damage: "-".join(damage),
)
def test_a_damaged_provenance_is_refused(damage: dict[str, Any]) -> None:
    fields = Provenance(engine="x", fingerprint="y").fields() | damage
    with pytest.raises(MalformedDocument):
        Provenance.of_fields(fields)
    document = unpack(pack_result(result_with(None)), kind=RESULT_SCHEMA)
    if "seed" not in damage or damage["seed"] != 1 << 64:  # which msgpack does not hold
        with pytest.raises(MalformedDocument):
            unpack_result(pack(document | {"provenance": fields}), durable=False)


@given(st.lists(st.integers(0, (1 << 32) - 1), max_size=50))
def test_the_digest_of_ids_is_that_of_four_little_bytes_each(ids: list[int]) -> None:
    assert digest_of_ids(ids) == hashlib.sha256(struct.pack(f"<{len(ids)}I", *ids)).hexdigest()
    assert digest_of_ids(tuple(ids)) == digest_of_ids(ids)


def test_the_adapter_that_was_applied_is_named_with_its_digest() -> None:
    bare = provenance_of(INFO, JobRequest(prompt="x"), job_id="chat/a", prompt=(1, 2))
    assert bare.adapters == ()
    poet = provenance_of(INFO, JobRequest(prompt="x", adapter="poet"), job_id="chat/a", prompt=(1, 2))
    assert poet.adapters == (AdapterDigest("poet", "b" * 64),)
    unknown = provenance_of(INFO, JobRequest(prompt="x", adapter="bard"), job_id="chat/a", prompt=(1, 2))
    assert unknown.adapters == (AdapterDigest("bard", None),)


def test_sampling_is_named_as_it_was_applied() -> None:
    assert applied(Sampling()) == {"temperature": 1.0, "top_p": 1.0}
    asked = Sampling(temperature=0.0, seed=4, top_k=40, logit_bias={"7": -5.0}, dry_multiplier=0.5)
    assert applied(asked) == {
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 40,
        "logit_bias": {"7": -5.0},
        "dry_multiplier": 0.5,
    }


def test_the_seed_is_the_effective_one() -> None:
    given_seed = provenance_of(INFO, JobRequest(prompt="x", sampling=Sampling(seed=4)), job_id="chat/a", prompt=(1,))
    derived = provenance_of(INFO, JobRequest(prompt="x"), job_id="chat/a", prompt=(1,))
    assert given_seed.seed == 4
    assert derived.seed == JobRequest(prompt="x").seed_for("chat/a")


def test_a_job_that_embeds_has_no_prompt_no_sampling_and_no_seed() -> None:
    made_by = provenance_of(INFO, JobRequest(input=("x",)), job_id="chat/a", prompt=None)
    assert (made_by.prompt_digest, made_by.sampling, made_by.seed) == (None, {}, None)
    assert made_by.weights_digest == "c" * 64


def test_an_engine_that_says_little_has_a_provenance_that_says_little() -> None:
    made_by = provenance_of(EngineInfo("echo", "e" * 64, 64, 1), JobRequest(prompt="x"), job_id="chat/a", prompt=(-1,))
    assert (made_by.weights_digest, made_by.model_digest, made_by.prompt_digest) == (None, None, None)


def test_what_decides_a_scripted_answer_is_in_its_digest_of_weights() -> None:
    def digest(**changes: Any) -> str:
        engine = ScriptedEngine(ScriptedModel(engine="scripted", **changes))
        engine.close()
        return engine.info.weights_digest

    assert digest() == digest(tokens_per_s=7.0, slots=2, context_tokens=999)
    assert digest() != digest(answer_tokens=3)
