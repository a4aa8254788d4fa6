"""headpond.toml and the files of conf.d beside it, read as one. Which file and line gave what is kept."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headpond.errors.documents import decoding_reason
from headpond.layers import KeyPath, Saying
from headpond.nearby import nearest
from headpond.origins import Layer, Origin, Problem
from headpond.toml_places import dotted, given_twice, lines

CONF_FOLDER = "conf.d"
SECTIONS = ("redis", "storage", "defaults", "models")
_LAYERS = {"defaults": Layer.DEFAULTS}
_DEEPEST_KEY = 3
"""Of `models.<name>.<key>`: what stands below it belongs to its value."""
_LINE = re.compile(r"\(at line (\d+), column \d+\)")


class Places:
    """Lines of a file's tables and keys. Empty where no text was read."""

    def __init__(self, found: Mapping[KeyPath, int]) -> None:
        self._first: dict[KeyPath, int] = {}
        self._below: dict[KeyPath, dict[KeyPath, int]] = {}
        for path, line in found.items():
            for depth in range(1, len(path)):
                self._first.setdefault(path[:depth], line)
                if depth <= _DEEPEST_KEY:
                    self._below.setdefault(path[:depth], {})[path[depth:]] = line
        self._first |= found

    def line(self, path: KeyPath) -> int | None:
        """Of the key or header; of a table without a header of its own, of the first thing in it."""
        return self._first.get(path)

    def below(self, path: KeyPath) -> Mapping[KeyPath, int]:
        """Lines of what stands in a value, by the path below it."""
        return self._below.get(path, {})


@dataclass(frozen=True, slots=True)
class Given:
    """One table of one file: what it says, key by key, and where it begins."""

    sayings: tuple[Saying, ...]
    at: Origin
    raw: Mapping[str, Any]


@dataclass(slots=True)
class ConfigFiles:
    """Tables of all files: `sections` are redis, storage and defaults; `models` by name."""

    sections: dict[str, Given] = field(default_factory=dict)
    models: dict[str, Given] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def read_files(file: Path) -> ConfigFiles:
    """Read `file`, then conf.d/*.toml beside it in the order of their names. What is wrong is in `problems`."""
    found = ConfigFiles()
    _read(found, file, missing="no such file; copy the repository's headpond.toml to begin")
    folder = file.parent / CONF_FOLDER
    try:
        others = sorted(path for path in folder.iterdir() if path.suffix == ".toml" and not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        others = []
    except OSError as error:
        found.problems.append(Problem(str(folder), f"cannot be read: {error.strerror}"))
        others = []
    for other in others:
        _read(found, other, missing="no such file: it may be a link to one that is gone")
    return found


def add_tables(found: ConfigFiles, tables: Mapping[str, Any], file: Path, known: Mapping[KeyPath, int]) -> None:
    """Take the tables of one parsed file. known: the line of each path; empty where no text was read."""
    places = Places(known)

    def origin(layer: Layer, path: KeyPath) -> Origin:
        return Origin(layer, file=file, line=places.line(path), folder=file.parent)

    for key, value in tables.items():
        top = origin(Layer.TABLE, (key,))
        if key not in SECTIONS:
            found.problems.append(Problem(top.place, f"unknown table [{key}]{nearest(key, SECTIONS)}"))
            continue
        if not isinstance(value, dict):
            found.problems.append(Problem(top.place, f"'{key}' must be a table: [{key}]"))
            continue
        if key != "models":
            layer = _LAYERS.get(key, Layer.TABLE)
            _add(found, found.sections, key, _given(value, layer, (key,), origin, places), (key,))
            continue
        for name, table in value.items():
            path = ("models", name)
            if not isinstance(table, dict):
                message = f"'{dotted(path)}' must be a table: [{dotted(path)}]"
                found.problems.append(Problem(origin(Layer.TABLE, path).place, message))
                continue
            _add(found, found.models, name, _given(table, Layer.TABLE, path, origin, places), path)


def _read(found: ConfigFiles, file: Path, *, missing: str) -> None:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        found.problems.append(Problem(str(file), missing))
        return
    except (OSError, UnicodeDecodeError) as error:
        found.problems.append(Problem(str(file), f"cannot be read: {error}"))
        return
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        found.problems.append(_not_toml(file, text, error))
        return
    add_tables(found, tables, file, lines(text))


def _not_toml(file: Path, text: str, error: Exception) -> Problem:
    twice = given_twice(text)
    match = _LINE.search(str(error))
    line = int(match[1]) if match else None
    if twice is not None and (line is None or twice[1].line <= line):
        first, second = twice
        message = (
            f"not valid TOML: [{dotted(second.path)}] is given twice, at line {first.line} and at line {second.line}"
        )
        return Problem(f"{file}:{second.line}", message)
    return Problem(str(file) if line is None else f"{file}:{line}", f"not valid TOML: {decoding_reason(error)}")


def _add(found: ConfigFiles, into: dict[str, Given], name: str, given: Given, path: KeyPath) -> None:
    first = into.setdefault(name, given)
    if first is not given:
        message = f"[{dotted(path)}] is given twice: at {first.at.place} and at {given.at.place}"
        found.problems.append(Problem(given.at.place, message))


def _given(table: Mapping[str, Any], layer: Layer, path: KeyPath, origin: Any, places: Places) -> Given:
    sayings = [
        Saying((key,), value, origin(layer, (*path, key)), places.below((*path, key))) for key, value in table.items()
    ]
    return Given(tuple(sayings), origin(layer, path), table)
