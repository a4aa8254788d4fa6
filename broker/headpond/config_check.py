"""What can be checked of a configuration without starting anything."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from headpond.connections import checked_url
from headpond.errors import ConfigError
from headpond.layers import KeyPath, flattened
from headpond.origins import BUILT_IN, Origin, Problem
from headpond.settings import Examined, RedisSettings, Settings
from headpond.tables import OpenAIModel, SecretRef, Table, secret_references
from headpond.toml_places import dotted


def all_problems(examined: Examined) -> list[Problem]:
    """What is wrong with the tables, then with what they refer to: secrets that cannot be read, paths that are not
    there, addresses that are none. In this process's environment."""
    return [*examined.problems, *_references(examined.settings)]


def all_warnings(examined: Examined) -> list[Problem]:
    """What works, and is better said otherwise."""
    return [
        Problem(
            _origin(examined.settings, ("models", name, "headers", header)).place,
            f"[{dotted(('models', name))}] headers.{header}: by its name this is a secret, and it stands here for "
            'all to read. Write {env = "NAME"} or {file = "PATH"} in its place',
            name,
        )
        for name, table in examined.settings.models.items()
        if isinstance(table, OpenAIModel)
        for header in table.bare_secrets()
    ]


def tables_of(settings: Settings) -> list[tuple[KeyPath, Table]]:
    """Every table of a configuration, with its path."""
    models = [(("models", name), table) for name, table in settings.models.items()]
    return [(("redis",), settings.redis), (("storage",), settings.storage), *models]


def _references(settings: Settings) -> Iterator[Problem]:
    for section, table in tables_of(settings):
        model = section[1] if len(section) > 1 else ""
        for path, value in [*secret_references(table), *_paths(flattened(table)), *_urls(table)]:
            try:
                _check(value)
                if isinstance(table, OpenAIModel) and isinstance(value, SecretRef):
                    # As its workers do, which would leave with this.
                    table.check_secret(dotted(path), value.resolve(where=""))
            except ConfigError as error:
                message = str(error).removeprefix(f"{error.where}: ")
                where = _origin(settings, (*section, *path)).place
                yield Problem(where, f"[{dotted(section)}] {dotted(path)}: {message}", model)
    storage = settings.storage
    if (storage.access_key is None) != (storage.secret_key is None):
        given = "secret_key" if storage.access_key is None else "access_key"
        where = _origin(settings, ("storage", given)).place
        yield Problem(where, "[storage] needs access_key and secret_key, or neither of them")


def _paths(values: Mapping[KeyPath, object]) -> list[tuple[KeyPath, object]]:
    return [(path, value) for path, value in values.items() if isinstance(value, Path)]


def _urls(table: Table) -> list[tuple[KeyPath, object]]:
    return [(("url",), table.url)] if isinstance(table, RedisSettings) and table.url is not None else []


def _check(value: object) -> None:
    """Raises ConfigError for a value that refers to nothing usable."""
    if isinstance(value, SecretRef):
        value.resolve(where="")
    elif not isinstance(value, Path):
        checked_url(value, "")
    elif not value.exists():
        raise ConfigError(f"there is no {value}", where="")
    elif not os.access(value, os.R_OK):
        raise ConfigError(f"{value} may not be read by this user", where="")


def _origin(settings: Settings, path: KeyPath) -> Origin:
    """Of the value there, or of the list or table that holds it."""
    while path and dotted(path) not in settings.origins:
        path = path[:-1]
    return settings.origins.get(dotted(path), BUILT_IN)
