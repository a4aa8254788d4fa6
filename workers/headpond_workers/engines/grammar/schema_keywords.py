"""Keywords of one JSON schema, read with their types checked. Pure; the schema is hostile."""

from __future__ import annotations

from math import isfinite
from typing import Any

from headpond_workers.engines.grammar.gbnf import MAX_REPETITIONS, GrammarError

OF_TYPE = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMaximum", "format"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "format"}),
    "boolean": frozenset(),
    "null": frozenset(),
}
"""Type -> the keywords that speak of it."""


def type_by_keys(keys: frozenset[str]) -> str:
    """What a schema without a type speaks of."""
    for name, known in OF_TYPE.items():
        if keys & known - {"format"}:
            return name
    return "string"


def count_of(schema: dict[str, Any], key: str) -> int | None:
    value = schema.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise GrammarError(f"{key} is a whole number from 0 on")
    return value


def bound_of(schema: dict[str, Any], key: str) -> float | None:
    value = schema.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise GrammarError(f"{key} is a number")
    try:
        finite = isfinite(value)
    except OverflowError:  # a whole number beyond any float
        finite = False
    if not finite:
        raise GrammarError(f"{key} is out of all bounds")
    return value


def check_repetitions(**bounds: int | None) -> None:
    """Raises GrammarError for a bound of a length that no grammar writes out."""
    for name, bound in bounds.items():
        if bound is not None and bound > MAX_REPETITIONS:
            raise GrammarError(f"{name} is {bound if bound < 1 << 64 else 'huge'}; the limit is {MAX_REPETITIONS}")


def floor_of(bound: float) -> int:
    return bound if isinstance(bound, int) else int(bound // 1)


def ceiling_of(bound: float) -> int:
    return -floor_of(-bound)


def is_of_type(value: object, name: object) -> bool:
    kinds: dict[str, type | tuple[type, ...]] = {
        "object": dict, "array": list, "string": str, "number": (int, float), "integer": int, "boolean": bool,
    }  # fmt: skip
    if name == "null" or value is None:
        return name == "null" and value is None
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(name, str) and name in kinds and isinstance(value, kinds[name])
