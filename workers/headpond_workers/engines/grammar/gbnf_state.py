"""How far a text has come in a grammar: a set of stacks, as llama.cpp's own grammar keeps it. Pure.

A stack says what is still to come: its top is a place in an alternative at which a character is due, below it are
the places to go on at when that alternative is done. The empty stack is a text that may end here.

`residual` writes what the stacks have left as a grammar of its own. A text is one of that grammar exactly if, put
behind the text so far, it is one of the whole grammar: so a generation that was cut off goes on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from headpond_workers.engines.grammar.gbnf import ROOT, Element, Grammar, GrammarError, Ranges, matches, sequence_text

MAX_STACKS = 1024
"""Of one state. llama.cpp tries each of them on each token of the vocabulary."""
MAX_CELLS = 1 << 18
"""Of all stacks that one text needed; a text nests them as deep as it nests its rules."""
EMPTY = 0


class TooAmbiguous(GrammarError):
    """There are too many ways to read a text."""


@dataclass(frozen=True, slots=True)
class Program:
    """A grammar laid out flat. code: at each place an element, or None behind an alternative's last one.

    starts: of each rule, the places at which its alternatives begin.
    """

    code: tuple[Element | None, ...]
    starts: tuple[tuple[int, ...], ...]
    rules_text: str
    elements: int


def program_of(grammar: Grammar) -> Program:
    code: list[Element | None] = []
    starts: list[tuple[int, ...]] = []
    for rule in grammar.rules:
        begins: list[int] = []
        for alternative in rule:
            begins.append(len(code))
            code += (*alternative, None)
        starts.append(tuple(begins))
    return Program(tuple(code), tuple(starts), grammar.text(), len(code))


class GrammarState:
    """Of one text. Not thread-safe. Starts before the first character."""

    def __init__(self, program: Program) -> None:
        """Raises TooAmbiguous."""
        self._program = program
        # A stack is the number of its top cell; cells are shared. Cell 0 is the empty stack.
        self._cells: list[tuple[int, int]] = [(-1, -1)]
        self._numbers: dict[tuple[int, int], int] = {}
        self._expanded: dict[int, tuple[int, ...]] = {}
        self.stacks = self.beginnings(0)

    @property
    def may_end(self) -> bool:
        """Whether the text so far is one of the grammar."""
        return EMPTY in self.stacks

    @property
    def is_complete(self) -> bool:
        """Whether it is one, and no longer text is."""
        return self.stacks == (EMPTY,)

    def admits(self, character: int) -> bool:
        """Whether a text of the grammar may go on with this code point."""
        return any(matches(ranges, character) for ranges in self.due())

    def due(self) -> set[Ranges]:
        """The classes of characters that may come next."""
        tops = (self.class_at(stack) for stack in self.stacks if stack != EMPTY)
        return set(tops)

    def advance(self, text: str) -> bool:
        """Take the next characters. False, with nothing changed, if no text of the grammar goes on so.

        Raises TooAmbiguous.
        """
        stacks = self.stacks
        for character in text:
            stacks = self.after(stacks, ord(character))
            if not stacks:
                return False
        self.stacks = stacks
        return True

    def after(self, stacks: Iterable[int], character: int) -> tuple[int, ...]:
        """The stacks that these become by one code point; of a text that ends here, none."""
        return self._merged(
            self.step(stack) for stack in stacks if stack != EMPTY and matches(self.class_at(stack), character)
        )

    def step(self, stack: int) -> tuple[int, ...]:
        """What a stack becomes by a character that its top admits."""
        place, below = self._cells[stack]
        return self._expand(self._above(place + 1, below))

    def residual(self) -> str:
        """GBNF of what may follow the text so far; its rule `root` is an alternation of what each stack has left."""
        places: dict[int, None] = {}
        endings: list[str] = []
        for stack in self.stacks:
            names: list[str] = []
            while stack != EMPTY:
                place, stack = self._cells[stack]
                places[place] = None
                names.append(f"s{place}")
            endings.append(" ".join(names) or '""')
        suffixes = (f"s{place} ::= {sequence_text(self._suffix(place))}\n" for place in places)
        return f"{ROOT} ::= {' | '.join(endings)}\n{''.join(suffixes)}{self._program.rules_text}"

    def _suffix(self, place: int) -> list[Element]:
        """The rest of an alternative."""
        found: list[Element] = []
        while (element := self._program.code[place]) is not None:
            found.append(element)
            place += 1
        return found

    def beginnings(self, rule: int) -> tuple[int, ...]:
        """The stacks of a text that begins with a rule, and has nothing behind it."""
        return self._merged(self._expand(self._above(start, EMPTY)) for start in self._program.starts[rule])

    def class_at(self, stack: int) -> Ranges:
        """The characters that a stack other than EMPTY admits next."""
        element = self._program.code[self._cells[stack][0]]
        assert isinstance(element, tuple)  # noqa: S101 - `_expand` leaves no other
        return element

    def _above(self, place: int, below: int) -> int:
        """The stack that goes on at a place; behind an alternative's last element, what is below."""
        if self._program.code[place] is None:
            return below
        cell = (place, below)
        number = self._numbers.get(cell)
        if number is None:
            number = self._numbers[cell] = len(self._cells)
            self._cells.append(cell)
            if number > MAX_CELLS:
                raise TooAmbiguous("a text of it needs too much memory to be followed")
        return number

    def _expand(self, stack: int) -> tuple[int, ...]:
        """The stacks with a character on top that a stack with a rule on top stands for."""
        known = self._expanded.get(stack)
        if known is not None:
            return known
        found: dict[int, None] = {}
        seen: set[int] = set()
        todo = [stack]
        while todo:
            one = todo.pop()
            if one in seen:
                continue
            seen.add(one)
            if len(seen) > 8 * MAX_STACKS:
                raise TooAmbiguous(f"it can go on in more than {MAX_STACKS} ways at one place")
            place, below = self._cells[one]
            element = None if one == EMPTY else self._program.code[place]
            if isinstance(element, int):
                rest = self._above(place + 1, below)
                todo.extend(self._above(start, rest) for start in reversed(self._program.starts[element]))
            else:
                found[one] = None
        made = self._expanded[stack] = self._merged([found])
        return made

    def _merged(self, parts: Iterable[Iterable[int]]) -> tuple[int, ...]:
        merged: dict[int, None] = {}
        for part in parts:
            merged.update(dict.fromkeys(part))
            if len(merged) > MAX_STACKS:
                raise TooAmbiguous(f"it can go on in more than {MAX_STACKS} ways at one place")
        return tuple(merged)
