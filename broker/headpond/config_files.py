"""headpond.toml and the files of conf.d beside it, read as one. Which file and line gave what is kept."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headpond.layers import KeyPath, Saying
from headpond.nearby import nearest
from headpond.origins import Layer, Origin, Problem
from headpond.toml_places import dotted, lines
from headpond.toml_text import BeyondBounds, NotToml, parse_toml

CONF_FOLDER = "conf.d"
SECTIONS = ("redis", "storage", "defaults", "models")
_LAYERS = {"defaults": Layer.DEFAULTS}
_DEEPEST_KEY = 3
"""Of `models.<name>.<key>`: what stands below it belongs to its value."""
MAX_BYTES = 1 << 20
"""Of one file: a table of a model takes less than a KiB."""


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
    except FileNotFoundError:
        others = []
    except NotADirectoryError:
        found.problems.append(Problem(str(folder), "is a file, and should be a folder with *.toml in it"))
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
        text = _text_of(file)
    except FileNotFoundError:
        found.problems.append(Problem(str(file), missing))
        return
    except UnicodeDecodeError as error:
        found.problems.append(Problem(str(file), f"cannot be read: it is not UTF-8, at byte {error.start}"))
        return
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        found.problems.append(Problem(str(file), f"cannot be read: {reason}"))
        return
    try:
        tables = parse_toml(text)
    except BeyondBounds as error:
        found.problems.append(Problem(_place(file, error.line), f"cannot be used: {error}"))
        return
    except NotToml as error:
        found.problems.append(Problem(_place(file, error.line), f"not valid TOML: {error}"))
        return
    add_tables(found, tables, file, lines(text))


def _text_of(file: Path) -> str:
    """Raises OSError; ValueError saying why it is not read."""
    # Not blocking: a FIFO would keep every command waiting for somebody who writes into it.
    handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise ValueError("it is a folder, and should be a file")
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is a FIFO, a device or a socket, and should be a regular file")
        with open(handle, "rb", closefd=False) as opened:
            if status.st_size > MAX_BYTES or len(raw := opened.read(MAX_BYTES + 1)) > MAX_BYTES:
                raise ValueError(f"it has more than {MAX_BYTES} bytes")
    finally:
        os.close(handle)
    # Editors of some systems begin a file with a byte order mark, and end lines with two characters.
    return io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8-sig").read()


def _place(file: Path, line: int | None) -> str:
    return str(file) if line is None else f"{file}:{line}"


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
