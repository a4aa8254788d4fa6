"""Grammars that read one text in ever more ways. Pure.

llama.cpp asks of each token of the vocabulary whether it fits, and follows every way to read its characters, one by
one. Where the ways double with each character, a token of 60 spaces is never answered. So each rule is walked along
the characters that keep most ways open, and a grammar whose ways grow so is refused.
"""

from __future__ import annotations

from collections import Counter

from headpond_workers.engines.grammar.gbnf import Grammar, Ranges, matches
from headpond_workers.engines.grammar.gbnf_state import EMPTY, GrammarState, TooAmbiguous, program_of

SHORT_WALK = 16
LONG_WALK = 64
"""Characters. The longest tokens, of spaces or dashes, have 128."""
SUSPICIOUS_WAYS = 8
MAX_WAYS = 1 << 14
_TRIED = 4
_SHARED_RULES = 64


def refuse_explosive(grammar: Grammar) -> None:
    """Raises TooAmbiguous for a grammar that reads a short text in too many ways, with the rule that does."""
    program = program_of(grammar)
    names = grammar.names or ("",) * len(grammar.rules)
    name = names[0]
    try:
        state = GrammarState(program)
        # The root last: of a grammar that defines what it uses before its use, the smallest part that fails is named.
        for rule in (*range(1, len(names)), 0):
            name = names[rule]
            if rule % _SHARED_RULES == 0:
                state = GrammarState(program)  # what walks of other rules have left is not needed
            if _most_ways(state, rule, SHORT_WALK) > SUSPICIOUS_WAYS:
                _most_ways(state, rule, LONG_WALK)
    except TooAmbiguous as error:
        raise TooAmbiguous(
            f"the rule '{name[:50]}': {error}" if name else str(error), reason=str(error), rule=name
        ) from None


def _most_ways(state: GrammarState, rule: int, characters: int) -> int:
    ways = Counter(dict.fromkeys(state.beginnings(rule), 1))
    most = 0
    for _ in range(characters):
        # How a class is left does not matter, only that it is: all ways through it go on together.
        classes = Counter[Ranges]()
        for stack, count in ways.items():
            if stack != EMPTY:
                classes[state.class_at(stack)] += count
        tried = [_after(state, ways, ranges[0][0]) for ranges, _ in classes.most_common(_TRIED)]
        if not tried:
            break
        ways = max(tried, key=Counter.total)
        most = max(most, ways.total())
        if most > MAX_WAYS:
            raise TooAmbiguous(
                f"it can read one text of at most {LONG_WALK} characters in more than {MAX_WAYS} ways, and each of "
                "them would be followed for every token. Write alternatives that no text fits twice, and no repetition "
                "of a repetition"
            )
    return most


def _after(state: GrammarState, ways: Counter[int], character: int) -> Counter[int]:
    made: Counter[int] = Counter()
    for stack, count in ways.items():
        if stack != EMPTY and matches(state.class_at(stack), character):
            for follower in state.step(stack):
                made[follower] += count
    return made
