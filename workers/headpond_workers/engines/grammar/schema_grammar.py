"""GBNF of a JSON schema: every text of the grammar is JSON that the schema admits. Pure; the schema is hostile.

What a grammar cannot keep to is refused, never left out, remarks (title, description, default ...) excepted. Two
readings are narrower than the schema's own: properties come in the order in which they are listed, and a property that
is not listed comes only where `additionalProperties` asks for it. One is wider: `oneOf` is taken for `anyOf`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from headpond_workers.engines.grammar.gbnf import ROOT, GrammarError
from headpond_workers.engines.grammar.schema_keywords import (
    OF_TYPE,
    bound_of,
    ceiling_of,
    check_repetitions,
    count_of,
    floor_of,
    is_of_type,
    type_by_keys,
)
from headpond_workers.engines.grammar.schema_numbers import integer_between, number_between
from headpond_workers.engines.grammar.schema_rules import SchemaGrammar, SchemaRules, pointer_step
from headpond_workers.engines.grammar.schema_strings import CHARACTER, FORMATS, literal, other_than, pattern

MAX_SCHEMAS = 1 << 13
MAX_VALUES = 512
"""Of one enum: each is a way to go on."""
MAX_DEPTH = 64
_REMARKS = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "discriminator"}
    | {"$schema", "$id", "$comment", "$defs", "definitions", "contentEncoding", "contentMediaType"}
)
_KNOWN = frozenset({"type", "$ref", "const", "enum", "anyOf", "oneOf", "allOf"}).union(*OF_TYPE.values())
_ANY_RULES = (
    "value ::= object | array | string | number | boolean | null\n"
    'object ::= "{" ws (member ("," ws member)* ws)? "}"\n'
    'member ::= string ":" ws value\n'
    'array ::= "[" ws (value ("," ws value)* ws)? "]"\n'
)
_BASE_RULES = (
    'ws ::= (" " | "\\n" [ \\t]{0,20})?\n'
    f"char ::= {CHARACTER}\n"
    'string ::= "\\"" char* "\\""\n'
    f"number ::= {number_between(None, None, below=False)}\n"
    f"integer ::= {integer_between(None, None)}\n"
    'boolean ::= "true" | "false"\n'
    'null ::= "null"\n'
)
ANY_OBJECT = f"{ROOT} ::= object\n{_ANY_RULES}{_BASE_RULES}"
"""GBNF of any JSON object."""


def grammar_of_schema(schema: object) -> SchemaGrammar:
    """Raises GrammarError, with its place, for what a grammar cannot keep to, and what no JSON fulfils."""
    return _Converter(schema).made()


class _Converter:
    def __init__(self, schema: object) -> None:
        self._schema = schema
        self._rules = SchemaRules()
        self._references: dict[str, str] = {}
        self._schemas = 0

    def made(self) -> SchemaGrammar:
        top = self._value(self._schema, "#", depth=0)
        return self._rules.grammar(top, f"{_ANY_RULES}{_BASE_RULES}")

    def _value(self, schema: object, at: str, *, depth: int) -> str:
        """An expression in brackets or a name, which stands for the values of a schema."""
        with self._rules.at(at):
            return self._value_here(schema, at, depth=depth)

    def _value_here(self, schema: object, at: str, *, depth: int) -> str:
        self._schemas += 1
        if self._schemas > MAX_SCHEMAS or depth > MAX_DEPTH:
            raise GrammarError(
                f"the schema has more than {MAX_SCHEMAS} schemas in it, or they are nested deeper than {MAX_DEPTH}"
            )
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, dict):
            raise GrammarError("it is false, which no value fulfils" if schema is False else "it is no schema")
        keys = frozenset(schema) - _REMARKS
        if "$ref" in keys:
            self._only(keys, {"$ref"})
            return self._reference(schema["$ref"], depth=depth)
        if "const" in keys or "enum" in keys:
            return self._listed(schema, keys)
        for name in ("anyOf", "oneOf", "allOf"):
            if name in keys:
                self._only(keys, {name})
                return self._choice(name, schema[name], at, depth=depth)
        return self._typed(schema, keys, at, depth=depth)

    def _typed(self, schema: dict[str, Any], keys: frozenset[str], at: str, *, depth: int) -> str:
        given = schema.get("type")
        types = given if isinstance(given, list) else [type_by_keys(keys)] if given is None else [given]
        if not keys:
            return "value"
        known = frozenset({"type"}).union(
            *(OF_TYPE[name] for name in types if isinstance(name, str) and name in OF_TYPE)
        )
        for name in types:
            if not isinstance(name, str) or name not in OF_TYPE:
                raise GrammarError(f"the type {str(name)[:40]!r} is none of {', '.join(OF_TYPE)}")
        if not types:
            raise GrammarError("there is no type that it could have")
        self._only(keys, known)
        made: dict[str, Callable[[], str]] = {
            "object": lambda: self._object(schema, at, depth=depth),
            "array": lambda: self._array(schema, at, depth=depth),
            "string": lambda: self._string(schema),
            "number": lambda: self._number(schema),
            "integer": lambda: self._integer(schema),
            "boolean": lambda: "boolean",
            "null": lambda: "null",
        }
        # An integer is a number as well: both together would be two ways to read the same text.
        chosen = [name for name in dict.fromkeys(types) if not (name == "integer" and "number" in types)]
        ways = [made[name]() for name in chosen]
        return ways[0] if len(ways) == 1 else self._rules.new(" | ".join(ways))

    def _object(self, schema: dict[str, Any], at: str, *, depth: int) -> str:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise GrammarError("properties is a table, and required a list")
        missing = [name for name in required if not isinstance(name, str) or name not in properties]
        if missing:
            raise GrammarError(f"the required {str(missing[0])[:60]!r} is not among its properties")
        additional = schema.get("additionalProperties", not properties and "properties" not in schema)
        members = [
            (
                f'{literal(json.dumps(name, ensure_ascii=False))} ":" ws '
                f"{self._value(inner, f'{at}/properties/{pointer_step(name)}', depth=depth + 1)}",
                name in required,
            )
            for name, inner in properties.items()
        ]
        tail = '""'
        if additional is not False:
            key = other_than(properties, self._rules.new) if properties else ""
            value = self._value(additional, f"{at}/additionalProperties", depth=depth + 1)
            more = self._rules.new(f'"\\"" {key} "\\"" ":" ws {value}' if properties else f'string ":" ws {value}')
            tail = self._rules.new(f'("," ws {more})*')
            first: str | None = self._rules.new(f"{more} {tail}")
        else:
            first = None
        return self._rules.new(self._members(members, first, tail))

    def _members(self, members: list[tuple[str, bool]], first: str | None, rest: str) -> str:
        """An object whose members come in this order, those that are not required perhaps.

        first: what may come if none of them has; None is nothing. rest: what may come behind them.
        """
        may_be_empty = True
        for text, required in reversed(members):
            member = self._rules.new(text)
            ways = [f"{member} {rest}"]
            if not required and first is not None:
                ways.append(first)
            follows = f'"," ws {member} {rest}'
            first = self._rules.new(" | ".join(ways))
            rest = self._rules.new(follows if required else f"{follows} | {rest}")
            may_be_empty &= not required
        if first is None:
            return '"{" ws "}"'
        return f'"{{" ws ({first} ws)? "}}"' if may_be_empty else f'"{{" ws {first} ws "}}"'

    def _array(self, schema: dict[str, Any], at: str, *, depth: int) -> str:
        prefix = schema.get("prefixItems", [])
        items = schema.get("items", True)
        if not isinstance(prefix, list):
            raise GrammarError("prefixItems is a list")
        least, most = count_of(schema, "minItems") or 0, count_of(schema, "maxItems")
        heads = [self._value(inner, f"{at}/prefixItems/{n}", depth=depth + 1) for n, inner in enumerate(prefix)]
        if items is False:
            most = len(heads) if most is None else min(most, len(heads))
        item = "" if most is not None and most <= len(heads) else self._value(items, f"{at}/items", depth=depth + 1)
        check_repetitions(minItems=least, maxItems=most)
        if most is not None and most < least:
            raise GrammarError(f"there is no array of {least} to {most} items")
        heads = heads if most is None else heads[:most]
        rest = ""
        if item:
            more = "" if most is None else most - len(heads)
            fewest = max(0, least - len(heads))
            rest = f'("," ws {item}){{{fewest},{more}}}'
            if not heads:
                less = "" if most is None else most - 1
                rest = f'{item} ("," ws {item}){{{max(0, least - 1)},{less}}}'
        for number in range(len(heads) - 1, -1, -1):
            separator = '"," ws ' if number else ""
            body = f"{separator}{heads[number]} {rest}"
            rest = self._rules.new(body) if number < least else f"({self._rules.new(body)})?"
        if not rest:
            return self._rules.new('"[" ws "]"')
        inner = f"({rest} ws)" if least else f"({rest} ws)?"
        return self._rules.new(f'"[" ws {inner} "]"')

    def _string(self, schema: dict[str, Any]) -> str:
        least, most = count_of(schema, "minLength"), count_of(schema, "maxLength")
        form = schema.get("format")
        bounded = least is not None or most is not None
        narrowed = [name for name in ("pattern",) if name in schema] + (["format"] if form in FORMATS else [])
        if len(narrowed) + bounded > 1:
            raise GrammarError("of a length, a pattern and a format of a string, only one can be kept to")
        if "pattern" in schema:
            if not isinstance(schema["pattern"], str):
                raise GrammarError("pattern is a text")
            with self._rules.at(f"{self._rules.place}/pattern"):
                return self._rules.new(f'"\\"" ({pattern(schema["pattern"])}) "\\""')
        if narrowed:
            return self._rules.new(f'"\\"" {FORMATS[str(form)]} "\\""')
        if not bounded:
            return "string"
        check_repetitions(minLength=least, maxLength=most)
        if most is not None and most < (least or 0):
            raise GrammarError(f"there is no string of {least} to {most} characters")
        return self._rules.new(f'"\\"" char{{{least or 0},{"" if most is None else most}}} "\\""')

    def _number(self, schema: dict[str, Any]) -> str:
        least, most = bound_of(schema, "minimum"), bound_of(schema, "maximum")
        below = bound_of(schema, "exclusiveMaximum")
        strict = below is not None and (most is None or below <= most)
        if least is None and most is None and below is None:
            return "number"
        return self._rules.new(number_between(least, below if strict else most, below=strict))

    def _integer(self, schema: dict[str, Any]) -> str:
        # Floor and ceiling by integer division, which is exact.
        least = [ceiling_of(bound) for bound in (bound_of(schema, "minimum"),) if bound is not None]
        least += [floor_of(bound) + 1 for bound in (bound_of(schema, "exclusiveMinimum"),) if bound is not None]
        most = [floor_of(bound) for bound in (bound_of(schema, "maximum"),) if bound is not None]
        most += [ceiling_of(bound) - 1 for bound in (bound_of(schema, "exclusiveMaximum"),) if bound is not None]
        if not least and not most:
            return "integer"
        return self._rules.new(integer_between(max(least, default=None), min(most, default=None)))

    def _listed(self, schema: dict[str, Any], keys: frozenset[str]) -> str:
        self._only(keys, {"const", "enum", "type"})
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        if "enum" in schema and "const" in schema:
            raise GrammarError("give const or enum, not both")
        if not isinstance(values, list) or not values:
            raise GrammarError("enum is a list of values, and has at least one")
        if len(values) > MAX_VALUES:
            raise GrammarError(f"{len(values)} values of an enum; the limit is {MAX_VALUES}")
        types = schema.get("type")
        if types is not None:
            allowed = types if isinstance(types, list) else [types]
            values = [value for value in values if any(is_of_type(value, name) for name in allowed)]
            if not values:
                raise GrammarError("no value of its enum has its type")
        try:
            texts = dict.fromkeys(json.dumps(value, ensure_ascii=False, allow_nan=False) for value in values)
        except ValueError:
            raise GrammarError("a number among the values of its enum is out of all bounds") from None
        return self._rules.new(" | ".join(literal(text) for text in texts))

    def _choice(self, name: str, ways: object, at: str, *, depth: int) -> str:
        if not isinstance(ways, list) or not ways:
            raise GrammarError(f"{name} is a list of schemas, and has at least one")
        if name == "allOf" and len(ways) > 1:
            raise GrammarError("allOf of several schemas cannot be kept to. Write one schema of them")
        made = [self._value(way, f"{at}/{name}/{number}", depth=depth + 1) for number, way in enumerate(ways)]
        return self._rules.new(" | ".join(dict.fromkeys(made)))

    def _reference(self, reference: object, *, depth: int) -> str:
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise GrammarError(f"the $ref {str(reference)[:60]!r} leaves the schema; nothing is fetched from elsewhere")
        if reference not in self._references:
            self._references[reference] = name = f"ref{len(self._references)}"
            target = self._target(reference)
            self._rules.define(name, self._value(target, reference, depth=depth + 1), place=reference)
        return self._references[reference]

    def _target(self, reference: str) -> object:
        found = self._schema
        for part in reference.split("/")[1:]:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and name.isascii() and name.isdigit() and int(name) < len(found):
                found = found[int(name)]
            elif isinstance(found, dict) and name in found:
                found = found[name]
            else:
                raise GrammarError(f"the $ref {reference[:60]!r} leads nowhere")
        return found

    def _only(self, keys: frozenset[str], known: frozenset[str] | set[str]) -> None:
        for key in sorted(keys - known):
            raise GrammarError(
                f"'{key[:60]}' cannot be kept to beside {', '.join(sorted(keys & known))}"
                if key in _KNOWN
                else f"'{key[:60]}' cannot be kept to. Leave it out, or say the same with other keywords"
            )
