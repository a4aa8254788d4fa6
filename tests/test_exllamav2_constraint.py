"""Answers of exllamav2 that are bound to JSON, a schema or a grammar: the real package over the CPU harness."""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from conftest import Deployment
from exllamav2_cpu.availability import require_exllamav2
from headpond import Client
from headpond.bundle import Bundle
from headpond.constraints import Constraint, ConstraintKind
from headpond.dead import bundle_of
from headpond.errors import JobFailed, SequenceFailed
from headpond.jobs import FinishReason
from headpond.sampling import Sampling
from headpond.tables import AdapterTable, DraftTable, ExLlamaV2Model
from headpond.wire import unpack_result
from headpond_workers.engines.exllamav2.llguidance_check import ConstraintLimits, check_constraint
from headpond_workers.engines.protocol import Capability, Finish, Sequence, Verdict
from headpond_workers.redaction import Secrets
from headpond_workers.replay.child import replay
from headpond_workers.replay.events import EventWriter, Finished, Step, parse_event
from worker_flow import ENDED_S, Reading, assert_read_once, await_tokens, row_of, start_worker

require_exllamav2()

from exllamav2_cpu import checkpoints, harness, processes, tiny_corpus  # noqa: E402

harness.install()

from headpond_workers.engines.exllamav2.engine import ExLlamaV2Engine  # noqa: E402

pytestmark = pytest.mark.slow

SLOTS = 4
GREEDY = Sampling(temperature=0)
WARM = Sampling(temperature=1.0)
HOT = Sampling(temperature=3.0)
ANY_OBJECT = Constraint(ConstraintKind.JSON_OBJECT)
LIST_OF_NUMBERS: dict[str, Any] = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": 999},
    "minItems": 24,
    "maxItems": 24,
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "object": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "count": {"type": "integer", "minimum": 0, "maximum": 99},
            "sure": {"type": "boolean"},
        },
        "required": ["name", "count", "sure"],
        "additionalProperties": False,
    },
    "nested": {
        "type": "object",
        "properties": {
            "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1, "maxItems": 4},
            "place": {
                "type": "object",
                "properties": {"x": {"type": "integer", "minimum": -9, "maximum": 9}, "y": {"type": "null"}},
                "required": ["x", "y"],
                "additionalProperties": False,
            },
        },
        "required": ["tags", "place"],
        "additionalProperties": False,
    },
    "choice": {"anyOf": [{"const": 7}, {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}]},
    "reference": {
        "$defs": {"side": {"enum": ["left", "right"]}},
        "type": "array",
        "items": {"$ref": "#/$defs/side"},
        "minItems": 2,
        "maxItems": 2,
    },
    "unicode": {
        "type": "object",
        "properties": {
            "wort": {"const": "na\u00efve \u65e5\u672c\u8a9e \U0001f600"},
            "\u00fcber": {"enum": ["\U0001f389", "e\u0301"]},
        },
        "required": ["wort", "\u00fcber"],
        "additionalProperties": False,
    },
    "date": {"type": "string", "format": "date"},
    "numbers": LIST_OF_NUMBERS,
}


def schema(definition: object) -> Constraint:
    return Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(definition, ensure_ascii=False, separators=(",", ":")))


def grammar(text: str) -> Constraint:
    return Constraint(ConstraintKind.GRAMMAR, text)


@pytest.fixture(scope="module")
def digests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("digests")


def table(**changes: Any) -> ExLlamaV2Model:
    values: dict[str, Any] = {"path": checkpoints.tiny(), "context_tokens": 1024, "slots": SLOTS, "chunk_tokens": 256}
    return ExLlamaV2Model(engine="exllamav2", **(values | changes))


@pytest.fixture(scope="module")
def engine(digests: Path) -> Iterator[ExLlamaV2Engine]:
    engine = ExLlamaV2Engine(
        table(adapters={"one": AdapterTable(path=checkpoints.tiny_adapter(1))}), digest_cache=digests
    )
    yield engine
    assert engine._loop.call(lambda: len(engine._jobs.generator.referenced_pages)) == 0
    engine.close()


