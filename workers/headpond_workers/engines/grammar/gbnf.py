"""GBNF, llama.cpp's language of grammars: from text to rules, and from rules to text. Pure; the text is hostile.

    root   ::= "yes" | "no" rest?      # alternatives, and what may be left out
    rest   ::= " " [a-z]{1,8} ("," .)*

Repetitions, groups and negated classes are resolved here, into rules that hold nothing but characters and names of
rules. llama.cpp is only ever given the text that `Grammar.text` writes of them: no input of others meets its parser.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

MAX_ELEMENTS = 1 << 15
"""Characters and names, after the repetitions are written out."""
MAX_REPETITIONS = 4096
"""Of one repetition, such as `{0,4096}`."""
MAX_CHARACTER = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)
ROOT = "root"

Range = tuple[int, int]
Ranges = tuple[Range, ...]
Element = int | Ranges
"""The number of a rule, or the characters of which one is to come: code points, both ends included, in order."""
Alternative = tuple[Element, ...]
Rule = tuple[Alternative, ...]


class GrammarError(ValueError):
    """A grammar or a schema that cannot be used, and why. The text is for the one who wrote it.

    reason: the text without its place in the grammar. rule: the name of the rule where it is; '' if that is not known.
    place: the place in the JSON schema that the text begins with; '' if it begins with none.
    """

    def __init__(self, text: str, *, reason: str = "", rule: str = "", place: str = "") -> None:
        super().__init__(text)
        self.reason = reason or text
        self.rule = rule
        self.place = place


@dataclass(frozen=True, slots=True)
class Grammar:
    """rules: the first is the root. Each reference is to one of them, and none recurses at its left end. names: of each
    rule, that of the rule of the text that it is a part of; empty if there was no text."""

    rules: tuple[Rule, ...]
    names: tuple[str, ...] = ()

    @property
    def elements(self) -> int:
        return sum(len(alternative) + 1 for rule in self.rules for alternative in rule)

    def text(self, *, prefix: str = "r") -> str:
        """GBNF of these rules under the names r0, r1 ...; none of them is `root`."""
        return "".join(
            f"{prefix}{number} ::= {' | '.join(sequence_text(alternative, prefix) for alternative in rule)}\n"
            for number, rule in enumerate(self.rules)
        )


def sequence_text(sequence: Iterable[Element], prefix: str = "r") -> str:
    """GBNF of elements in a row; of none, the empty text."""
    return " ".join(f"{prefix}{part}" if isinstance(part, int) else _class_text(part) for part in sequence) or '""'


def matches(ranges: Ranges, character: int) -> bool:
    at = bisect_right(ranges, (character, MAX_CHARACTER)) - 1
    return at >= 0 and ranges[at][0] <= character <= ranges[at][1]


def normalised(ranges: Iterable[Range], *, negated: bool = False) -> Ranges:
    """In order, without overlaps, surrogates and NUL. Empty if no character is left."""
    merged: list[Range] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        elif low <= high:
            merged.append((low, high))
    if negated:
        ends = [-1, *(end for pair in merged for end in pair), MAX_CHARACTER + 1]
        merged = [(ends[at] + 1, ends[at + 1] - 1) for at in range(0, len(ends), 2)]
    cut = [part for low, high in merged for part in ((max(low, 1), min(high, _SURROGATES[0] - 1)),)]
    cut += [(max(low, _SURROGATES[1] + 1), min(high, MAX_CHARACTER)) for low, high in merged]
    return tuple(sorted((low, high) for low, high in cut if low <= high))


ANY = normalised([], negated=True)


def _class_text(ranges: Ranges) -> str:
    return "[" + "".join(_char_text(low) + (f"-{_char_text(high)}" if high > low else "") for low, high in ranges) + "]"


def _char_text(character: int) -> str:
    text = chr(character)
    if text.isascii() and text.isalnum():
        return text
    return (
        f"\\x{character:02X}"
        if character < 0x100
        else f"\\u{character:04X}"
        if character < 0x10000
        else f"\\U{character:08X}"
    )
