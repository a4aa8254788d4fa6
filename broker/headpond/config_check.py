"""What can be checked of a configuration without starting anything."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from headpond.connections import checked_url
from headpond.errors import ConfigError
from headpond.layers import KeyPath, flattened
from headpond.origins import BUILT_IN, Problem
from headpond.settings import Examined, Settings
from headpond.tables import SecretRef, Table
from headpond.toml_places import dotted


def all_problems(examined: Examined) -> list[Problem]:
    """What is wrong with the tables, then with what they refer to: secrets that cannot be read, paths that are not
    there, addresses that are none. In this process's environment."""
    return [*examined.problems, *_references(examined.settings)]


def tables_of(settings: Settings) -> list[tuple[KeyPath, Table]]:
    """Every table of a configuration, with its path."""
    models = [(("models", name), table) for name, table in settings.models.items()]
    return [(("redis",), settings.redis), (("storage",), settings.storage), *models]


def _references(settings: Settings) -> Iterator[Problem]:
    for section, table in tables_of(settings):
        model = section[1] if len(section) > 1 else ""
        for path, value in flattened(table).items():
            where = settings.origins.get(dotted((*section, *path)), BUILT_IN).place
            try:
                _check(section, path, value)
            except ConfigError as error:
                message = str(error).removeprefix(f"{error.where}: ")
                yield Problem(where, f"[{dotted(section)}] {dotted(path)}: {message}", model)
    storage = settings.storage
    if (storage.access_key is None) != (storage.secret_key is None):
        given = "secret_key" if storage.access_key is None else "access_key"
        where = settings.origins.get(f"storage.{given}", BUILT_IN).place
        yield Problem(where, "[storage] needs access_key and secret_key, or neither of them")


def _check(section: KeyPath, path: KeyPath, value: object) -> None:
    """Raises ConfigError for a value that refers to nothing usable."""
    if isinstance(value, SecretRef):
        value.resolve(where="")
    elif isinstance(value, Path):
        if not value.exists():
            raise ConfigError(f"there is no {value}", where="")
        if not os.access(value, os.R_OK):
            raise ConfigError(f"{value} may not be read by this user", where="")
    elif section == ("redis",) and path == ("url",) and value is not None:
        checked_url(value, "")
