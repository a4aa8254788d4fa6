"""What pydantic finds wrong with a value, in words for whoever wrote it. Pure.

A value is repeated only if it is a number: any other may be a secret in the wrong place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from headpond.counts import counted

_OF_TYPE: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "missing": lambda facts: "is missing",
    "greater_than_equal": lambda facts: f"must be {_number(facts['ge'])} or more",
    "greater_than": lambda facts: f"must be more than {_number(facts['gt'])}",
    "less_than_equal": lambda facts: f"must be {_number(facts['le'])} or less",
    "less_than": lambda facts: f"must be less than {_number(facts['lt'])}",
    "multiple_of": lambda facts: f"must be a multiple of {_number(facts['multiple_of'])}",
    "finite_number": lambda facts: "must be a finite number",
    "int_type": lambda facts: "must be an integer",
    "int_parsing": lambda facts: "must be an integer",
    "int_parsing_size": lambda facts: "is too large",
    "int_from_float": lambda facts: "must be an integer",
    "float_type": lambda facts: "must be a number",
    "float_parsing": lambda facts: "must be a number",
    "bool_type": lambda facts: "must be true or false",
    "bool_parsing": lambda facts: "must be true or false",
    "string_type": lambda facts: "must be a string",
    "path_type": lambda facts: "must be a path, as a string",
    "string_too_short": lambda facts: f"must have {counted(facts['min_length'], 'character')} or more",
    "string_too_long": lambda facts: f"must have {counted(facts['max_length'], 'character')} or fewer",
    "too_short": lambda facts: f"must have {counted(facts['min_length'], 'element')} or more",
    "too_long": lambda facts: f"must have {counted(facts['max_length'], 'element')} or fewer",
    "string_pattern_mismatch": lambda facts: f"must match the pattern {facts['pattern']}",
    "literal_error": lambda facts: f"must be {facts['expected']}",
    "tuple_type": lambda facts: "must be a list",
    "list_type": lambda facts: "must be a list",
    "dict_type": lambda facts: "must be a table",
    "model_type": lambda facts: "must be a table",
    "model_attributes_type": lambda facts: "must be a table",
}
_OF_NUMBERS = frozenset({"greater_than_equal", "greater_than", "less_than_equal", "less_than", "finite_number"})


def complaint(error: Mapping[str, Any]) -> str:
    """One of `ValidationError.errors()`, with its input. Of what a validator of ours says, that."""
    kind, value = error["type"], error.get("input")
    if kind in _OF_NUMBERS and isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, not {value}"
    said = _OF_TYPE.get(kind)
    if said is not None:
        return said(error.get("ctx", {}))
    return str(error["msg"]).removeprefix("Value error, ")


def _number(bound: float) -> str:
    """Without an exponent: `16777216`, `0.2`."""
    return str(int(bound)) if float(bound).is_integer() else f"{bound:g}"
