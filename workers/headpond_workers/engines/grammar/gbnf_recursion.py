"""Rules that can begin with themselves: an automaton that expands them would never come to a character. Pure."""

from __future__ import annotations

from headpond_workers.engines.grammar.gbnf import GrammarError, Rule


def refuse_left_recursion(rules: tuple[Rule, ...], names: dict[int, str]) -> None:
    """A rule that can begin with itself would never be at a character."""
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
                name = names.get(corner) or next((names[n] for n, _ in reversed(path) if n in names), "")
                raise GrammarError(
                    f"the rule '{name[:50]}' can begin with itself (left recursion); write it the other way"
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
