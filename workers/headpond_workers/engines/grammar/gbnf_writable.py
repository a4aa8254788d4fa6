"""The characters that a vocabulary can write, and grammars that ask for no other. Pure.

A state of a grammar in which no token fits makes llama.cpp abort the process. Where each byte of a character is a
token of its own, one always fits.
"""

from __future__ import annotations

from collections.abc import Iterable

from headpond_workers.engines.grammar.gbnf import (
    MAX_CHARACTER,
    Element,
    Grammar,
    GrammarError,
    Range,
    Ranges,
    normalised,
)


def unwritable(token_bytes: Iterable[bytes]) -> Ranges:
    """Characters with a byte that is no token of its own. token_bytes: shape (vocabulary,)."""
    have = {piece[0] for piece in token_bytes if len(piece) == 1}
    if not have.issuperset(range(0x80, 0xC0)):
        return normalised([(0x80, MAX_CHARACTER), *((byte, byte) for byte in range(1, 0x80) if byte not in have)])
    found: list[Range] = [(byte, byte) for byte in range(1, 0x80) if byte not in have]
    for first, last, bits, least in ((0xC2, 0xDF, 6, 0x80), (0xE0, 0xEF, 12, 0x800), (0xF0, 0xF4, 18, 0x10000)):
        for byte in range(first, last + 1):
            if byte not in have:
                low = (byte & (0x1F, 0x0F, 0x07)[bits // 6 - 1]) << bits
                found.append((max(low, least), min(low | ((1 << bits) - 1), MAX_CHARACTER)))
    return normalised(found)


def restricted(grammar: Grammar, without: Ranges) -> Grammar:
    """The grammar with fewer characters in its classes. Raises GrammarError if one has none left."""
    if not without:
        return grammar
    made: dict[Ranges, Ranges] = {}
    names = grammar.names or ("",) * len(grammar.rules)

    def part_of(part: Element, name: str) -> Element:
        if isinstance(part, int):
            return part
        if part not in made:
            made[part] = normalised([*normalised(part, negated=True), *without, (0, 0), _SURROGATES], negated=True)
            if not made[part]:
                raise GrammarError(f"the model has no tokens that write the character U+{part[0][0]:04X}", rule=name)
        return made[part]

    rules = (
        tuple(tuple(part_of(part, name) for part in sequence) for sequence in rule)
        for rule, name in zip(grammar.rules, names, strict=True)
    )
    return Grammar(tuple(rules), grammar.names)


_SURROGATES = (0xD800, 0xDFFF)
