"""What the classes of tables say of a value's shape: what stands below a key, what is a path, what a plain string may
be. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from headpond.tables import SecretRef, Table
from headpond.toml_text import BeyondBounds, NotToml, parse_toml

_NAMES = {bool: "true or false", int: "an integer", float: "a number"}


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """What a value may be: the members of a union, without constraints and None."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return alternatives(get_args(annotation)[0])
    if origin is Union or origin is UnionType:
        return tuple(found for member in get_args(annotation) for found in alternatives(member))
    return () if annotation is type(None) else (annotation,)


def table_of(annotation: Any) -> type[Table] | None:
    """The class of the table that a value may be, secret references included."""
    for choice in alternatives(annotation):
        if isinstance(choice, type) and issubclass(choice, Table):
            return choice
    return None


def values_of(annotation: Any) -> Any | None:
    """What each value of a free table, such as tenant_weights, is; None for anything else."""
    for choice in alternatives(annotation):
        if get_origin(choice) in (dict, Mapping):
            return get_args(choice)[1]
    return None


def below(annotation: Any, key: str) -> Any | None:
    """What stands below one key of a table; None if nothing can."""
    table = table_of(annotation)
    if table is not None and key in table.model_fields:
        return table.model_fields[key].annotation
    return values_of(annotation)


def is_secret(annotation: Any) -> bool:
    """Whether a table there is a reference to a secret."""
    return table_of(annotation) is SecretRef


def takes_text(annotation: Any) -> bool:
    """Whether a value may be a plain string."""
    return any(map(_is_textual, alternatives(annotation)))


def parse_text(text: str, annotation: Any) -> Any:
    """A value of the environment or the command line: as TOML, else as a plain string where that is allowed.

    Raises ValueError, without the text: it may be a secret that somebody has put into the wrong place.
    """
    kinds = alternatives(annotation)
    textual = takes_text(annotation)
    try:
        # TOML ends a value at a line end: what follows would be a key of its own.
        parsed = parse_toml(f"value = {text}")
    except BeyondBounds:
        if textual:
            return text
        raise
    except NotToml:
        parsed = {}
    if parsed.keys() != {"value"}:
        if textual:
            return text
        raise ValueError(f"is no TOML value; {_wanted(kinds)}")
    value = parsed["value"]
    if not textual or isinstance(value, str):
        return value
    other = [kind for kind in kinds if not _is_textual(kind)]
    meant = bool(other) if isinstance(value, (dict, list)) else any(kind in _NAMES for kind in other)
    return value if meant else text


def wrong_types(value: object, annotation: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Scalars of a wrong type that pydantic would read as another: `slots = "4"`, `slots = true`. Each by its path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from wrong_types(inner, below(annotation, key), (*path, key))
        return
    kinds = alternatives(annotation)
    if not kinds or not all(kind in _NAMES for kind in kinds):
        return
    if isinstance(value, str) or (isinstance(value, bool) and bool not in kinds):
        yield path, f"{_wanted(kinds)}, not {'a string' if isinstance(value, str) else 'true or false'}"


def anchored(value: object, annotation: Any, folder: Path) -> object:
    """value with each path made absolute that is relative to `folder` or begins with ~."""
    if isinstance(value, str):
        kinds = alternatives(annotation)
        return str(folder / Path(value).expanduser()) if Path in kinds and str not in kinds and value else value
    if isinstance(value, dict):
        return {key: anchored(inner, below(annotation, key), folder) for key, inner in value.items()}
    if isinstance(value, list):
        lists = [kind for kind in alternatives(annotation) if get_origin(kind) in (list, tuple)]
        if lists and get_args(lists[0]):
            return [anchored(inner, get_args(lists[0])[0], folder) for inner in value]
    return value


def _is_textual(kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return all(isinstance(choice, str) for choice in get_args(kind))
    return kind in (str, Path, Any) or (isinstance(kind, type) and issubclass(kind, Enum))


def _wanted(kinds: tuple[Any, ...]) -> str:
    if any(kind is SecretRef for kind in kinds):
        return 'a secret is a reference: {env = "NAME"} or {file = "PATH"}'
    names = [_NAMES[kind] for kind in kinds if kind in _NAMES]
    if names:
        return f"it must be {' or '.join(names)}"
    return "it must be a table, such as {name = 1}, or a list, such as [1, 2]"
