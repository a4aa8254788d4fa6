"""GBNF of JSON strings: of a length, of a format, of a pattern, other than some keys. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from headpond_workers.engines.grammar.gbnf import MAX_CHARACTER, MAX_REPETITIONS, GrammarError, Range, normalised

MAX_PATTERN = 1024
MAX_KEY = 128
MAX_NESTING = 32
PLAIN = r'[^"\\\x00-\x1F\x7F]'
"""A character that stands for itself in a JSON string."""
CHARACTER = rf'{PLAIN} | "\\" (["\\/bfnrt] | "u" ([0-9a-cA-CefEF] [0-9a-fA-F]{{3}} | [dD] [0-7] [0-9a-fA-F]{{2}}))'
"""One character of a JSON string, a surrogate excepted: half of a pair is no character."""
_MONTH = '("0" [1-9] | "1" [0-2])'
_DATE = (
    f'[0-9]{{4}} "-" ({_MONTH} "-" ("0" [1-9] | "1" [0-9] | "2" [0-8])'
    ' | ("0" [13-9] | "1" [0-2]) "-" ("29" | "30") | ("0" [13578] | "1" [02]) "-31")'
)
"""The 29th of February is left out."""
_CLOCK = '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9]'
_TIME = f'{_CLOCK} ":" [0-5] [0-9] ("." [0-9]{{1,6}})? ("Z" | [-+] {_CLOCK})'
_HEX = "[0-9a-fA-F]"
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f'{_DATE} "T" {_TIME}',
    "uuid": f'{_HEX}{{8}} "-" {_HEX}{{4}} "-" {_HEX}{{4}} "-" {_HEX}{{4}} "-" {_HEX}{{12}}',
}
"""Those that are kept to; any other is a remark of the schema's author."""
_CLASSES = {
    "d": ((48, 57),),
    "w": ((48, 57), (65, 90), (95, 95), (97, 122)),
    "s": ((9, 10), (13, 13), (32, 32)),
}
_CONTROLS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11}
_SHORT = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 34: '"', 92: "\\"}


def literal(text: str) -> str:
    """A GBNF literal of exactly this text."""
    return '"' + "".join(_escaped(character) for character in text) + '"'


def other_than(keys: Iterable[str], rule: Callable[[str], str]) -> str:
    """The name of a rule for what stands between the quotes of a string that is none of these keys.

    It has no escapes, so that it is none of them in disguise. rule: takes GBNF and gives it a name.
    """
    tree: dict[str, Any] = {}
    for key in keys:
        if len(key) > MAX_KEY:
            raise GrammarError(
                f"a property of {len(key)} characters beside additionalProperties; the limit is {MAX_KEY}"
            )
        branch = tree
        for character in key:
            branch = branch.setdefault(character, {})
        branch[""] = {}
    return _other_than(tree, rule)


def _other_than(tree: dict[str, Any], rule: Callable[[str], str]) -> str:
    characters = [character for character in tree if character]
    ways = [] if "" in tree else ['""']
    ways += [f"{literal(character)} {_other_than(tree[character], rule)}" for character in characters]
    ways.append(f"{_class(normalised([(ord(c), ord(c)) for c in characters] + _NOT_PLAIN, negated=True))} {PLAIN}*")
    return rule(" | ".join(ways))


def pattern(source: str) -> str:
    """What stands between the quotes of a string that the regular expression matches. It must be `^...$`.

    Raises GrammarError for what a grammar cannot say: look-around, back references, boundaries, named classes.
    """
    if len(source) > MAX_PATTERN:
        raise GrammarError(f"a pattern of {len(source)} characters; the limit is {MAX_PATTERN}")
    if not (source.startswith("^") and source.endswith("$")) or source.endswith("\\$"):
        raise GrammarError(f"the pattern {source[:60]!r} must be anchored: write ^...$")
    return _Pattern(source[1:-1]).gbnf()