@dataclass
class Answer:
    ids: list[int] = field(default_factory=list)
    finish: Finish | None = None
    calls: int = 0


def ask(
    engine: ExLlamaV2Engine, sequence: Sequence, verdict: Callable[[Answer], Verdict] = lambda answer: Verdict.GO
) -> Answer:
    answer = Answer()

    def emit(ids: Seq[int]) -> Verdict:
        answer.ids += ids
        answer.calls += 1
        return verdict(answer)

    answer.finish = engine.generate(sequence, emit)
    return answer


def asked(
    engine: ExLlamaV2Engine,
    constraint: Constraint | None,
    sampling: Sampling = GREEDY,
    *,
    seed: int = 1,
    most: int = 300,
) -> Sequence:
    prompt = tuple(engine.encode(tiny_corpus.STORY * 2)[seed : seed + 30])
    return Sequence(prompt, (), most, sampling, seed, constraint=constraint)


def text_of(engine: ExLlamaV2Engine, ids: Seq[int]) -> str:
    return b"".join(map(engine.token_bytes, ids)).decode()


def assert_admitted(text: str, definition: dict[str, Any]) -> None:
    jsonschema.validate(json.loads(text), definition, format_checker=jsonschema.FormatChecker())


@cache
def story_alone(engine: ExLlamaV2Engine, seed: int) -> tuple[int, ...]:
    return tuple(ask(engine, asked(engine, None, HOT, seed=seed, most=60)).ids)


# What the answer is


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_answer_is_json_that_the_schema_admits(engine: ExLlamaV2Engine, name: str) -> None:
    wanted = schema(SCHEMAS[name])
    sequences = [
        asked(engine, wanted, GREEDY),
        asked(engine, wanted, WARM, seed=2),
        *(asked(engine, wanted, HOT, seed=seed) for seed in (3, 4)),
    ]
    with ThreadPoolExecutor(len(sequences)) as pool:
        answers = list(pool.map(lambda sequence: ask(engine, sequence), sequences))

    for answer in answers:
        assert answer.finish is not None
        assert answer.finish.reason is FinishReason.STOP
        assert_admitted(text_of(engine, answer.ids), SCHEMAS[name])
    assert len({tuple(answer.ids) for answer in answers}) > 1, "nothing was drawn"


def test_any_object_is_one_json_object(engine: ExLlamaV2Engine) -> None:
    ended = 0
    sequences = [asked(engine, ANY_OBJECT, HOT, seed=seed, most=120) for seed in range(8)]
    with ThreadPoolExecutor(SLOTS) as pool:
        answers = list(pool.map(lambda sequence: ask(engine, sequence), sequences))
    for answer in answers:
        assert answer.finish is not None
        if answer.finish.reason is FinishReason.STOP:
            assert isinstance(json.loads(text_of(engine, answer.ids)), dict)
            ended += 1
    assert ended, "no seed came to the end of its object"


def test_an_answer_that_is_cut_is_the_beginning_of_json(engine: ExLlamaV2Engine) -> None:
    wanted = schema(LIST_OF_NUMBERS)
    whole = ask(engine, asked(engine, wanted, HOT))
    cut = ask(engine, asked(engine, wanted, HOT, most=10))

    assert cut.finish is not None
    assert cut.finish.reason is FinishReason.LENGTH
    assert cut.ids == whole.ids[:10]


def test_a_grammar_is_followed_from_its_root(engine: ExLlamaV2Engine) -> None:
    wanted = grammar('root ::= answer (", " answer){2}\nanswer ::= "yes" | "no" | "\u65e5\u672c"')
    for seed in range(3):
        answer = ask(engine, asked(engine, wanted, HOT, seed=seed))
        parts = text_of(engine, answer.ids).split(", ")
        assert len(parts) == 3
        assert set(parts) <= {"yes", "no", "\u65e5\u672c"}


