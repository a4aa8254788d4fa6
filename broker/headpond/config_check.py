"""What can be checked of a configuration without starting anything."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from headpond.catalogue import parse_source
from headpond.connections import checked_url
from headpond.errors import ConfigError, ModelFileError
from headpond.layers import KeyPath, flattened
from headpond.origins import BUILT_IN, Origin, Problem
from headpond.settings import Examined, RedisSettings, Settings
from headpond.tables import LlamaCppModel, ModelTable, OpenAIModel, SecretRef, Table, secret_references
from headpond.toml_places import dotted

PACKAGES = {
    "llamacpp": ("xllamacpp", "llama"),
    "exllamav2": ("exllamav2", "exllamav2"),
    "exllamav3": ("exllamav3", "exllamav3"),
    "openai": ("openai", "proxy"),
}
"""Engines that need a package of others: the module, and the extra of headpond that brings it."""


class Variables(Enum):
    """Whose environment variables the secrets of a configuration are read from."""

    OWN = "own"
    """This process's: programs are started with them."""
    OTHERS = "others"
    """Those that a supervisord was started with, which nobody else can look at."""


def all_problems(examined: Examined) -> list[Problem]:
    """What is wrong with the tables, then with what they refer to: secrets that cannot be read, paths that are not
    there, addresses that are none, sources that the catalogue lacks, engines that are not installed. In this process's
    environment, for the models that have workers."""
    settings = examined.settings
    found = [*examined.problems]
    if not examined.names:
        found.append(no_model(settings))
    served = [name for name, table in settings.models.items() if table.workers]
    return [*dict.fromkeys([*found, *reference_problems(settings, served, variables=Variables.OWN)])]


def no_model(settings: Settings) -> Problem:
    """What is wrong with a configuration without a model."""
    return Problem(str(settings.file), "names no model, and headpond up needs one: add a table such as [models.chat]")


def reference_problems(settings: Settings, served: Collection[str], *, variables: Variables) -> list[Problem]:
    """What is wrong with that which [redis], [storage] and the tables of the models in `served` refer to."""
    found: list[Problem] = []
    for section, table in tables_of(settings):
        model = section[1] if len(section) > 1 else ""
        if model and model not in served:
            continue
        for path, value in [*secret_references(table), *_paths(flattened(table)), *_urls(table)]:
            if variables is Variables.OTHERS and isinstance(value, SecretRef) and value.env is not None:
                continue
            try:
                _check(value)
                if isinstance(table, OpenAIModel) and isinstance(value, SecretRef):
                    # As its workers do, which would leave with this.
                    table.check_secret(dotted(path), value.resolve(where=""))
            except ConfigError as error:
                message = str(error).removeprefix(f"{error.where}: ")
                where = _origin(settings, (*section, *path)).place
                found.append(Problem(where, f"[{dotted(section)}] {dotted(path)}: {message}", model))
        if isinstance(table, ModelTable):
            found += _engine_problems(settings, model, table)
    storage = settings.storage
    if (storage.access_key is None) != (storage.secret_key is None):
        given = "secret_key" if storage.access_key is None else "access_key"
        where = _origin(settings, ("storage", given)).place
        found.append(Problem(where, "[storage] needs access_key and secret_key, or neither of them"))
    return found


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


def _engine_problems(settings: Settings, model: str, table: ModelTable) -> Iterator[Problem]:
    if isinstance(table, LlamaCppModel) and table.source is not None and table.version_source is None:
        try:
            parse_source(table.source)
        except ModelFileError as error:
            where = _origin(settings, ("models", model, "source")).place
            yield Problem(where, f"[{dotted(('models', model))}] source: {error}", model)
    module, extra = PACKAGES.get(table.engine, ("", ""))
    if module and module not in sys.modules and find_spec(module) is None:
        where = _origin(settings, ("models", model, "engine")).place
        message = f"needs a package that is not installed: pip install 'headpond[{extra}]'"
        yield Problem(where, f'[{dotted(("models", model))}] engine = "{table.engine}" {message}', model)


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
    else:
        _check_path(value)


def _check_path(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ConfigError(f"there is no {path}", where="") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{str(path)[:300]!r} cannot be looked at: {reason}", where="") from None
    if not (S_ISREG(mode) or S_ISDIR(mode)):
        raise ConfigError(f"{path} is neither a file nor a folder", where="")
    if not os.access(path, os.R_OK):
        raise ConfigError(f"{path} may not be read by this user", where="")


def _origin(settings: Settings, path: KeyPath) -> Origin:
    """Of the value there, or of the list or table that holds it."""
    while path and dotted(path) not in settings.origins:
        path = path[:-1]
    return settings.origins.get(dotted(path), BUILT_IN)
