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
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from headpond.errors import ConfigError, InvalidRequest
from headpond.jobs import check_model_name

CONFIG_NAME = "headpond.toml"
STATE_FOLDER = ".headpond"
RUN_FILE = "run.json"


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


_T = TypeVar("_T", bound=_Table)
_REFERENCE = 'a secret is a reference: {env = "NAME"} or {file = "PATH"}'


class SecretRef(_Table):
    """Where a secret stands: an environment variable or a file. Never the secret."""

    env: str | None = None
    file: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _not_the_secret(cls, value: object) -> object:
        if isinstance(value, SecretRef) or (isinstance(value, dict) and value.keys() <= {"env", "file"}):
            return value
        raise ValueError(_REFERENCE)

    @model_validator(mode="after")
    def _one_place(self) -> SecretRef:
        if (self.env is None) == (self.file is None):
            raise ValueError(_REFERENCE)
        return self

    def resolve(self, *, where: str) -> str:
        """Read the secret. Raises ConfigError, naming the reference and never the value."""
        if self.env is not None:
            value = os.environ.get(self.env)
            if not value:
                raise ConfigError(f"the environment variable {self.env} is not set", where=where)
            return value
        try:
            value = (self.file or Path()).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(f"cannot read the secret file {self.file}: {error.strerror}", where=where) from None
        except UnicodeDecodeError:
            raise ConfigError(f"the secret file {self.file} is not text", where=where) from None
        if not value:
            raise ConfigError(f"the secret file {self.file} is empty", where=where)
        return value


class RedisSettings(_Table):
    url: str | None = None
    password: SecretRef | None = None

    @field_validator("url")
    @classmethod
    def _no_secret(cls, url: str | None) -> str | None:
        if url is not None and urlsplit(url).password:
            raise ValueError('holds a password; take it out and write password = {env = "NAME"} or {file = "PATH"}')
        return url


class StorageSettings(_Table):
    endpoint_url: str | None = None
    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")] = "headpond"
    region: str = "us-east-1"
    access_key: SecretRef | None = None
    secret_key: SecretRef | None = None


class _Model(_Table):
    """What every model has, whatever its engine."""

    workers: Annotated[int, Field(ge=0, le=64)] = 1
    """How many worker processes `headpond up` starts."""
    slots: Annotated[int, Field(ge=1, le=1024)] = 4
    """Sequences that one worker runs together."""
    lease_s: Annotated[float, Field(ge=0.2, le=3600)] = 10.0
    """How long a silent worker keeps its jobs."""
    drain_timeout_s: Annotated[float, Field(ge=0, le=86400)] = 30.0
    """How long a stopping worker lets its jobs run before it parks them."""
    stall_timeout_s: Annotated[float, Field(ge=1, le=86400)] = 120.0
    """A sequence that makes no step for so long is no longer renewed."""
    max_queued: Annotated[int, Field(ge=0)] = 0
    """Jobs that may wait; 0 is no bound."""
    retention_s: Annotated[float, Field(ge=1, le=10 * 365 * 86400)] = 86400.0
    """How long Redis keeps an ended job."""


class ScriptedModel(_Model):
    """The reference engine: deterministic tokens at a set speed, for tests and overhead figures."""

    engine: Literal["scripted"]
    tokens_per_s: Annotated[float, Field(gt=0, le=1e6)] = 80.0
    """Of each sequence."""
    prefill_tokens_per_s: Annotated[float, Field(gt=0, le=1e9)] | None = None
    context_tokens: Annotated[int, Field(ge=16)] = 8192
    answer_tokens: Annotated[int, Field(ge=1)] | None = None
    """Where the model ends its answer by itself; None: between 40 and 400, by the prompt and seed."""
    crash_at: Literal["load", "prefill", "token", "end"] | None = None
    """Kill the own process (SIGKILL) there, for tests."""
    crash_token: Annotated[int, Field(ge=0)] = 0
    """With crash_at = "token": after how many tokens of the attempt."""
    crash_prompt: str = ""
    """Only for prompts that hold this text."""


class LlamaCppModel(_Model):
    """A GGUF model on the CPU, through xllamacpp."""

    engine: Literal["llamacpp"]
    path: Path | None = None
    source: str | None = None
    """A model of the catalogue, `smollm2-135m:Q8_0`; see `headpond models prepare`."""
    context_tokens: Annotated[int, Field(ge=64, le=1 << 20)] = 2048
    """Of each slot."""
    threads: Annotated[int, Field(ge=1, le=512)] | None = None
    """None: the cores divided by the workers on the machine, at least 1."""
    exact: bool = False
    """Token-exact resume; prefill becomes as slow as decode."""

    @model_validator(mode="after")
    def _one_source(self) -> LlamaCppModel:
        if (self.path is None) == (self.source is None):
            raise ValueError('give path = "FILE.gguf" or source = "NAME:QUANTISATION", exactly one of them')
        return self


ModelSettings = Annotated[ScriptedModel | LlamaCppModel, Field(discriminator="engine")]
ENGINES: dict[str, type[ScriptedModel] | type[LlamaCppModel]] = {
    "scripted": ScriptedModel,
    "llamacpp": LlamaCppModel,
}


class Settings(_Table):
    """One headpond.toml. `file` is None for the settings of no file at all."""

    file: Path | None = None
    redis: RedisSettings = RedisSettings()
    storage: StorageSettings = StorageSettings()
    models: dict[str, ModelSettings] = {}

    @property
    def folder(self) -> Path:
        """What relative paths are relative to, and where `.headpond/` stands."""
        return self.file.parent if self.file else Path.cwd()

    @property
    def state_folder(self) -> Path:
        return self.folder / STATE_FOLDER

    def model(self, name: str) -> ScriptedModel | LlamaCppModel:
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
    for key in defaults:
        if key not in _model_keys():
            raise ConfigError(f"unknown key '{key}' in [defaults]{_nearest(key, _model_keys())}", where=where)
    models = {}
    for name, raw in _table(tables.get("models", {}), "models", where).items():
        section = f"models.{name}"
        table = _table(raw, section, where)
        try:
            check_model_name(name)
        except InvalidRequest as error:
            raise ConfigError(f"[{section}]: {error}", where=where) from None
        models[name] = _check_model(table, defaults, section=section, where=where, folder=file.parent)
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
) -> ScriptedModel | LlamaCppModel:
    engine = table.get("engine", defaults.get("engine"))
    if engine is None:
        raise ConfigError(f"[{section}] names no engine; known: {', '.join(sorted(ENGINES))}", where=where)
    kind = ENGINES.get(engine) if isinstance(engine, str) else None
    if kind is None:
        raise ConfigError(
            f"[{section}] engine = {engine!r}: no such engine{_nearest(str(engine), ENGINES)}; "
            f"known: {', '.join(sorted(ENGINES))}",
            where=where,
        )
    # A default that this engine has no use for is not an error: defaults speak to all models.
    merged = {k: v for k, v in defaults.items() if k in kind.model_fields} | table
    model = _check(kind, merged, section, where)
    path = getattr(model, "path", None)
    if path is not None:
        model = model.model_copy(update={"path": folder / path.expanduser()})
    return model


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


def _model_keys() -> set[str]:
    return {key for kind in ENGINES.values() for key in kind.model_fields}


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
