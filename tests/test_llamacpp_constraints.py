"""Constrained answers on llama.cpp itself: they fit, also if they are cut off anywhere and go on in another process."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from grammar_texts import LETTERS, Node, grammar_of, grammars
from headpond.constraints import Constraint, ConstraintKind
from headpond.errors import SequenceFailed
from headpond.jobs import FinishReason
from headpond_workers.engines.grammar.gbnf import GrammarError, matches
from headpond_workers.engines.grammar.gbnf_ambiguity import refuse_explosive
from headpond_workers.engines.grammar.gbnf_parser import parse
from headpond_workers.engines.grammar.gbnf_state import GrammarState, Program, program_of
from headpond_workers.engines.llamacpp.constraint import ConstrainedText
from headpond_workers.engines.llamacpp.engine import LlamaCppEngine
from llama_engines import grammar, run, schema, smollm2, table, text_of
from schema_checker import admits
from tiny_gguf import CONTEXT_TOKENS, write_tiny_model

pytestmark = pytest.mark.slow

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "colours": {
            "type": "array",
            "items": {"enum": ["red", "gr\u00fcn", "\u9752", "\U0001f7e1"]},
            "minItems": 1,
            "maxItems": 3,
        },
    },
    "required": ["name", "age", "colours"],
}
ASKED = "A person as JSON: "


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCppEngine]:
    path = write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
    loaded = LlamaCppEngine(table(path, context_tokens=CONTEXT_TOKENS), path)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def path() -> Path:
    return smollm2()


@pytest.fixture(scope="module")
def engine(path: Path) -> Iterator[LlamaCppEngine]:
    loaded = LlamaCppEngine(table(path), path)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def exact_engine(path: Path) -> Iterator[LlamaCppEngine]:
    loaded = LlamaCppEngine(table(path, exact=True), path)
    yield loaded
    loaded.close()


# Against llama.cpp's own grammar


def drawn(engine: LlamaCppEngine, gbnf: str, *, seed: int, tokens: int) -> tuple[bytes, bool]:
    """Bytes that llama.cpp itself draws under a grammar in one request, and whether it came to an end."""
    body = {
        "prompt": [104, 105], "max_tokens": tokens, "seed": seed, "temperature": 3.0, "samplers": ["temperature"],
        "grammar": gbnf, "return_tokens": True, "verbose": True, "cache_prompt": False,
    }  # fmt: skip
    detail = engine.open_server().complete(body, None)["__verbose"]
    ended = detail["stop_type"] == "eos"
    return b"".join(map(engine.token_bytes, detail["tokens"])), ended


def is_utf8(data: bytes) -> bool:
    """Whether it is, perhaps cut off amid a character."""
    try:
        codecs.utf_8_decode(data, "strict", False)
    except UnicodeDecodeError:
        return False
    return True


def forced(engine: LlamaCppEngine, gbnf: str, character: str) -> bool:
    """Whether llama.cpp takes a character, if all else is far less likely."""
    first = character.encode()[0]
    body = {
        "prompt": [104, 105], "max_tokens": 1, "temperature": 0.0, "samplers": ["temperature"], "grammar": gbnf,
        "logit_bias": [[first, 1000.0]], "return_tokens": True, "verbose": True, "cache_prompt": False,
    }  # fmt: skip
    (token,) = engine.open_server().complete(body, None)["__verbose"]["tokens"]
    return bool(token == first)


@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(grammars, st.integers(0, 1000), st.data())
def test_what_is_left_of_a_grammar_is_what_llama_cpp_has_left_of_it(
    tiny: LlamaCppEngine, node: Node, seed: int, data: st.DataObject
) -> None:
    source = grammar_of(node)
    try:
        grammar = parse(source)
        refuse_explosive(grammar)
        program = program_of(grammar)
    except GrammarError:
        assume(False)
    # What llama.cpp draws under the grammar as it was written, the state follows to the end.
    made, ended = drawn(tiny, source, seed=seed, tokens=12)
    # A character in more bytes than it has is text for llama.cpp's grammar, where a class is a negated one.
    assume(is_utf8(made))
    text = made.decode("utf-8", "ignore")
    state = GrammarState(program)
    assert state.advance(text)
    assert state.may_end or not ended
    if ended:
        assert node.accepts(text)
    # What it draws under what a part of that text has left, fits behind that part.
    cut = data.draw(st.integers(0, len(text)))
    state = GrammarState(program)
    assert state.advance(text[:cut])
    more, ended = drawn(tiny, state.residual(), seed=seed, tokens=12)
    assume(is_utf8(more))
    behind = more.decode("utf-8", "ignore")
    whole = GrammarState(program)
    assert whole.advance(text[:cut] + behind)
    if ended:
        assert node.accepts(text[:cut] + behind)
    # And one character is taken exactly if the whole grammar takes it there.
    character = data.draw(st.sampled_from([c for c in LETTERS + "()" if c.isascii()]))
    assert forced(tiny, state.residual(), character) == state.admits(ord(character))


# On a model that says nothing of its own, each way to cut


CUTS: list[tuple[Constraint, Any]] = [
    (schema(PERSON), PERSON),
    (Constraint(ConstraintKind.JSON_OBJECT), {"type": "object"}),
    (grammar('root ::= ("\U0001f600" | "\u65e5\u672c" | [\u00e0-\u00fc]){4,9} "!"'), None),
]


@pytest.mark.parametrize(("constraint", "expected"), CUTS, ids=["schema", "object", "characters"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_an_answer_that_is_cut_anywhere_goes_on_to_one_that_fits(
    tiny: LlamaCppEngine, constraint: Constraint, expected: Any, temperature: float
) -> None:
    asked = {"constraint": constraint, "max_tokens": 300, "temperature": temperature}
    for seed in range(40):
        whole, finish = run(tiny, [104, 105], seed=seed, **asked)
        if finish is FinishReason.STOP and len(whole) > 8:
            break
    program = tiny._constraints.program(constraint, lambda: None)  # type: ignore[arg-type, return-value]
    assert program is not None
    ended = 0
    for k in range(len(whole) + 1):
        rest, finish = run(tiny, [104, 105], generated=whole[:k], seed=seed, **asked)
        state = GrammarState(program)
        text = b"".join(map(tiny.token_bytes, [*whole[:k], *rest]))
        assert state.advance(text.decode("utf-8", "ignore" if finish is FinishReason.LENGTH else "strict"))
        if finish is FinishReason.STOP:
            ended += 1
            assert state.may_end
            if expected is not None:
                assert admits(expected, json.loads(text))
    if temperature or expected is None:
        assert ended > 0
    if finish is FinishReason.STOP:
        assert rest == [], "the whole answer was complete"


def test_a_character_that_was_cut_is_completed_by_what_fits(tiny: LlamaCppEngine) -> None:
    face = "\U0001f600".encode()
    constraint = grammar('root ::= "\U0001f600" "x" | "\U0001f601" "y"')
    for known in range(1, 5):
        ids, finish = run(tiny, [104], generated=list(face[:known]), constraint=constraint, max_tokens=9)
        whole = (face[:known] + b"".join(map(tiny.token_bytes, ids))).decode()
        assert (whole in ("\U0001f600x", "\U0001f601y"), finish) == (True, FinishReason.STOP)


def test_max_tokens_may_end_an_answer_amid_a_character(tiny: LlamaCppEngine) -> None:
    constraint = grammar('root ::= "\U0001f600"{3}')
    ids, finish = run(tiny, [104], constraint=constraint, max_tokens=5)
    assert (bytes(ids), finish) == ("\U0001f600".encode() + b"\xf0", FinishReason.LENGTH)
    rest, finish = run(tiny, [104], generated=ids, constraint=constraint, max_tokens=50)
    assert (bytes(ids + rest).decode(), finish) == ("\U0001f600" * 3, FinishReason.STOP)


def test_an_answer_that_is_complete_ends_at_once_and_with_stop(tiny: LlamaCppEngine) -> None:
    constraint = grammar('root ::= "abc"')
    whole, finish = run(tiny, [104], constraint=constraint)
    assert (bytes(tiny.token_bytes(i)[0] for i in whole if i < 256) != b"", finish) == (True, FinishReason.STOP)
    assert text_of(tiny, whole) == "abc"
    assert run(tiny, [104], generated=whole, constraint=constraint) == ([], FinishReason.STOP)
    # Also where max_tokens is used up with its last character.
    assert run(tiny, [104], constraint=constraint, max_tokens=len(whole))[1] is FinishReason.STOP


def test_ids_whose_text_does_not_fit_fail_their_sequence(tiny: LlamaCppEngine) -> None:
    with pytest.raises(SequenceFailed, match="none of this request's constraint"):
        run(tiny, [104], generated=list(b"xyz"), constraint=grammar('root ::= "abc"'))


def test_too_many_ways_amid_an_answer_fail_it_and_no_neighbour(tiny: LlamaCppEngine) -> None:
    # The child sees no harm in 20 characters of a prefix; behind it each letter doubles the ways.
    hidden = 'root ::= "' + "ab" * 20 + '" more\nmore ::= "c" (more "x" | more "y") | "d"\n'
    program: Program = program_of(parse(hidden))
    text = ConstrainedText(program, [bytes([n]) for n in range(256)], b"ab" * 20)
    with pytest.raises(SequenceFailed, match="cannot be kept to any longer"):
        text.take(b"c" * 30)
    with pytest.raises(SequenceFailed, match="ways"):
        run(tiny, [104], constraint=grammar(hidden))
    assert run(tiny, [104], constraint=grammar('root ::= "ok"'))[1] is FinishReason.STOP


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        (grammar("root ::= ("), "line 1"),
        (grammar("%llguidance {}\nstart: /a/"), "name of a rule"),
        (grammar("root ::= <[0]>"), "tokens"),
        (schema({"type": "string", "pattern": "^(?=a)$"}), "look-around"),
    ],
    ids=["grammar", "llguidance", "tokens", "schema"],
)
def test_a_constraint_that_cannot_be_kept_to_fails_its_sequence_and_no_neighbour(
    tiny: LlamaCppEngine, constraint: Constraint, reason: str
) -> None:
    with ThreadPoolExecutor(1) as pool:
        neighbour = pool.submit(run, tiny, [104], max_tokens=200, temperature=1.0)
        with pytest.raises(SequenceFailed, match=reason):
            run(tiny, [104], constraint=constraint)
        assert len(neighbour.result(60)[0]) > 0


def test_a_control_token_is_no_text_of_an_answer(tiny: LlamaCppEngine) -> None:
    begin = 256 + 10
    assert tiny.token_bytes(begin) == b""
    constraint = grammar('root ::= [a-z<>|]{12} "!"')
    ids, finish = run(tiny, [104], constraint=constraint, logit_bias={str(begin): 100.0})
    assert begin not in ids
    assert (len(text_of(tiny, ids)), finish) == (13, FinishReason.STOP)


# On a real model


def test_a_character_that_the_model_has_no_token_for_is_refused_and_does_not_abort_the_process(
    engine: LlamaCppEngine,
) -> None:
    with pytest.raises(SequenceFailed, match=r"no tokens that write the character U\+0004"):
        run(engine, [1], constraint=grammar('root ::= "\\x04"'))
    ids, finish = run(engine, [1], constraint=grammar("root ::= [\\x01-\\x06]{3}"), temperature=1.0)
    assert (len(text_of(engine, ids)), finish) == (3, FinishReason.STOP)


def test_a_schema_is_kept_to_by_a_model_that_was_cut_anywhere(engine: LlamaCppEngine) -> None:
    prompt = engine.encode(ASKED)
    whole, finish = run(engine, prompt, constraint=schema(PERSON), max_tokens=80)
    assert finish is FinishReason.STOP
    assert admits(PERSON, json.loads(text_of(engine, whole)))
    for k in range(0, len(whole), 6):
        rest, finish = run(engine, prompt, generated=whole[:k], constraint=schema(PERSON), max_tokens=80)
        assert finish is FinishReason.STOP
        assert admits(PERSON, json.loads(text_of(engine, whole[:k] + rest)))


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_constrained_answer_goes_on_with_the_same_ids_under_the_exact_profile(
    exact_engine: LlamaCppEngine, temperature: float
) -> None:
    prompt = exact_engine.encode(ASKED)
    asked = {"constraint": schema(PERSON), "max_tokens": 70, "temperature": temperature}
    whole, finish = run(exact_engine, prompt, **asked)
    assert finish is FinishReason.STOP
    assert admits(PERSON, json.loads(text_of(exact_engine, whole)))

    def resumed(k: int) -> tuple[list[int], FinishReason]:
        return run(exact_engine, prompt, generated=whole[:k], **{**asked, "max_tokens": 70 - k})

    kept = range(1, len(whole) + 1, 6)
    with ThreadPoolExecutor(3) as pool:
        for k, (rest, end) in zip(kept, pool.map(resumed, kept), strict=True):
            assert whole[:k] + rest == whole, f"resumed after {k} ids"
            assert end is finish


def test_constrained_and_free_answers_run_side_by_side(engine: LlamaCppEngine) -> None:
    prompt = engine.encode(ASKED)
    asked: list[dict[str, Any]] = [
        {"constraint": schema(PERSON), "max_tokens": 80},
        {"constraint": grammar("root ::= [0-9]{5}"), "max_tokens": 80},
        {"max_tokens": 20},
    ]
    with ThreadPoolExecutor(3) as pool:
        texts = [text_of(engine, ids) for ids, _ in pool.map(lambda more: run(engine, prompt, **more), asked)]
    assert admits(PERSON, json.loads(texts[0]))
    assert texts[1].isdigit()
    assert len(texts[1]) == 5


def test_the_classes_that_are_due_are_those_that_matter(tiny: LlamaCppEngine) -> None:
    state = GrammarState(program_of(parse("root ::= [a-c] | [x]")))
    assert sum(matches(ranges, ord("b")) for ranges in state.due()) == 1
