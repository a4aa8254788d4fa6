"""Rules that can begin with themselves: an automaton that expands them would never come to a character. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from headpond_workers.engines.grammar.gbnf import GrammarError, Rule


class LeftRecursion(GrammarError):
    """A rule can begin with itself."""


def refuse_left_recursion(rules: tuple[Rule, ...], names: Sequence[str]) -> None:
    """A rule that can begin with itself would never be at a character. names: of the named rule that each is part of.

    Raises LeftRecursion.
    """
    empty = _may_be_empty(rules)
    done = [False] * len(rules)
    for start in range(len(rules)):
        path: list[tuple[int, list[int]]] = [] if done[start] else [(start, _left_corners(rules[start], empty))]
        active = {start}
        while path:
            number, corners = path[-1]
            if not corners:
                done[number] = True
                active.discard(number)
                path.pop()
                continue
            corner = corners.pop()
            if corner in active:
                name = names[corner]
                raise LeftRecursion(
                    f"the rule '{name[:50]}' can begin with itself (left recursion); write it the other way", rule=name
                )
            if not done[corner]:
                active.add(corner)
                path.append((corner, _left_corners(rules[corner], empty)))


def _may_be_empty(rules: tuple[Rule, ...]) -> list[bool]:
    empty = [False] * len(rules)
    users: dict[int, set[int]] = {}
    for number, rule in enumerate(rules):
        for alternative in rule:
            for part in alternative:
                if isinstance(part, int):
                    users.setdefault(part, set()).add(number)
    todo = list(range(len(rules)))
    while todo:
        number = todo.pop()
        if not empty[number] and any(
            all(isinstance(part, int) and empty[part] for part in alternative) for alternative in rules[number]
        ):
            empty[number] = True
            todo.extend(users.get(number, ()))
    return empty


def _left_corners(rule: Rule, empty: list[bool]) -> list[int]:
    corners: set[int] = set()
    for alternative in rule:
        for part in alternative:
            if not isinstance(part, int):
                break
            corners.add(part)
            if not empty[part]:
                break
    return sorted(corners)
