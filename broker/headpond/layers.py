"""Settings of several layers, merged into one table, and each value's origin. Pure.

A key of a file is replaced as a whole by a stronger file table. A variable or option that names a key below a table,
such as `tenant_weights.acme`, touches that key alone; a secret reference is always one value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pydantic import ValidationError

from headpond.complaints import complaint
from headpond.nearby import nearest
from headpond.origins import Origin, Problem
from headpond.shapes import anchored, below, is_secret, parse_text, table_of, values_of, wrong_types
from headpond.tables import Table
from headpond.toml_places import dotted

_T = TypeVar("_T", bound=Table)
KeyPath = tuple[str, ...]
"""Keys, from a table downwards."""


@dataclass(frozen=True, slots=True)
class Text:
    """A value of the environment or the command line. What it means depends on the key."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Saying:
    """One layer's word on one key. path: the key, below its table; of a variable in capitals, with '_' for '-' and '.'.

    lines: the lines of keys below a value of a file, by their paths below it.
    """

    path: KeyPath
    value: object
    origin: Origin
    lines: Mapping[KeyPath, int] = field(default_factory=dict)


@dataclass(slots=True)
class Merged:
    """tree: the values, ready to be checked. origins: of each value that any layer gave, by its path."""

    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, Origin] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def origin(self, path: KeyPath, *, otherwise: Origin) -> Origin:
        """Of the value there, or of the nearest one that holds it."""
        for depth in range(len(path), 0, -1):
            if path[:depth] in self.origins:
                return self.origins[path[:depth]]
        return otherwise


def merge(kind: type[Table], sayings: Iterable[Saying], *, section: str, model: str = "") -> Merged:
    """Put the sayings, weakest first, into one table of the class `kind`.

    section: `models.chat`, for messages. What is said of all models and does not concern this one is passed over.
    """
    merged = Merged()
    for saying in sayings:
        origin = saying.origin
        if origin.layer.of_all and not _concerns(kind, saying.path[0], origin):
            continue
        try:
            path, annotation = _locate(kind, saying.path, merged.tree, section, origin)
            value = saying.value
            if isinstance(value, Text):
                value = _parsed(value, annotation, path, section)
        except ValueError as error:
            merged.problems.append(Problem(origin.place, str(error), model))
            continue
        complaints = list(wrong_types(value, annotation))
        for inner, said in complaints:
            place = replace(origin, line=saying.lines.get(inner, origin.line)).place
            merged.problems.append(Problem(place, f"[{section}] {dotted((*path, *inner))}: {said}", model))
        if complaints:
            continue
        if origin.folder is not None:
            value = anchored(value, annotation, origin.folder)
        _put(merged, kind, path, value, saying)
    return merged


def check(kind: type[_T], merged: Merged, *, section: str, at: Origin, model: str = "") -> _T | None:
    """The merged table as an object of its class; None if it is not one, and what is wrong is in merged.problems.

    at: of the table itself, for what no single key is to blame for.
    """
    try:
        return kind.model_validate(merged.tree)
    except ValidationError as error:
        for found in error.errors(include_url=False):
            path = tuple(str(part) for part in found["loc"])
            if found["type"] == "extra_forbidden":
                message = f"unknown key '{path[-1]}' in [{section}]{nearest(path[-1], _known(kind, path[:-1]))}"
            else:
                key = ".".join(path)
                message = f"[{section}] {key + ': ' if key else ''}{complaint(found)}"
            merged.problems.append(Problem(merged.origin(path, otherwise=at).place, message, model))
        return None


def flattened(value: object, path: KeyPath = ()) -> dict[KeyPath, object]:
    """Every value of a checked table, by its path. An empty table and a secret reference are values."""
    inner: Mapping[str, object] | None = None
    if isinstance(value, Table) and not is_secret(type(value)):
        inner = {key: getattr(value, key) for key in type(value).model_fields}
    elif isinstance(value, dict) and value:
        inner = value
    if inner is None:
        return {path: value}
    return {where: each for key, held in inner.items() for where, each in flattened(held, (*path, str(key))).items()}


def _concerns(kind: type[Table], key: str, origin: Origin) -> bool:
    fields: Collection[str] = kind.model_fields
    return (key.lower() if origin.layer.is_environment else key) in fields


def _locate(
    kind: type[Table], path: KeyPath, tree: dict[str, Any], section: str, origin: Origin
) -> tuple[KeyPath, Any]:
    """The path in the spelling of the table, and what its value may be. Raises ValueError with the nearest key."""
    found: KeyPath = ()
    annotation: Any = kind
    node: object = tree
    for part in path:
        table = table_of(annotation)
        if table is None and values_of(annotation) is None:
            raise ValueError(f"[{section}] {dotted(found)} is no table, so it has no key '{part.lower()}'")
        present = node if isinstance(node, dict) else {}
        key = part
        if origin.layer.is_environment:
            key = _spelled(part, table.model_fields if table is not None else present, section)
        if table is not None and key not in table.model_fields:
            raise ValueError(f"unknown key '{key}' in [{section}]{nearest(key, table.model_fields)}")
        annotation = below(annotation, key)
        node = present.get(key)
        found = (*found, key)
    return found, annotation


def _spelled(part: str, known: Iterable[str], section: str) -> str:
    """The key that a variable means. Raises ValueError if it could be one of two."""
    matching = [key for key in known if variable_part(key) == part]
    if len(matching) > 1:
        names = " and ".join(f"'{key}'" for key in matching)
        raise ValueError(f"[{section}] {names} are the same in a variable's name: set them in a file")
    return matching[0] if matching else part.lower()


def variable_part(key: str) -> str:
    """A key as it is spelled in the name of a variable."""
    return key.upper().replace("-", "_").replace(".", "_")


def _parsed(value: Text, annotation: Any, path: KeyPath, section: str) -> object:
    try:
        return parse_text(value.text, annotation)
    except ValueError as error:
        raise ValueError(f"[{section}] {dotted(path)}: {error}") from None


def _put(merged: Merged, kind: type[Table], path: KeyPath, value: object, saying: Saying) -> None:
    node = merged.tree
    annotation: Any = kind
    for depth, key in enumerate(path[:-1]):
        annotation = below(annotation, key)
        here = path[: depth + 1]
        kept = node.get(key)
        if not isinstance(kept, dict) or (is_secret(annotation) and not _same_place(merged, here, saying.origin)):
            _forget(merged, here)
            kept = {}
        node[key] = kept = dict(kept)
        merged.origins.setdefault(here, saying.origin)
        node = kept
    node[path[-1]] = value
    _forget(merged, path)
    merged.origins[path] = saying.origin
    for inner, line in saying.lines.items():
        merged.origins[(*path, *inner)] = replace(saying.origin, line=line)


def _same_place(merged: Merged, path: KeyPath, origin: Origin) -> bool:
    """Whether the table there was given by the same layer: then {env, file} are two words of one."""
    known = merged.origins.get(path)
    return known is not None and known.layer is origin.layer and known.file is None


def _forget(merged: Merged, path: KeyPath) -> None:
    for known in [known for known in merged.origins if known[: len(path)] == path]:
        del merged.origins[known]


def _known(kind: type[Table], path: KeyPath) -> Collection[str]:
    annotation: Any = kind
    for key in path:
        annotation = below(annotation, key)
    table = table_of(annotation)
    return table.model_fields if table is not None else kind.model_fields
