"""What a name means: the part of a model's table that decides which model answers, and how its queue works. No I/O.

Deployments that share a name on one Redis agree on its spec, key by key. It is written to Redis, so it holds no
secret, nor where one stands, and nothing that is a host's own: a path stands for what is in it, by a digest. A key that
may hold a secret reference is left out whole, for a plain value may stand there too, such as that of a header. Keys
that have their default are left out, so that a release with more keys means the same by the tables of an older one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel

from headpond.errors import MalformedDocument
from headpond.errors.documents import decoding_reason
from headpond.tables import ModelTable, SecretRef

DigestOf = Callable[[Path], str]
"""A digest of what a file or a folder holds."""

_ABSENT = object()
_ALWAYS = ("engine", "context_tokens")


@dataclass(frozen=True, slots=True)
class Difference:
    """One key in which two specs differ, as shown to people. A key that has its default is shown so."""

    key: str
    here: str
    there: str

    def __str__(self) -> str:
        return f"{self.key}: {self.here} here, {self.there} there"


def spec_of(table: ModelTable, *, storage: bool, digest_of: DigestOf) -> str:
    """The spec of a model, as JSON with sorted keys: two are the same if their texts are.

    storage: whether its queue is journaled. digest_of: called for each path in the table that is no host's own; what
    it raises passes.
    """
    host_keys = table.all_host_keys()
    spec: dict[str, Any] = {"storage": storage}
    for key, field in type(table).model_fields.items():
        value = getattr(table, key)
        if key in host_keys or _may_be_secret(field.annotation) or (key not in _ALWAYS and value == _default(field)):
            continue
        spec[key] = _plain(value, digest_of)
    return json.dumps(spec, sort_keys=True, separators=(",", ":"))


def differences(here: str, there: str) -> tuple[Difference, ...]:
    """What two specs differ in, by key; keys of inner tables are joined by dots.

    Raises MalformedDocument if one is no spec.
    """
    mine, other = _flat(_parsed(here)), _flat(_parsed(there))
    return tuple(
        Difference(key, mine.get(key, "(default)"), other.get(key, "(default)"))
        for key in sorted(mine.keys() | other.keys(), key=lambda key: (key != "engine", key))
        if mine.get(key) != other.get(key)
    )


def summary(spec: str) -> str:
    """The spec in a few words, for a table: engine, then what it loads. Raises MalformedDocument."""
    fields = _parsed(spec)
    words = [str(fields.get("engine", "?"))]
    for key in ("source", "model", "upstream_model", "path", "base_url"):
        if isinstance(value := fields.get(key), str):
            words.append(value[:19] if value.startswith("sha256:") else value)
    if isinstance(context := fields.get("context_tokens"), int):
        words.append(f"{context} tokens")
    return " ".join(words)


def _default(field: Any) -> object:
    return _ABSENT if field.is_required() else field.get_default(call_default_factory=True, validated_data={})


def _may_be_secret(annotation: Any) -> bool:
    """Whether a value of this type may be, or have among its items, a secret reference. Inner tables say it of their
    own keys."""
    return annotation is SecretRef or any(_may_be_secret(part) for part in get_args(annotation))


def _plain(value: Any, digest_of: DigestOf) -> Any:
    """value without secrets, paths and passwords, as JSON has it."""
    match value:
        case BaseModel():
            fields = type(value).model_fields
            kept = {key: inner for key, inner in dict(value).items() if not _may_be_secret(fields[key].annotation)}
            return _plain(kept, digest_of)
        case Mapping():
            found = {str(key): _plain(inner, digest_of) for key, inner in value.items()}
            return {key: inner for key, inner in found.items() if inner is not None}
        case list() | tuple() | set() | frozenset():
            shown = [_plain(item, digest_of) for item in value]
            return sorted(shown, key=repr) if isinstance(value, set | frozenset) else shown
        case Path():
            return digest_of(value)
        case str():
            return without_credentials(str(value))
        case None | bool() | int() | float():
            return value
        case _:
            return without_credentials(str(value))


def without_credentials(text: str) -> str:
    """A URL without its user and password; any other text as it is."""
    if "://" not in text or "@" not in text:
        return text
    parts = urlsplit(text)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _parsed(spec: str) -> dict[str, Any]:
    try:
        found = json.loads(spec)
    except (ValueError, RecursionError) as error:
        raise MalformedDocument("spec", decoding_reason(error)[:200]) from error
    if not isinstance(found, dict):
        raise MalformedDocument("spec", f"it is a {type(found).__name__}")
    return found


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in fields.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = json.dumps(value, ensure_ascii=False)
    return found
