"""A JSON schema as a grammar that was checked, and what is wrong with it by its place in the schema. Pure."""

from __future__ import annotations

from headpond_workers.engines.grammar.gbnf import Grammar, GrammarError, Ranges
from headpond_workers.engines.grammar.gbnf_ambiguity import refuse_explosive
from headpond_workers.engines.grammar.gbnf_parser import parse
from headpond_workers.engines.grammar.gbnf_recursion import LeftRecursion
from headpond_workers.engines.grammar.gbnf_writable import restricted
from headpond_workers.engines.grammar.schema_grammar import grammar_of_schema


def checked_schema(schema: object, *, without: Ranges = ()) -> Grammar:
    """The rules of a schema. without: characters that an answer cannot have.

    Raises GrammarError that begins with a JSON pointer: whoever wrote the schema has not seen the grammar of it.
    """
    made = grammar_of_schema(schema)
    try:
        grammar = restricted(parse(made.text), without)
        refuse_explosive(grammar)
    except GrammarError as error:
        place = made.places.get(error.rule, "#")
        reason = _recursion(place) if isinstance(error, LeftRecursion) else error.reason
        raise GrammarError(f"{place}: {reason}", reason=reason, place=place) from None
    return grammar


def _recursion(place: str) -> str:
    if place.endswith("/pattern"):
        return "it repeats something that may be empty, such as (a*)*. Let each repetition hold a character"
    return (
        "its $ref leads back to it before any character of an answer is fixed (left recursion). Put the $ref under "
        "properties, items or additionalProperties"
    )
