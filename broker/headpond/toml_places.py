"""At which line each key and table of a TOML text stands: tomllib gives values without their places. Pure."""

from __future__ import annotations

import contextlib
import re
import tomllib
from bisect import bisect_right
from dataclasses import dataclass, field

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'')
_LONG_STRING = re.compile(r'"""(?:[^\\]|\\[\s\S])*?"{3,5}|\'\'\'[\s\S]*?\'{3,5}')
_SCALAR = re.compile(r"[^,\]}\n#]+")


@dataclass(frozen=True, slots=True)
class Place:
    """A table header or key, as the text gives it. path: an element of an array counts by its index, such as "0"."""

    path: tuple[str, ...]
    line: int


def dotted(path: tuple[str, ...]) -> str:
    """The path as a TOML key: parts that are not bare are quoted."""
    return ".".join(part if _BARE_KEY.fullmatch(part) else _quoted(part) for part in path)


def places(text: str) -> list[Place]:
    """Every table header and every key, in the order of the text; of a text that is no TOML, those before the first
    thing that cannot be read."""
    reader = _Reader(text)
    # The caller has asked tomllib, which says what is wrong, also with a text that is nested too deep.
    with contextlib.suppress(_UnreadableError, RecursionError):
        reader.read()
    return reader.found


def lines(text: str) -> dict[tuple[str, ...], int]:
    """The line of each path: where it is first given."""
    found: dict[tuple[str, ...], int] = {}
    for place in places(text):
        found.setdefault(place.path, place.line)
    return found


def given_twice(text: str) -> tuple[Place, Place] | None:
    """The first path that the text gives a second time, at both its places."""
    seen: dict[tuple[str, ...], Place] = {}
    for place in places(text):
        first = seen.setdefault(place.path, place)
        if first is not place:
            return first, place
    return None


def parse_key(text: str) -> tuple[str, ...]:
    """A dotted TOML key, such as `chat.slots` or `"smol.135m".slots`. Raises ValueError if it is none."""
    reader = _Reader(text)
    try:
        path = reader.key()
    except _UnreadableError:
        raise ValueError("is no key: write it as in headpond.toml, such as chat.slots") from None
    if reader.at != len(text):
        raise ValueError("is no key: write it as in headpond.toml, such as chat.slots")
    return path


def _quoted(part: str) -> str:
    escaped = part.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(char if char.isprintable() else f"\\U{ord(char):08X}" for char in escaped) + '"'


class _UnreadableError(Exception):
    pass


@dataclass(slots=True)
class _Reader:
    text: str
    at: int = 0
    found: list[Place] = field(default_factory=list)
    _ends: list[int] = field(default_factory=list)
    _arrays: dict[tuple[str, ...], int] = field(default_factory=dict)
    """Arrays of tables -> how many elements they have so far."""

    def __post_init__(self) -> None:
        self._ends = [at for at, char in enumerate(self.text) if char == "\n"]

    def read(self) -> None:
        table: tuple[str, ...] = ()
        self._skip(_BLANK)
        while self.at < len(self.text):
            start = self.at
            if self._take("[["):
                table = self._resolved(self.key())
                self._expect("]]")
                count = self._arrays.get(table, 0)
                self._arrays[table] = count + 1
                table = (*table, str(count))
                self._note(table, start)
            elif self._take("["):
                table = self._resolved(self.key())
                self._expect("]")
                self._note(table, start)
            else:
                self._pair(table)
            self._skip(_BLANK)

    def key(self) -> tuple[str, ...]:
        parts = []
        while True:
            self._skip(_SPACE)
            if bare := self._match(_BARE_KEY):
                parts.append(bare)
            elif string := self._match(_STRING):
                parts.append(_decoded(string))
            else:
                raise _UnreadableError
            self._skip(_SPACE)
            if not self._take("."):
                return tuple(parts)

    def _pair(self, table: tuple[str, ...]) -> None:
        self._skip(_SPACE)
        start = self.at
        path = (*table, *self.key())
        self._expect("=")
        self._note(path, start)
        self._value(path)

    def _value(self, path: tuple[str, ...]) -> None:
        self._skip(_SPACE)
        if self._match(_LONG_STRING) or self._match(_STRING):
            return
        if self._take("["):
            self._elements(path)
        elif self._take("{"):
            self._skip(_BLANK)
            while not self._take("}"):
                self._pair(path)
                self._skip(_BLANK)
                self._take(",")
                self._skip(_BLANK)
        elif not self._match(_SCALAR):
            raise _UnreadableError

    def _elements(self, path: tuple[str, ...]) -> None:
        index = 0
        self._skip(_BLANK)
        while not self._take("]"):
            self._value((*path, str(index)))
            index += 1
            self._skip(_BLANK)
            self._take(",")
            self._skip(_BLANK)

    def _resolved(self, path: tuple[str, ...]) -> tuple[str, ...]:
        """A header below an array of tables speaks of its last element."""
        found: tuple[str, ...] = ()
        for depth, part in enumerate(path):
            found = (*found, part)
            if found in self._arrays and depth < len(path) - 1:
                found = (*found, str(self._arrays[found] - 1))
        return found

    def _note(self, path: tuple[str, ...], at: int) -> None:
        self.found.append(Place(path, bisect_right(self._ends, at - 1) + 1))

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.at)
        if found is None:
            return ""
        self.at = found.end()
        return found[0]

    def _skip(self, pattern: re.Pattern[str]) -> None:
        self._match(pattern)

    def _take(self, word: str) -> bool:
        if not self.text.startswith(word, self.at):
            return False
        self.at += len(word)
        return True

    def _expect(self, word: str) -> None:
        self._skip(_SPACE)
        if not self._take(word):
            raise _UnreadableError


def _decoded(string: str) -> str:
    try:
        return next(iter(tomllib.loads(f"{string} = 0")))
    except tomllib.TOMLDecodeError:
        raise _UnreadableError from None
