"""Random grammars, with a recogniser of their own that shares nothing with the code under test, and random texts."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hypothesis import strategies as st

from headpond_workers.engines.grammar.gbnf_state import EMPTY, GrammarState

LETTERS = "abc12\u00e9\u65e5\U0001f600"


@dataclass(frozen=True)
class Node:
    """kind: text, class, any, not, sequence, choice, repeat or self (the whole rule again, in brackets)."""

    kind: str
    text: str = ""
    parts: tuple[Node, ...] = ()
    least: int = 0
    most: int | None = None

    def gbnf(self) -> str:
        match self.kind:
            case "text":
                return '"' + self.text.replace("\\", "\\\\").replace('"', '\\"') + '"'
            case "class":
                return f"[{self.text}]"
            case "not":
                return f"[^{self.text}]"
            case "any":
                return "."
            case "self":
                return '("(" again ")")'
            case "sequence":
                return "(" + " ".join(part.gbnf() for part in self.parts) + ")"
            case "choice":
                return "(" + " | ".join(part.gbnf() for part in self.parts) + ")"
            case _:
                signs = {(0, None): "*", (1, None): "+", (0, 1): "?"}
                most = "" if self.most is None else str(self.most)
                return f"({self.parts[0].gbnf()}){signs.get((self.least, self.most), f'{{{self.least},{most}}}')}"

    def ends(self, text: str, at: int, whole: Node, depth: int = 0) -> frozenset[int]:
        """Where a match that begins at `at` may end."""
        if depth > 400:
            return frozenset()
        here = text[at : at + 1]
        match self.kind:
            case "text":
                return frozenset({at + len(self.text)}) if text.startswith(self.text, at) else frozenset()
            case "class":
                return frozenset({at + 1}) if here and here in self.text else frozenset()
            case "not":
                return frozenset({at + 1}) if here and here not in self.text else frozenset()
            case "any":
                return frozenset({at + 1}) if here else frozenset()
            case "self":
                if here != "(":
                    return frozenset()
                inner = whole.ends(text, at + 1, whole, depth + 1)
                return frozenset(end + 1 for end in inner if text[end : end + 1] == ")")
            case "sequence":
                reached = frozenset({at})
                for part in self.parts:
                    reached = frozenset(e for start in reached for e in part.ends(text, start, whole, depth + 1))
                return reached
            case "choice":
                return frozenset(e for part in self.parts for e in part.ends(text, at, whole, depth + 1))
            case _:
                return self._repeated(text, at, whole, depth)

    def _repeated(self, text: str, at: int, whole: Node, depth: int) -> frozenset[int]:
        reached, found, seen = frozenset({at}), set[int](), set[frozenset[int]]()
        for times in range(10_000):
            if times >= self.least:
                found |= reached
            if times == self.most or not reached or (times >= self.least and reached in seen):
                break
            seen.add(reached)
            reached = frozenset(e for start in reached for e in self.parts[0].ends(text, start, whole, depth + 1))
        return frozenset(found)

    def accepts(self, text: str) -> bool:
        return len(text) in self.ends(text, 0, self)

    def nullable(self) -> bool:
        return 0 in self.ends("", 0, self)


def grammar_of(node: Node) -> str:
    return f"root ::= again # the rule\nagain ::= {node.gbnf()}\n"


def _repeat(part: Node, least: int, more: int | None) -> Node:
    return Node("repeat", parts=(part,), least=least, most=None if more is None else least + more)


_characters = st.text(st.sampled_from(LETTERS), min_size=1, max_size=3)
_leaves = st.one_of(
    _characters.map(lambda text: Node("text", text)),
    _characters.map(lambda text: Node("class", "".join(dict.fromkeys(text)))),
    _characters.map(lambda text: Node("not", "".join(dict.fromkeys(text)))),
    st.just(Node("any")),
    st.just(Node("self")),
)


def _larger(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    several = st.lists(inner, min_size=1, max_size=3).map(tuple)
    return st.one_of(
        several.map(lambda parts: Node("sequence", parts=parts)),
        several.map(lambda parts: Node("choice", parts=parts)),
        # A repetition of what may be empty is read in ever more ways, and refused.
        st.builds(
            _repeat,
            inner.filter(lambda node: not node.nullable()),
            st.integers(0, 2),
            st.one_of(st.none(), st.integers(0, 2)),
        ),
    )


grammars = st.recursive(_leaves, _larger, max_leaves=6)


def random_text(state: GrammarState, seed: int, *, most: int = 400) -> str:
    """Characters that the grammar admits one after the other, until it may end; a long text ends as soon as it may."""
    chance = random.Random(seed)
    text = ""
    while len(text) < most:
        due = sorted(state.due())
        if state.may_end and (not due or chance.random() < 0.2 or len(text) > most // 2):
            return text
        low, high = chance.choice(chance.choice(due))
        character = chr(chance.randint(low, min(high, low + 40)))
        assert state.advance(character)
        text += character
    return text


def ended(state: GrammarState) -> bool:
    return EMPTY in state.stacks
