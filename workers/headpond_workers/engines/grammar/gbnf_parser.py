"""The parser of GBNF. Pure; the text is hostile, and bounded before anything is made of it."""

from __future__ import annotations

from typing import NoReturn

from headpond_workers.engines.grammar.gbnf import (
    ANY,
    MAX_CHARACTER,
    MAX_ELEMENTS,
    MAX_REPETITIONS,
    ROOT,
    Alternative,
    Element,
    Grammar,
    GrammarError,
    Range,
    Ranges,
    Rule,
    normalised,
)
from headpond_workers.engines.grammar.gbnf_recursion import refuse_left_recursion

MAX_RULES = 1 << 14
MAX_NESTING = 64
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
_HEX = {"x": 2, "u": 4, "U": 8}


def parse(text: str) -> Grammar:
    """Raises GrammarError for what is no GBNF, is too large, has no rule `root`, or recurses at its left end."""
    return _Parser(text).grammar()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._numbers: dict[str, int] = {ROOT: 0}
        self._rules: list[Rule | None] = [None]
        self._name_here = ""
        self._names = [ROOT]
        """Of each rule, the named one that it is a part of."""
        self._elements = 0

    def grammar(self) -> Grammar:
        self._skip_space(newlines=True)
        while self._at < len(self._text):
            self._rule()
        if self._rules[0] is None:
            raise GrammarError(f"it has no rule '{ROOT}'")
        names = {number: name for name, number in self._numbers.items()}
        for number, rule in enumerate(self._rules):
            if rule is None:
                raise GrammarError(f"it uses the rule '{names[number][:50]}', which it does not define")
        rules = tuple(rule for rule in self._rules if rule is not None)
        refuse_left_recursion(rules, self._names)
        return Grammar(rules, tuple(self._names))

    # Rules

    def _rule(self) -> None:
        name = self._name()
        number = self._number_of(name)
        if self._rules[number] is not None:
            self._fail(f"the rule '{name[:50]}' is defined twice")
        self._name_here = name
        self._skip_space()
        if not self._take("::="):
            self._fail("'::=' is expected here")
        self._skip_space(newlines=True)
        self._rules[number] = self._alternatives(depth=0)
        if self._at < len(self._text) and self._peek() not in "\r\n":
            self._fail("the end of the line is expected here")
        self._skip_space(newlines=True)

    def _alternatives(self, *, depth: int) -> Rule:
        found = [self._sequence(depth=depth)]
        while self._take("|"):
            self._skip_space(newlines=True)
            found.append(self._sequence(depth=depth))
        self._spend(len(found))
        return tuple(found)

    def _sequence(self, *, depth: int) -> Alternative:
        made: list[Element] = []
        while True:
            item = self._item(depth=depth)
            if item is None:
                return tuple(made)
            self._skip_space(newlines=depth > 0)
            while (times := self._repetition(newlines=depth > 0)) is not None:
                item = self._repeated(item, *times)
                self._skip_space(newlines=depth > 0)
            self._spend(len(item))
            made.extend(item)

    def _item(self, *, depth: int) -> Alternative | None:
        """What one repetition sign would repeat; None at the end of a sequence."""
        character = self._peek()
        if character == '"':
            return self._literal()
        if character == "[":
            return (self._class(),)
        if character == ".":
            self._at += 1
            return (ANY,)
        if character == "(":
            return (self._group(depth=depth + 1),)
        if character and character in "<!":
            self._fail("tokens (<...>) cannot be part of a grammar here: write their text in quotes")
        if character and character in "*+?{":
            self._fail(f"there is nothing before '{character}' to repeat")
        return (self._number_of(self._name()),) if _is_word(character) else None

    def _group(self, *, depth: int) -> int:
        if depth > MAX_NESTING:
            self._fail(f"groups are nested deeper than {MAX_NESTING}")
        self._at += 1
        self._skip_space(newlines=True)
        rule = self._alternatives(depth=depth)
        if not self._take(")"):
            self._fail("')' is expected here")
        return self._new_rule(rule)

    def _repetition(self, *, newlines: bool) -> tuple[int, int | None] | None:
        for sign, times in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return times
        if not self._take("{"):
            return None
        self._skip_space(newlines=newlines)
        least = self._integer()
        most: int | None = least
        self._skip_space(newlines=newlines)
        if self._take(","):
            self._skip_space(newlines=newlines)
            most = self._integer() if self._peek().isdigit() else None
            self._skip_space(newlines=newlines)
        if not self._take("}"):
            self._fail("'}' is expected here")
        if most is not None and most < least:
            self._fail(f"{{{least},{most}}} ends before it begins")
        if max(least, most or 0) > MAX_REPETITIONS:
            self._fail(f"{max(least, most or 0)} repetitions; the limit is {MAX_REPETITIONS}")
        return least, most

    def _repeated(self, item: Alternative, least: int, most: int | None) -> Alternative:
        """S{m,n} is S m times, then a rule `S rest |`, n - m times one in the other; S{m,} ends in `r ::= S r |`."""
        optional = 1 if most is None else most - least
        self._spend((len(item) + 2) * optional + len(item) * least)
        if not item:
            return ()
        tail: Alternative = ()
        for _ in range(optional):
            number = self._new_rule(None)
            self._rules[number] = ((*item, *((number,) if most is None else tail)), ())
            tail = (number,)
        return item * least + tail

    # Characters

    def _literal(self) -> Alternative:
        self._at += 1
        found: list[Element] = []
        while not self._take('"'):
            character = self._character()
            found.append(self._checked([(character, character)], negated=False))
        return tuple(found)

    def _class(self) -> Ranges:
        self._at += 1
        negated = self._take("^")
        found: list[Range] = []
        while not self._take("]"):
            low = high = self._character()
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._character()
            if high < low:
                self._fail("a range of characters ends before it begins")
            found.append((low, high))
        return self._checked(found, negated=negated)

    def _checked(self, found: list[Range], *, negated: bool) -> Ranges:
        ranges = normalised(found, negated=negated)
        if not ranges:
            self._fail("no character can stand here (NUL and surrogates are none)")
        self._spend(len(ranges) - 1)
        return ranges

    def _character(self) -> int:
        character = self._peek()
        if not character:
            self._fail("the text ends amid a literal or a class")
        self._at += 1
        if character != "\\":
            return ord(character)
        escape = self._peek()
        self._at += 1
        if escape in _HEX:
            digits = self._text[self._at : self._at + _HEX[escape]]
            if len(digits) != _HEX[escape] or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
                self._fail(f"{_HEX[escape]} hex digits are expected here")
            self._at += len(digits)
            if int(digits, 16) > MAX_CHARACTER:
                self._fail(f"there is no character {digits}")
            return int(digits, 16)
        if escape not in _ESCAPES or not escape:
            self._fail(f"'\\{escape}' is no escape of GBNF")
        return ord(_ESCAPES[escape])

    # Text

    def _name(self) -> str:
        begin = self._at
        while _is_word(self._peek()):
            self._at += 1
        if begin == self._at:
            self._fail("the name of a rule is expected here")
        return self._text[begin : self._at]

    def _integer(self) -> int:
        begin = self._at
        while "0" <= self._peek() <= "9" and self._peek():
            self._at += 1
        if not 0 < self._at - begin <= 9:
            self._fail("a number of at most 9 digits is expected here")
        return int(self._text[begin : self._at])

    def _skip_space(self, *, newlines: bool = False) -> None:
        while character := self._peek():
            if character == "#":
                while self._peek() and self._peek() not in "\r\n":
                    self._at += 1
            elif character in " \t" or (newlines and character in "\r\n"):
                self._at += 1
            else:
                return

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, expected: str) -> bool:
        if self._text.startswith(expected, self._at):
            self._at += len(expected)
            return True
        return False

    # Numbers and bounds

    def _number_of(self, name: str) -> int:
        if name not in self._numbers:
            self._numbers[name] = self._new_rule(None)
            self._names[-1] = name
        return self._numbers[name]

    def _new_rule(self, rule: Rule | None) -> int:
        if len(self._rules) >= MAX_RULES:
            raise GrammarError(f"it has more than {MAX_RULES} rules, groups and repetitions", rule=self._name_here)
        self._rules.append(rule)
        self._names.append(self._name_here)
        return len(self._rules) - 1

    def _spend(self, elements: int) -> None:
        self._elements += elements
        if self._elements > MAX_ELEMENTS:
            raise GrammarError(
                f"it has more than {MAX_ELEMENTS} elements once its repetitions are written out; repeat less",
                rule=self._name_here,
            )

    def _fail(self, reason: str) -> NoReturn:
        line = self._text.count("\n", 0, self._at) + 1
        column = self._at - (self._text.rfind("\n", 0, self._at) + 1) + 1
        raise GrammarError(f"line {line}, column {column}: {reason}", reason=reason, rule=self._name_here)


def _is_word(character: str) -> bool:
    return character.isascii() and (character.isalnum() or character == "-") and character != ""