class _Pattern:
    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0

    def gbnf(self) -> str:
        made = self._ways(depth=0)
        if self._at < len(self._source):
            self._fail("a ')' too many")
        return made

    def _ways(self, *, depth: int) -> str:
        if depth > MAX_NESTING:
            self._fail(f"groups nested deeper than {MAX_NESTING}")
        ways = [self._sequence(depth=depth)]
        while self._peek() == "|":
            self._at += 1
            ways.append(self._sequence(depth=depth))
        return " | ".join(ways)

    def _sequence(self, *, depth: int) -> str:
        made: list[str] = []
        while (character := self._peek()) and character not in "|)":
            made.append(self._atom(depth=depth) + self._quantifier())
        return " ".join(made) or '""'

    def _atom(self, *, depth: int) -> str:
        character = self._next()
        if character == "(":
            if self._peek() == "?":
                if self._source[self._at : self._at + 2] != "?:":
                    self._fail("look-around, flags and names of groups")
                self._at += 2
            inner = self._ways(depth=depth + 1)
            if self._next() != ")":
                self._fail("a '(' without its ')'")
            return f"({inner})"
        if character == "[":
            return self._set()
        if character == ".":
            return _members([(10, 10), (13, 13)], negated=True)
        if character in "*+?{^$":
            self._fail(f"'{character}' at this place")
        if character == "\\":
            return self._escape()
        return _members([(ord(character), ord(character))])

    def _escape(self) -> str:
        kind = self._next()
        if kind in _CLASSES:
            return _members(_CLASSES[kind])
        if kind.lower() in _CLASSES:
            return _members(_CLASSES[kind.lower()], negated=True)
        character = self._code(kind)
        return _members([(character, character)])

    def _code(self, kind: str) -> int:
        """The code point of an escape that stands for one character."""
        if kind in _CONTROLS:
            return _CONTROLS[kind]
        if kind in "xu" and kind:
            digits = self._source[self._at : self._at + (2 if kind == "x" else 4)]
            if len(digits) != (2 if kind == "x" else 4) or not all(d in "0123456789abcdefABCDEF" for d in digits):
                self._fail(f"\\{kind} without its hex digits")
            self._at += len(digits)
            return int(digits, 16)
        if not kind or (kind.isascii() and kind.isalnum()):
            self._fail(f"the escape \\{kind}")
        return ord(kind)

    def _set(self) -> str:
        negated = self._peek() == "^"
        self._at += negated
        found: list[Range] = []
        while (character := self._next()) != "]":
            if character == "[":
                self._fail("a '[' in a class: write \\[")
            if character == "\\":
                kind = self._next()
                if kind in _CLASSES:
                    found += _CLASSES[kind]
                    continue
                low = self._code(kind)
            else:
                low = ord(character)
            high = low
            if self._peek() == "-" and self._source[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                end = self._next()
                high = self._code(self._next()) if end == "\\" else ord(end)
            if high < low:
                self._fail("a range that ends before it begins")
            found.append((low, high))
        return _members(found, negated=negated)

    def _quantifier(self) -> str:
        sign = self._peek()
        if not sign or sign not in "*+?{":
            return ""
        if sign == "{":
            end = self._source.find("}", self._at)
            inner = self._source[self._at + 1 : end] if end > 0 else ""
            least, comma, most = inner.partition(",")
            if not (least.isascii() and least.isdigit() and (not most or (most.isascii() and most.isdigit()))):
                self._fail("a '{' that is no number of repetitions: write \\{")
            if max(int(least), int(most or 0)) > MAX_REPETITIONS:
                self._fail(f"a repetition of more than {MAX_REPETITIONS}")
            if most and int(most) < int(least):
                self._fail(f"{{{least},{most}}}, which ends before it begins")
            self._at = end + 1
            sign = f"{{{least}{comma}{most}}}"
        else:
            self._at += 1
        if self._peek() and self._peek() in "?+*{":
            self._fail("a repetition of a repetition, or one that is lazy or possessive")
        return sign

    def _peek(self) -> str:
        return self._source[self._at : self._at + 1]

    def _next(self) -> str:
        character = self._peek()
        if not character:
            self._fail("an end amid a group, a class or an escape")
        self._at += 1
        return character

    def _fail(self, what: str) -> NoReturn:
        raise GrammarError(f"the pattern {self._source[:60]!r} has {what}, which cannot be kept to")


_NOT_PLAIN: list[Range] = [(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F)]


def _members(ranges: Iterable[Range], *, negated: bool = False) -> str:
    """One of these characters, as JSON writes it in a string."""
    chosen = normalised(ranges, negated=negated)
    plain = normalised([*((low, high) for low, high in _gaps(chosen)), *_NOT_PLAIN], negated=True)
    ways = [_class(plain)] if plain else []
    ways += [
        literal(f"\\{short}") for code, short in _SHORT.items() if any(low <= code <= high for low, high in chosen)
    ]
    if not ways:
        raise GrammarError("the pattern asks for a character that JSON cannot write plainly")
    return ways[0] if len(ways) == 1 else f"({' | '.join(ways)})"


def _gaps(ranges: Iterable[Range]) -> list[Range]:
    return list(normalised(ranges, negated=True))


def _class(ranges: Iterable[Range]) -> str:
    return "[" + "".join(f"\\U{low:08X}-\\U{min(high, MAX_CHARACTER):08X}" for low, high in ranges) + "]"


def _escaped(character: str) -> str:
    plain = character.isascii() and character.isprintable() and character not in '"\\'
    return character if plain else f"\\U{ord(character):08X}"
