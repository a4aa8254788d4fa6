"""JSON schemas as grammars: each of their texts is JSON that the schema admits, and what they cannot say is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grammar_texts import random_text
from headpond_workers.engines.grammar.gbnf import GrammarError
from headpond_workers.engines.grammar.gbnf_parser import parse
from headpond_workers.engines.grammar.gbnf_state import GrammarState, Program, program_of
from headpond_workers.engines.grammar.schema_check import checked_schema
from headpond_workers.engines.grammar.schema_grammar import ANY_OBJECT
from headpond_workers.engines.grammar.schema_numbers import integer_between, number_between
from schema_checker import admits

PERSON = {
    "title": "A person",
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", '\u00e9 "quoted"']}, "maxItems": 3},
        "pet": {"anyOf": [{"$ref": "#/$defs/pet"}, {"type": "null"}]},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
    "$defs": {"pet": {"type": "object", "properties": {"kind": {"const": "cat"}}, "required": ["kind"]}},
}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["value", "children"],
        }
    },
}
SCHEMAS: list[Any] = [
    PERSON,
    TREE,
    True,
    {},
    {"type": "object"},
    {"type": "object", "properties": {}},
    {"type": "object", "properties": {"only": {"type": "null"}}},
    {"properties": {"a": True, "b": {}}, "required": ["b"]},
    {"type": "object", "additionalProperties": {"type": "boolean"}},
    {"type": "object", "properties": {"ab": {"type": "null"}, "a": {"type": "null"}, "": {"type": "null"}},
     "required": ["a"], "additionalProperties": {"type": "integer"}},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"type": "array", "items": {"type": "null"}, "maxItems": 0},
    {"type": "array", "prefixItems": [{"type": "null"}, {"type": "boolean"}], "items": False},
    {"type": "array", "prefixItems": [{"type": "null"}, {"type": "boolean"}], "items": {"const": 7}, "minItems": 1},
    {"type": "array", "prefixItems": [{"type": "null"}] * 3, "minItems": 2, "maxItems": 5, "items": {"const": 1}},
    {"type": ["string", "null"], "maxLength": 3},
    {"type": ["integer", "number", "null"]},
    {"type": "string", "pattern": r"^[A-Z]{2}-\d{3,4}(?:x|yy)?\.$"},
    {"type": "string", "pattern": "^(\\w|[^\\w\"])*$"},
    {"type": "string", "pattern": '^"\\\\\\t[\\n-\\r"]$'},
    {"type": "string", "pattern": "^a|b$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "time"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "email"},
    {"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 12},
    {"type": "integer", "minimum": 2.5},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "number", "minimum": -12, "exclusiveMaximum": 30},
    {"enum": [1, "1", None, True, [1, {"a": 2}], 1.5]},
    {"enum": ["a", 1], "type": "integer"},
    {"const": {"deep": ["\u65e5", "\n\"\\"]}},
    {"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 2}]},
    {"allOf": [{"type": "boolean"}]},
    {"minLength": 2, "maxLength": 2},
    {"type": "object", "properties": {f"key{n}": {"type": "boolean"} for n in range(40)}},
]  # fmt: skip


def program(schema: Any) -> Program:
    made = program_of(checked_schema(schema))
    return made


def fits(source: str | Program, text: str) -> bool:
    state = GrammarState(program_of(parse(source)) if isinstance(source, str) else source)
    return state.advance(text) and state.may_end


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
def test_every_text_of_a_schemas_grammar_is_json_that_the_schema_admits(schema: Any) -> None:
    made = program(schema)
    texts = {random_text(GrammarState(made), seed, most=4000) for seed in range(40)}
    for text in texts:
        assert admits(schema, json.loads(text)), text


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (PERSON, {"name": "Ann", "age": 7}),
        (
            PERSON,
            {"name": "A\u00e9\u65e5\U0001f600", "age": 150, "tags": ["a", '\u00e9 "quoted"'], "pet": {"kind": "cat"}},
        ),
        (PERSON, {"name": "x", "age": 0, "pet": None}),
        (TREE, {"value": -1, "children": [{"value": 2, "children": []}]}),
        ({"type": "object"}, {"any": [1, 2.5e-3, {"deep": None}], "": True}),
        ({"type": "string", "pattern": r"^[A-Z]{2}-\d{3}$"}, "AB-123"),
        ({"type": "string", "pattern": '^["\\\\]$'}, '"'),
        ({"type": "string", "format": "date"}, "2024-12-31"),
        ({"type": "string", "format": "date-time"}, "2026-01-02T03:04:05.123Z"),
        ({"type": "number", "minimum": 0, "maximum": 1}, 0.25),
        ({"type": "number", "minimum": 0, "maximum": 1}, 1.0),
        ({"type": "number"}, -1.5e-7),
    ],
)
def test_a_value_of_a_schema_is_a_text_of_its_grammar(schema: Any, value: Any) -> None:
    made = program(schema)
    for indent in (None, 2):
        text = json.dumps(value, ensure_ascii=False, indent=indent)
        assert fits(made, text), text
    assert fits(made, json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def test_any_object_is_an_object_and_nothing_else() -> None:
    for value in ({}, {"a": [1, {"b": '"\\\n'}], "c": -0.5e3}, {"": None}):
        assert fits(ANY_OBJECT, json.dumps(value))
        assert fits(ANY_OBJECT, json.dumps(value, indent=2))
    for text in ("[]", "1", '"a"', '{"a":1,}', "{a:1}", '{"a" 1}', '{"a":01}', '{"a":"\n"}', "{}x", '{"a":"\\ud800"}'):
        assert not fits(ANY_OBJECT, text), text


@settings(deadline=None, max_examples=60)
@given(
    st.one_of(st.none(), st.integers(-2000, 2000)),
    st.one_of(st.none(), st.integers(-2000, 2000)),
    st.lists(st.integers(-2500, 2500), min_size=20),
)
def test_integers_within_bounds_are_those_of_the_grammar(low: int | None, high: int | None, tried: list[int]) -> None:
    if low is not None and high is not None and low > high:
        with pytest.raises(GrammarError, match="no integer"):
            integer_between(low, high)
        return
    grammar = program_of(parse(f"root ::= {integer_between(low, high)}\n"))
    near = [bound + step for bound in (low, high) if bound is not None for step in (-1, 0, 1)]
    for value in {*tried, *near}:
        inside = (low is None or low <= value) and (high is None or value <= high)
        assert fits(grammar, str(value)) is inside, value
    assert not fits(grammar, "007")


@settings(deadline=None, max_examples=60)
@given(st.integers(-30, 30), st.integers(0, 30), st.booleans(), st.lists(st.decimals(-70, 70, places=2), min_size=20))
def test_numbers_within_bounds_are_those_of_the_grammar(low: int, more: int, below: bool, tried: list[Any]) -> None:
    high = low + more
    if below and not more:
        with pytest.raises(GrammarError, match="no number"):
            number_between(low, high, below=below)
        return
    grammar = program_of(parse(f"root ::= {number_between(low, high, below=below)}\n"))
    for value in {*tried, *(bound for bound in (low, high, low + 1, high - 1, low - 1, high + 1))}:
        inside = low <= value < high if below else low <= value <= high
        # A zero with a sign is the same zero written otherwise.
        if value != 0:
            assert fits(grammar, str(value)) is inside, value


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (False, "no value fulfils"),
        ([], "no schema"),
        ({"type": "text"}, "none of object, array"),
        ({"type": []}, "no type"),
        ({"type": "object", "properties": {"a": False}}, "#/properties/a: it is false"),
        ({"type": "object", "required": ["a"]}, "'a' is not among its properties"),
        ({"type": "object", "patternProperties": {}}, "'patternProperties' cannot be kept to"),
        ({"type": "object", "minProperties": 1}, "'minProperties' cannot"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems' cannot"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "no array of 3 to 2"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "no string of 3 to 2"),
        ({"type": "string", "maxLength": 5000}, "the limit is 4096"),
        ({"type": "array", "items": {"type": "array", "maxItems": 4000, "items": {"type": "array", "maxItems": 4000}},
          "maxItems": 4000}, "more than"),
        ({"type": "string", "minLength": -1}, "whole number"),
        ({"type": "string", "minLength": 1, "pattern": "^a$"}, "only one can be kept to"),
        ({"type": "string", "pattern": "a"}, "must be anchored"),
        ({"type": "string", "pattern": "^(?=a)b$"}, "look-around"),
        ({"type": "string", "pattern": "^(a)\\1$"}, "escape"),
        ({"type": "string", "pattern": "^\\bword$"}, "escape"),
        ({"type": "string", "pattern": "^a*?$"}, "lazy"),
        ({"type": "string", "pattern": "^" + "(" * 40 + "$"}, "nested deeper"),
        ({"type": "string", "pattern": "^(a+)+$"}, "ways"),
        ({"type": "string", "pattern": "^" + "a" * 2000 + "$"}, "the limit is 1024"),
        ({"type": "integer", "multipleOf": 2}, "'multipleOf' cannot"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "no integer"),
        ({"type": "integer", "minimum": 10**20}, "no integer"),
        ({"type": "number", "minimum": 0.5}, "no whole number"),
        ({"type": "number", "maximum": float("inf")}, "out of all bounds"),
        ({"not": {"type": "string"}}, "'not' cannot"),
        ({"if": {}, "then": {}}, "cannot be kept to"),
        ({"allOf": [{"type": "string"}, {"maxLength": 2}]}, "allOf of several"),
        ({"anyOf": []}, "at least one"),
        ({"anyOf": [{"type": "string"}], "type": "string"}, "beside anyOf"),
        ({"enum": []}, "at least one"),
        ({"enum": list(range(600))}, "the limit is 512"),
        ({"enum": [float("inf")]}, "out of all bounds"),
        ({"type": "number", "minimum": 10**400}, "out of all bounds"),
        ({"enum": ["a"], "type": "integer"}, "no value of its enum has its type"),
        ({"$ref": "https://example.com/schema.json"}, "leaves the schema"),
        ({"$ref": "other.json#/a"}, "leaves the schema"),
        ({"$ref": "#/$defs/none"}, "leads nowhere"),
        ({"$ref": "#"}, r"#: its \$ref leads back"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}}},
         r"#/\$defs/a: its \$ref leads back"),
        ({"type": "array", "items": {"anyOf": [{"$ref": "#"}, {"$ref": "#/items/anyOf/1/x", "x": 1}]}}, "cannot be"),
        ({"type": "object", "properties": {"k" * 200: {}}, "additionalProperties": True}, "a property of 200"),
    ],
    ids=lambda part: json.dumps(part)[:50],
)  # fmt: skip
def test_what_a_grammar_cannot_keep_to_is_refused_with_its_place(schema: Any, reason: str) -> None:
    with pytest.raises(GrammarError, match=reason) as refused:
        program(schema)
    assert str(refused.value).startswith("#")
    # It was put to nobody but us, so its lines and columns say nothing.
    assert not re.search(r"line \d|column \d|rule '", str(refused.value))


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"type": "string", "maxLength": 1000000000}, ": maxLength is 1000000000; the limit is 4096"),
        ({"type": "string", "maxLength": 10**30}, ": maxLength is huge; the limit is 4096"),
        ({"type": "string", "minLength": 5000}, ": minLength is 5000; the limit is 4096"),
        ({"type": "array", "maxItems": 5000}, ": maxItems is 5000; the limit is 4096"),
        (
            {"type": "number", "minimum": 0.5},
            ": the bound 0.5 of a number is no whole number of at most 16 digits, and",
        ),
        ({"type": "integer", "minimum": 0.5, "maximum": 0.7}, ": there is no integer of at most 16 digits from 1 to 0"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, ": there is no integer of at most 16 digits from 5 to 3"),
        ({"type": "integer", "minimum": 10**20}, ": there is no integer of at most 16 digits from 1e+20 on"),
        ({"type": "number", "minimum": 5, "maximum": 3}, ": there is no number from 5 to 3"),
        ({"type": "string", "pattern": "^[a$"}, "/pattern: the pattern '[a' has an end amid a group"),
        ({"type": "string", "pattern": "a"}, "/pattern: the pattern 'a' must be anchored"),
        (
            {"type": "string", "pattern": "^a{9999}$"},
            "/pattern: the pattern 'a{9999}' has a repetition of more than 4096",
        ),
        (
            {"type": "string", "pattern": "^a{3,2}$"},
            "/pattern: the pattern 'a{3,2}' has {3,2}, which ends before it begins",
        ),
        ({"type": "string", "pattern": "^(a*)*$"}, "/pattern: it repeats something that may be empty"),
        ({"type": "string", "pattern": "^(a+)+$"}, "/pattern: it can read one text of at most 64 characters in more"),
        ({"type": "array", "items": {"type": "string", "pattern": "^(a+)+$"}}, "/items/pattern: it can read one text"),
        ({"type": "string", "pattern": "^a{4000}b{4000}$"}, None),
        ({"type": "string", "pattern": "^" + "[a-c]{4000}" * 9 + "$"}, "/pattern: it has more than 32768 elements"),
        ({"$ref": "#/properties/na~1me~0"}, ": its $ref leads back to it before any character of an answer is fixed"),
        ({"not": {"type": "string"}}, ": 'not' cannot be kept to. Leave it out, or say the same with other keywords"),
        ({"type": "integer", "maxLength": 3}, ": 'maxLength' cannot be kept to beside type"),
        ({"prefixItems": [True, {"type": "text"}]}, "/prefixItems/1: the type 'text' is none of"),
        ({"anyOf": [True, False]}, "/anyOf/1: it is false, which no value fulfils"),
    ],
)
def test_what_is_wrong_is_told_with_its_place_in_the_schema(part: Any, told: str | None) -> None:
    schema = {"type": "object", "properties": {"other": {"type": "string"}, "na/me~": part}, "required": ["other"]}
    if told is None:
        assert program(schema).elements > 8000
        return
    with pytest.raises(GrammarError) as refused:
        program(schema)
    assert str(refused.value).startswith(f"#/properties/na~1me~0{told}")


def test_the_smallest_part_that_reads_a_text_in_too_many_ways_is_named() -> None:
    with pytest.raises(GrammarError, match=r"^#/pattern: it can read one text"):
        program({"type": "string", "pattern": "^(a+)+$"})


def test_a_character_that_the_model_cannot_write_is_told_with_the_place_that_needs_it() -> None:
    with pytest.raises(
        GrammarError, match=r"^#/properties/a: the model has no tokens that write the character U\+00E9$"
    ):
        checked_schema({"properties": {"a": {"const": "caf\u00e9"}}}, without=((0xE9, 0xE9),))


def test_alternatives_that_read_a_deep_text_in_ever_more_ways_are_refused() -> None:
    twice = {"anyOf": [{"type": "array", "items": {"$ref": "#"}}, {"type": "array", "items": {"$ref": "#"}}]}
    with pytest.raises(
        GrammarError, match=r"^#.*: it can read one text of at most 64 characters in more than 16384 ways"
    ):
        program(twice)