def test_a_bias_that_forbids_what_the_schema_wants_does_not_break_it(engine: ExLlamaV2Engine) -> None:
    banned = {str(token_id): -100.0 for token_id in range(len(engine._text.vocabulary))}
    sampling = Sampling(temperature=1.0, logit_bias=banned, repetition_penalty=2.0, dry_multiplier=1.0, top_k=3)
    answer = ask(engine, asked(engine, schema(SCHEMAS["object"]), sampling))
    assert_admitted(text_of(engine, answer.ids), SCHEMAS["object"])


# Resumed


@pytest.mark.parametrize(("name", "sampling"), [("object", GREEDY), ("unicode", HOT)], ids=["greedy", "drawn"])
def test_an_answer_that_is_resumed_anywhere_goes_on_the_same(
    engine: ExLlamaV2Engine, name: str, sampling: Sampling
) -> None:
    # On the harness ids are identical too. On a GPU only the schema is promised.
    whole = asked(engine, schema(SCHEMAS[name]), sampling, seed=5)
    undisturbed = ask(engine, whole).ids
    assert len(undisturbed) > 10

    def resumed(k: int) -> Answer:
        return ask(engine, replace(whole, generated=tuple(undisturbed[:k]), max_tokens=whole.max_tokens - k))

    with ThreadPoolExecutor(SLOTS) as pool:
        answers = list(pool.map(resumed, range(len(undisturbed) + 1)))
    for k, answer in enumerate(answers):
        assert answer.finish is not None
        assert answer.finish.reason is FinishReason.STOP
        assert undisturbed[:k] + answer.ids == undisturbed, f"resumed after {k}"


def test_ids_that_the_schema_does_not_admit_fail_the_sequence(engine: ExLlamaV2Engine) -> None:
    whole = asked(engine, schema(SCHEMAS["object"]))
    with pytest.raises(SequenceFailed, match="3 tokens that this job has already do not match"):
        ask(engine, replace(whole, generated=tuple(engine.encode("no JSON")[:3])))
    assert_admitted(text_of(engine, ask(engine, whole).ids), SCHEMAS["object"])


# Beside others


def test_neighbours_without_a_constraint_answer_as_if_alone(engine: ExLlamaV2Engine) -> None:
    alone = [story_alone(engine, seed) for seed in (1, 2)]
    bound = [asked(engine, schema(LIST_OF_NUMBERS), HOT, seed=seed) for seed in (3, 4)]
    free = [asked(engine, None, HOT, seed=seed, most=60) for seed in (1, 2)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda sequence: ask(engine, sequence), [*bound, *free]))

    for answer in answers[:2]:
        assert_admitted(text_of(engine, answer.ids), LIST_OF_NUMBERS)
    assert [tuple(answer.ids) for answer in answers[2:]] == alone


def test_an_adapter_and_a_draft_model_serve_constraints_too(engine: ExLlamaV2Engine, digests: Path) -> None:
    adapted = ask(engine, replace(asked(engine, schema(LIST_OF_NUMBERS), HOT), adapter="one"))
    assert_admitted(text_of(engine, adapted.ids), LIST_OF_NUMBERS)

    drafting = ExLlamaV2Engine(table(draft=DraftTable(path=checkpoints.tiny(), tokens=3)), digest_cache=digests)
    try:
        for sampling in (GREEDY, HOT):
            drafted = ask(drafting, asked(drafting, schema(LIST_OF_NUMBERS), sampling))
            assert drafted.ids == ask(engine, asked(engine, schema(LIST_OF_NUMBERS), sampling)).ids
    finally:
        drafting.close()


# Refused


def branching(levels: int) -> dict[str, Any]:
    """A schema whose parts multiply when they are merged."""
    both = [
        {"anyOf": [{"properties": {f"a{n}": {"const": 1}}}, {"properties": {f"b{n}": {"const": 2}}}]}
        for n in range(levels)
    ]
    return {"type": "object", "allOf": both}


