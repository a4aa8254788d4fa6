"""A TOML text as tables, within bounds: what is beyond them would end later, and elsewhere. Pure."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from headpond.toml_places import dotted, given_twice, places

MAX_DEPTH = 32
"""Of tables and lists in one another. The deepest key of a configuration has six."""
_INTEGERS = range(-(1 << 63), 1 << 63)
_LINE = re.compile(r"\(at line (\d+), column \d+\)")
_LONG_NUMBER = re.compile(r"[0-9][0-9_]{4000,}")
_TOO_DEEP = f"tables or lists stand in one another more than {MAX_DEPTH} deep"
_TOO_LARGE = "an integer is too large: it must fit into 64 bits"


class NotToml(ValueError):
    """The text is no TOML. line: where, if that is known."""

    def __init__(self, message: str, *, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


class BeyondBounds(NotToml):
    """It is TOML, and too deep or with an integer that is too large."""


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a text. Raises NotToml, BeyondBounds."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _unreadable(text, error) from None
    except RecursionError:
        # What was read last is what holds the rest.
        found = places(text)
        raise BeyondBounds(_TOO_DEEP, line=found[-1].line if found else 1) from None
    except ValueError:
        # Python reads no integer of more than some thousand digits.
        number = _LONG_NUMBER.search(text)
        raise BeyondBounds(
            _TOO_LARGE, line=None if number is None else 1 + text.count("\n", 0, number.start())
        ) from None
    _check(tables, text)
    return tables


def _unreadable(text: str, error: tomllib.TOMLDecodeError) -> NotToml:
    twice = given_twice(text)
    match = _LINE.search(str(error))
    line = int(match[1]) if match else None
    if twice is not None and (line is None or twice[1].line <= line):
        first, second = twice
        message = f"[{dotted(second.path)}] is given twice, at line {first.line} and at line {second.line}"
        return NotToml(message, line=second.line)
    return NotToml(str(error), line=line)


def _check(tables: dict[str, Any], text: str) -> None:
    # No recursion: the depth is what is not known yet.
    waiting: list[tuple[tuple[str, ...], object]] = [((), tables)]
    while waiting:
        path, value = waiting.pop()
        if len(path) > MAX_DEPTH:
            raise BeyondBounds(_TOO_DEEP, line=_line_of(text, path))
        if isinstance(value, int) and value not in _INTEGERS:
            raise BeyondBounds(_TOO_LARGE, line=_line_of(text, path))
        if isinstance(value, dict):
            waiting += [((*path, key), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [((*path, str(index)), inner) for index, inner in enumerate(value)]


def _line_of(text: str, path: tuple[str, ...]) -> int | None:
    """Of the first thing there or below, else of the nearest one around it that has a key."""
    found = places(text)
    for depth in range(len(path), 0, -1):
        line = next((place.line for place in found if place.path[:depth] == path[:depth]), None)
        if line is not None:
            return line
    return None
