"""headpond.toml: found, read, checked. Secrets stay references until the process that needs them asks.

[redis]
url = "redis://..."                      # without it, `headpond up` embeds a server
[storage]
endpoint_url = "http://..."              # without it, `headpond up` embeds a server
bucket = "headpond"
access_key = {env = "S3_KEY"}            # or {file = "..."}; never the value itself
secret_key = {file = "/run/secrets/s3"}
[defaults]
slots = 4                                # any key of a model's table
[models.chat]
engine = "llamacpp"
source = "smollm2-135m:Q8_0"             # or path = "..."
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator

from headpond.engine_kinds import known_engines, settings_of_engine
from headpond.errors import ConfigError, InvalidRequest
from headpond.jobs import check_model_name
from headpond.tables import ENGINES, ModelTable, SecretRef, Table

CONFIG_NAME = "headpond.toml"
STATE_FOLDER = ".headpond"
RUN_FILE = "run.json"
EMBEDDED_VALKEY_FOLDER = "valkey"


_T = TypeVar("_T", bound=Table)


class RedisSettings(Table):
    url: str | None = None
    password: SecretRef | None = None

    @field_validator("url")
    @classmethod
    def _no_secret(cls, url: str | None) -> str | None:
        if url is not None and urlsplit(url).password:
            raise ValueError('holds a password; take it out and write password = {env = "NAME"} or {file = "PATH"}')
        return url


class StorageSettings(Table):
    endpoint_url: str | None = None
    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")] = "headpond"
    region: str = "us-east-1"
    access_key: SecretRef | None = None
    secret_key: SecretRef | None = None


class Settings(Table):
    """One headpond.toml. `file` is None for the settings of no file at all."""

    file: Path | None = None
    redis: RedisSettings = RedisSettings()
    storage: StorageSettings = StorageSettings()
    models: dict[str, ModelTable] = Field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """What relative paths are relative to, and where `.headpond/` stands."""
        return self.file.parent if self.file else Path.cwd()

    @property
    def state_folder(self) -> Path:
        return self.folder / STATE_FOLDER

    def model(self, name: str) -> ModelTable:
        """Raises ConfigError naming the nearest model of the file."""
        try:
            return self.models[name]
        except KeyError:
            raise ConfigError(
                f"no table [models.{name}]{_nearest(name, self.models)}", where=str(self.file or CONFIG_NAME)
            ) from None


def find_config(start: Path | None = None) -> Path | None:
    """The nearest headpond.toml, in `start` (default: the working folder) or above it."""
    folder = (start or Path.cwd()).resolve()
    for candidate in (folder, *folder.parents):
        if (candidate / CONFIG_NAME).is_file():
            return candidate / CONFIG_NAME
    return None


def load_settings(file: Path) -> Settings:
    """Read and check one file. Raises ConfigError with the file and the line or key."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError("no such file; copy the repository's headpond.toml to begin", where=str(file)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(file)) from None
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not valid TOML: {error}", where=str(file)) from None
    return check_settings(tables, file=file.resolve())


def check_settings(tables: dict[str, Any], *, file: Path) -> Settings:
    """Check parsed tables. Raises ConfigError naming the key, and the nearest one that exists."""
    where = str(file)
    known = ("redis", "storage", "defaults", "models")
    for key in tables:
        if key not in known:
            raise ConfigError(f"unknown table [{key}]{_nearest(key, known)}", where=where)
    defaults = _table(tables.get("defaults", {}), "defaults", where)
    models: dict[str, ModelTable] = {}
    for name, raw in _table(tables.get("models", {}), "models", where).items():
        section = f"models.{name}"
        table = _table(raw, section, where)
        try:
            check_model_name(name)
        except InvalidRequest as error:
            raise ConfigError(f"[{section}]: {error}", where=where) from None
        models[name] = _check_model(table, defaults, section=section, where=where, folder=file.parent)
    keys = _keys_of_models(models.values())
    for key in defaults:
        if key not in keys:
            raise ConfigError(f"unknown key '{key}' in [defaults]{_nearest(key, keys)}", where=where)
    redis = _table(tables.get("redis", {}), "redis", where)
    storage = _table(tables.get("storage", {}), "storage", where)
    return Settings(
        file=file,
        redis=_check_anchored(RedisSettings, redis, "redis", where, folder=file.parent),
        storage=_check_anchored(StorageSettings, storage, "storage", where, folder=file.parent),
        models=models,
    )


def _check_model(
    table: dict[str, Any], defaults: dict[str, Any], *, section: str, where: str, folder: Path
) -> ModelTable:
    engine = table.get("engine", defaults.get("engine"))
    if engine is None:
        raise ConfigError(f"[{section}] names no engine; known: {', '.join(known_engines())}", where=where)
    kind = settings_of_engine(engine, where=f"{where}: [{section}]") if isinstance(engine, str) else None
    if kind is None:
        known = known_engines()
        raise ConfigError(
            f"[{section}] engine = {engine!r}: no such engine{_nearest(str(engine), known)}; known: {', '.join(known)}",
            where=where,
        )
    # A default that this engine has no use for is not an error: defaults speak to all models.
    merged = {k: v for k, v in defaults.items() if k in kind.model_fields} | table
    return _check(kind, merged, section, where).anchored(folder)


def _check_anchored(kind: type[_T], table: dict[str, Any], section: str, where: str, *, folder: Path) -> _T:
    """A checked table whose secret files are relative to the file that names them."""
    checked = _check(kind, table, section, where)
    secrets = {name: getattr(checked, name) for name in kind.model_fields}
    return checked.model_copy(
        update={
            name: ref.model_copy(update={"file": folder / ref.file.expanduser()})
            for name, ref in secrets.items()
            if isinstance(ref, SecretRef) and ref.file is not None
        }
    )


def _check(kind: type[_T], table: dict[str, Any], section: str, where: str) -> _T:
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = [str(part) for part in first["loc"]]
        if first["type"] == "extra_forbidden":
            message = f"unknown key '{path[-1]}' in [{section}]{_nearest(path[-1], kind.model_fields)}"
        else:
            dotted = ".".join(path)
            message = f"[{section}] {dotted + ': ' if dotted else ''}{first['msg'].removeprefix('Value error, ')}"
        raise ConfigError(message, where=where) from None


def _table(value: object, section: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"'{section}' must be a table: [{section}]", where=where)
    return value


def _keys_of_models(models: Iterable[ModelTable]) -> set[str]:
    """What [defaults] may hold: keys of the engines of this package, and of those that this file uses."""
    kinds: set[type[ModelTable]] = {*ENGINES.values(), *(type(model) for model in models)}
    return {key for kind in kinds for key in kind.model_fields}


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
