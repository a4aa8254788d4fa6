"""Makes one Lua script of its own text and of what that needs of the parts that scripts share. Pure.

A server makes every local function of a script anew at each call, and looks through the script's locals for each name
that such a function holds. So a script gets what it uses and no more: constants are put in where they stand, and what
a call seldom reaches is made when it is first reached.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

_WORD = re.compile(r"""--[^\n]*|'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|(?<![\w.:])[A-Za-z_]\w*""")
"""A comment, a string, or a name that is no field of a table."""
_FUNCTION = re.compile(r"local function (\w+)\(")
_LOCALS = re.compile(r"local (\w+(?:\s*,\s*\w+)*)(?:\s*=\s*(.*))?", re.DOTALL)
_NUMBER = re.compile(r"-?\d+")


@dataclass(frozen=True)
class Definition:
    """What one statement of a part defines, with the statements up to the next one, which belong to it. names: in
    their order."""

    names: tuple[str, ...]
    text: str
    is_function: bool

    @cached_property
    def uses(self) -> frozenset[str]:
        return names_in(self.text)


def names_in(text: str) -> frozenset[str]:
    """The names that stand in Lua text, outside of strings and comments."""
    return frozenset(word for word in _WORD.findall(text) if word[0] not in "-'\"")


class Parts:
    """What scripts share, in the order of what builds on what."""

    def __init__(self, texts: Iterable[tuple[str, str]]) -> None:
        """texts: of each part its name, for errors, and its text. Raises ValueError for one that cannot be taken apart:
        a statement at the left edge begins with `local`, or belongs to the one before it; a name is defined once."""
        definitions: list[Definition] = []
        self.constants: dict[str, str] = {}
        seen: dict[str, str] = {}
        for part, text in texts:
            for statement in _statements(part, text):
                found = _definition(part, statement)
                for name in found.names:
                    if name in seen:
                        raise ValueError(f"{name} is defined in {seen[name]} and in {part}")
                    seen[name] = part
                values = _constants(found)
                if values is None:
                    definitions.append(found)
                else:
                    self.constants |= values
        self.definitions = [
            Definition(each.names, with_constants(each.text, self.constants), each.is_function) for each in definitions
        ]


def link(own: str, parts: Parts, *, seldom: frozenset[str] = frozenset()) -> str:
    """own: the text of a script, without the parts. seldom: functions that a call seldom reaches."""
    own = with_constants(own, parts.constants)
    roots = names_in(own)
    return "\n".join([*_emit(_needed(parts.definitions, roots), roots, seldom), own])


def with_constants(text: str, constants: Mapping[str, str]) -> str:
    return _WORD.sub(lambda found: constants.get(found[0], found[0]), text)


def _statements(part: str, text: str) -> list[str]:
    statements: list[list[str]] = []
    for line in text.splitlines():
        if not line or line.startswith("--"):
            continue
        if line.startswith("local "):
            statements.append([])
        elif not statements:
            raise ValueError(f"{part} begins with no definition: {line!r}")
        statements[-1].append(line)
    return ["\n".join(lines) for lines in statements]


def _definition(part: str, statement: str) -> Definition:
    if function := _FUNCTION.match(statement):
        return Definition((function[1],), statement, is_function=True)
    variables = _LOCALS.match(statement)
    if variables is None:
        raise ValueError(f"{part} defines nothing here: {statement!r}")
    return Definition(tuple(re.split(r"\s*,\s*", variables[1])), statement, is_function=False)


def _constants(definition: Definition) -> dict[str, str] | None:
    """By its name the number that each name in capitals stands for; None for anything else."""
    if definition.is_function or not all(name.isupper() for name in definition.names):
        return None
    variables = _LOCALS.match(re.sub(r"\s*--[^\n]*", "", definition.text))
    values = re.split(r"\s*,\s*", (variables[2] or "").strip()) if variables else []
    if len(values) != len(definition.names) or not all(map(_NUMBER.fullmatch, values)):
        return None
    return dict(zip(definition.names, values, strict=True))


def _needed(
    definitions: Sequence[Definition], roots: frozenset[str], *, without: Definition | None = None
) -> list[Definition]:
    """What is used from `roots`, directly or not, in its order; without: but for what is used through this alone."""
    by_name = {name: each for each in definitions for name in each.names}
    found: set[int] = set()
    names = list(roots)
    while names:
        each = by_name.get(names.pop())
        if each is not None and each is not without and id(each) not in found:
            found.add(id(each))
            names += each.uses
    return [each for each in definitions if id(each) in found]


def _emit(definitions: Sequence[Definition], roots: frozenset[str], seldom: frozenset[str]) -> list[str]:
    """The text of definitions that `roots` use. Functions that a seldom one alone uses are put into it."""
    inside: dict[str, list[Definition]] = {}
    for each in definitions:
        if each.is_function and each.names[0] in seldom:
            kept = {id(other) for other in _needed(definitions, roots, without=each)}
            inside[each.names[0]] = [
                other for other in definitions if other.is_function and other is not each and id(other) not in kept
            ]
    nested = {other.names[0] for group in inside.values() for other in group}
    outer = {name: group for name, group in inside.items() if group and name not in nested}
    hidden = {other.names[0] for group in outer.values() for other in group}
    texts: list[str] = []
    for each in definitions:
        name = each.names[0]
        if each.is_function and name in hidden:
            continue
        texts.append(
            _made_at_first_call(each, _emit(outer[name], each.uses, seldom - {name})) if name in outer else each.text
        )
    return texts


def _made_at_first_call(function: Definition, inside: Sequence[str]) -> str:
    (name,) = function.names
    lines = [f"local {name}", f"{name} = function(...)", *inside]
    return "\n".join([*lines, _FUNCTION.sub(rf"{name} = function(", function.text, 1), f"return {name}(...)", "end"])