REFUSED: dict[str, tuple[Constraint, str]] = {
    "no schema": (schema({"type": "banana"}), "The JSON schema cannot be used: .*banana"),
    "a keyword that is not known": (schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
    "a keyword with leave asked for": (
        schema({"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}),
        "uniqueItems",
    ),
    "a schema elsewhere": (schema({"$ref": "http://127.0.0.1:1/x.json"}), "cannot be used"),
    "nothing is admitted": (schema({"enum": []}), "cannot be used"),
    "parts that multiply": (schema(branching(24)), "The JSON schema (cannot be|was stopped|broke)"),
    "a large expression": (
        schema({"type": "string", "pattern": "^(([a-z]{1,500}){1,500}[0-9]{1,500}){1,500}$"}),
        "The JSON schema (cannot be|was stopped|broke)",
    ),
    "no grammar": (grammar("this is none"), "The grammar cannot be used"),
    "a grammar without a root": (grammar('other ::= "a"'), "The grammar cannot be used"),
    "a grammar of brackets": (grammar("root ::= " + "(" * 5000 + '"a"' + ")" * 5000), "The grammar"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_followed_costs_its_own_job_alone(engine: ExLlamaV2Engine, what: str) -> None:
    wanted, told = REFUSED[what]
    alone = story_alone(engine, 1)
    with ThreadPoolExecutor(1) as pool:
        neighbour = pool.submit(ask, engine, asked(engine, None, HOT, seed=1, most=60))
        for _ in range(2):
            with pytest.raises(SequenceFailed, match=told):
                ask(engine, asked(engine, wanted))
        assert tuple(neighbour.result(60).ids) == alone


def test_a_limit_that_is_passed_amid_an_answer_ends_that_answer_alone(
    engine: ExLlamaV2Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llguidance import LLParserLimits

    wanted = schema(LIST_OF_NUMBERS | {"title": "with little room"})
    constraints = engine._constraints
    assert constraints is not None
    monkeypatch.setattr(constraints, "_limits", LLParserLimits(max_lexer_states=20, verbose_errors=False))
    steps: list[int] = []
    recover = engine._jobs.recover
    monkeypatch.setattr(engine._jobs, "recover", lambda: (steps.append(1), recover()))
    alone = story_alone(engine, 2)
    with ThreadPoolExecutor(1) as pool:
        neighbour = pool.submit(ask, engine, asked(engine, None, HOT, seed=2, most=60))
        with pytest.raises(
            SequenceFailed, match="The JSON schema cannot be followed any further: lexer error: too many states"
        ):
            ask(engine, asked(engine, wanted, HOT))
        assert tuple(neighbour.result(60).ids) == alone
    assert steps == [], "the batch was torn down"


def test_a_compilation_is_stopped_at_its_limits_and_leaves_no_process(tmp_path: Path) -> None:
    import psutil

    hostile = schema(branching(24))
    children = set(psutil.Process().children(recursive=True))
    with pytest.raises(SequenceFailed, match=r"more than 0\.1 s"):
        check_constraint(hostile, lambda: Verdict.GO, limits=ConstraintLimits(wall_s=0.1))
    with pytest.raises(SequenceFailed, match=r"broke the process|MiB of memory"):
        check_constraint(schema({}), lambda: Verdict.GO, limits=ConstraintLimits(memory_bytes=24 << 20))
    assert set(psutil.Process().children(recursive=True)) <= children


def test_a_cancel_is_heard_while_a_schema_is_tried(engine: ExLlamaV2Engine) -> None:
    fresh = schema(LIST_OF_NUMBERS | {"title": "never seen before"})
    answer = ask(engine, asked(engine, fresh), lambda answer: Verdict.STOP)
    assert answer.finish is not None
    assert answer.finish.reason is FinishReason.CANCELLED
    assert answer.ids == []


def test_a_schema_that_many_ask_for_at_once_is_tried_once(
    engine: ExLlamaV2Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headpond_workers.engines.exllamav2 import constraint

    tried: list[Constraint] = []

    def counted(constraint: Constraint, proceed: Callable[[], Verdict]) -> bool:
        tried.append(constraint)
        return check_constraint(constraint, proceed)

    monkeypatch.setattr(constraint, "check_constraint", counted)
    fresh = schema(SCHEMAS["reference"] | {"title": "asked for by many"})
    with ThreadPoolExecutor(SLOTS) as pool:
        answers = list(pool.map(lambda seed: ask(engine, asked(engine, fresh, seed=seed)), range(SLOTS)))

    assert tried == [fresh]
    for answer in answers:
        assert_admitted(text_of(engine, answer.ids), SCHEMAS["reference"])


def test_the_engine_says_that_it_takes_constraints(engine: ExLlamaV2Engine) -> None:
    assert {Capability.JSON_SCHEMA, Capability.GRAMMAR} <= engine.info.capabilities


# A worker


TABLE = """
[models.chat]
engine = "exllamav2"
path = "{path}"
slots = 4
context_tokens = 1024
chunk_tokens = 256
lease_s = 2.0
drain_timeout_s = 0.3
"""


def start(deployment: Deployment, instance: str, *, slow_s: float = 0.0) -> Any:
    environment = processes.environment(EXLLAMAV2_CPU_SLOW_S=str(slow_s))
    return start_worker(deployment, instance, program="exllamav2_cpu.worker", environment=environment)


def assert_replayed(deployment: Deployment, bundle: Bundle, *, before: int) -> None:
    """A replay goes on inside the JSON after so many tokens, and ends it as the job did."""
    text = "".join(tuple(tokens_of(deployment, bundle))[:before])
    cut = bundle.model_copy(update={"token_ids": bundle.token_ids[:before], "text": text})
    reader, writer = os.pipe()
    options = argparse.Namespace(
        config=deployment.config, model="chat", from_start=False, any_fingerprint=False, events=writer, trace=False
    )
    with os.fdopen(reader, "rb") as pipe:
        events = EventWriter(writer)
        replay(cut, options, events, Secrets())
        events._file.close()
        told = [parse_event(line) for line in pipe]
    assert isinstance(told[-1], Finished), told[-1]
    made = [token_id for event in told if isinstance(event, Step) for token_id in event.ids]
    assert (*cut.token_ids, *made) == bundle.token_ids


def tokens_of(deployment: Deployment, bundle: Bundle) -> Iterator[str]:
    """The text of each token."""
    document = deployment.queue("chat").result(bundle.id)
    assert document is not None
    return iter(unpack_result(document, durable=False).pieces)


def test_a_killed_worker_leaves_json_that_its_successor_ends(deployment: Deployment, client: Client) -> None:
    deployment.configure(TABLE.format(path=checkpoints.tiny()))
    first = start(deployment, "chat-0", slow_s=0.008)
    queue = deployment.queue("chat")
    wanted: dict[str, Any] = {
        "max_tokens": 200,
        "temperature": 3.0,
        "top_k": 200,
        "response_format": {"type": "json_schema", "json_schema": {"schema": LIST_OF_NUMBERS}},
    }
    calm = [client.submit("chat", tiny_corpus.RUNS_ON, seed=seed, **wanted).result(ENDED_S) for seed in (1, 2)]
    jobs = [
        client.submit("chat", tiny_corpus.RUNS_ON, id=f"chat/killed-{seed}", seed=seed, **wanted) for seed in (1, 2)
    ]
    readings = [Reading(job) for job in jobs]
    for job in jobs:
        await_tokens(queue, job, 12)
    first.kill()
    before = [row_of(queue, job).offset for job in jobs]
    second = start(deployment, "chat-1")
    results = [job.result(ENDED_S) for job in jobs]

    for result, undisturbed, reading, offset in zip(results, calm, readings, before, strict=True):
        assert result.attempts == 2
        assert 12 <= offset < len(result.token_ids)
        assert result.finish_reason is FinishReason.STOP
        assert_admitted(result.text, LIST_OF_NUMBERS)
        assert (result.token_ids, result.text) == (undisturbed.token_ids, undisturbed.text)
        assert_read_once(reading, result)
    assert_replayed(deployment, bundle_of(queue, jobs[0].id), before=10)
    with pytest.raises(JobFailed, match="uniqueItems"):
        client.submit(
            "chat",
            "Hello",
            response_format={"type": "json_schema", "json_schema": {"schema": {"uniqueItems": True}}},
        ).result(ENDED_S)
    second.signal(signal.SIGTERM)
    assert second.process.wait(ENDED_S) == 0
