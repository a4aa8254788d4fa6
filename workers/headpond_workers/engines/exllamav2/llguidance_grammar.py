"""A constraint as llguidance takes it, and within which bounds. llguidance is imported when the first one is made.

Bounds are counted in llguidance's own units, so that they hold wherever a grammar is compiled or followed; the child
of `llguidance_check` bounds what they do not know of.
"""

from __future__ import annotations

from typing import Any

from headpond.constraints import Constraint, ConstraintKind

MAX_PROBLEM_CHARS = 400
_ANY_OBJECT = '{"type": "object"}'
_LIMITS = {
    "max_items_in_row": 2000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
    # Looking through the whole vocabulary beforehand is what a large regular expression takes longest for.
    "precompute_large_lexemes": False,
    "verbose_errors": False,
}
"""At most about 20 ms to compile, 20 ms a token, and 100 MB a sequence; ordinary schemas take a thousandth."""
_JSON_OPTIONS = {
    # What llguidance does not know of a schema is refused, and never left out.
    "lenient": False,
    "coerce_one_of": False,
    # As llama.cpp: white space where people put it, and not without end.
    "whitespace_pattern": r"[ ]|\n[ \t]{0,20}",
    "item_separator": ",",
    "key_separator": ":",
}


def limits() -> Any:
    """llguidance's LLParserLimits for every constraint."""
    from llguidance import LLParserLimits

    return LLParserLimits(**_LIMITS)


def grammar_of(constraint: Constraint) -> str:
    """The grammar in llguidance's own form. Raises ValueError for what is no schema and no GBNF."""
    from llguidance import LLMatcher

    if constraint.kind is ConstraintKind.GRAMMAR:
        return str(LLMatcher.grammar_from_lark(_lark_of(constraint.text)))
    schema = constraint.text if constraint.kind is ConstraintKind.JSON_SCHEMA else _ANY_OBJECT
    return str(LLMatcher.grammar_from_json_schema(schema, None, _JSON_OPTIONS))


def _lark_of(gbnf: str) -> str:
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return str(gbnf_to_lark(gbnf))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:
        # It has an error of its own for most of what may be wrong, and a plain Exception for the rest.
        raise ValueError(str(error)) from error


def in_words(problem: str) -> str:
    """What llguidance said, on one line, bounded."""
    line = " ".join(problem.replace("<non-verbose/>", "").split())
    return line[: MAX_PROBLEM_CHARS - 3] + "..." if len(line) > MAX_PROBLEM_CHARS else line
