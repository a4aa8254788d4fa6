"""The configuration: headpond.toml, conf.d/*.toml, the environment and the command line, found, read, checked.

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
source = "smollm2-135m:Q8_0"             # or path = "...", or source = "s3:chat@prod"

Layers, weakest first: built-in defaults, HEADPOND_DEFAULTS__*, [defaults], `--set defaults.*`, the model's table, its
own HEADPOND_MODELS__<NAME>__*, `--set <name>.*`. Secrets stay references until the process that needs them asks.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, SkipValidation, field_validator, model_validator

from headpond.config_files import ConfigFiles, Given, add_tables, read_files
from headpond.counts import counted
from headpond.engine_kinds import known_engines, settings_of_engine
from headpond.errors import ConfigError, InvalidRequest
from headpond.jobs import check_model_name
from headpond.layers import KeyPath, Merged, Saying, Text, check, flattened, merge
from headpond.nearby import nearest
from headpond.origins import BUILT_IN, Layer, Origin, Problem
from headpond.overrides import Overrides, from_command_line, from_environment, of_present, settings_variables
from headpond.shapes import parse_text
from headpond.tables import ENGINES, ModelTable, SecretRef, Table
from headpond.tables.retention import MAX_RETENTION_S
from headpond.toml_places import dotted
from headpond.up_file import Told, read_told

CONFIG_NAME = "headpond.toml"
STATE_FOLDER = ".headpond"
RUN_FILE = "run.json"
SPOOL_FOLDER = "spool"
FEW_MODELS = 10
"""So many are listed where one is asked for that is not there."""
EMBEDDED_VALKEY_FOLDER = "valkey"
EMBEDDED_SEAWEED_FOLDER = "seaweedfs"
EMBEDDED_SEAWEED_DATA = "data"
"""Its objects, below EMBEDDED_SEAWEED_FOLDER."""


_T = TypeVar("_T", bound=Table)
Addressing = Literal["auto", "path", "virtual"]
Encryption = Literal["none", "sse-s3", "sse-kms"]
MbPerSecond = Annotated[float, Field(ge=0.1, le=1e6, allow_inf_nan=False)]
_NO_VARIABLES: Mapping[str, str] = MappingProxyType({})
_IN_URL = 'holds a password; take it out and write {} = {{env = "NAME"}} or {{file = "PATH"}}'


class RedisSettings(Table):
    url: str | None = None
    """`redis://`, `rediss://` or `unix://`. None: `headpond up` embeds Valkey."""
    password: SecretRef | None = None
    """Put into `url`."""

    @field_validator("url")
    @classmethod
    def _no_secret(cls, url: str | None) -> str | None:
        if url is not None and _has_password(url):
            raise ValueError(_IN_URL.format("password"))
        return url


class StorageSettings(Table):
    endpoint_url: str | None = None
    """`http://HOST:PORT` or `https://HOST`, without the bucket. None: `headpond up` embeds SeaweedFS."""
    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")] = "headpond"
    """Made if it is not there."""
    region: str = "us-east-1"
    """Of the bucket."""
    access_key: SecretRef | None = None
    """With `secret_key`, or neither."""
    secret_key: SecretRef | None = None
    """With `access_key`, or neither."""
    addressing: Addressing = "auto"
    """How a request names the bucket: `"path"` in the path of its URL, `"virtual"` in the host name. `"auto"`: in the
    host name for Amazon, else in the path."""
    encryption: Encryption = "none"
    """What storage is asked to do with each new object: `"sse-s3"` encrypts with a key of its own, `"sse-kms"` with one
    of its key service. `"none"`: it is asked nothing, and does what the bucket is set to."""
    kms_key_id: str | None = None
    """Which key, with `"sse-kms"`. None: the one of the bucket or account."""
    upload_mb_per_s: MbPerSecond | None = None
    """Megabytes a second that one process sends to storage at most, in all its threads together. None: no limit."""
    download_mb_per_s: MbPerSecond | None = None
    """The same for what it reads."""
    history_s: Annotated[float, Field(ge=0, le=MAX_RETENTION_S)] = 86400.0
    """How far back `headpond restore --at` can go; what is older is folded into one snapshot."""
    spool_after_entries: Annotated[int, Field(ge=1, le=100_000_000)] = 10_000
    """While storage is away: entries of a model's journal that stay in Redis; more go to a spool on the persister's
    disk."""
    spool_max_gb: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 1.0
    """Gigabytes (10^9 bytes) of that spool, of all models of a machine; once it is full, entries stay in Redis. 0: no
    spool."""
    cache_gb: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = None
    """Gigabytes (10^9 bytes) of versions that this machine keeps in its cache; None: no bound."""

    @field_validator("endpoint_url")
    @classmethod
    def _no_secret(cls, url: str | None) -> str | None:
        if url is not None and _has_password(url):
            raise ValueError(_IN_URL.format("secret_key"))
        return url

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.kms_key_id is not None and self.encryption != "sse-kms":
            raise ValueError('kms_key_id names a key for encryption = "sse-kms"; set that too, or leave the key out')
        if self.endpoint_url is None:
            for key, value, lacking in (
                ("addressing", "virtual", "host name for a bucket"),
                ("encryption", "sse-kms", "key service"),
            ):
                if getattr(self, key) == value:
                    raise ValueError(
                        f'{key} = "{value}" needs an endpoint_url: the embedded SeaweedFS has no {lacking}'
                    )
        return self


class Settings(Table):
    """One configuration. `file` is None for the settings of no file at all.

    origins: of every value, by its dotted key, such as `models.chat.slots` or `models."a.b".slots`. told: what the
    environment and the command line said. Neither is part of a dump: the tables alone tell two configurations apart.
    """

    file: Path | None = None
    redis: RedisSettings = RedisSettings()
    storage: StorageSettings = StorageSettings()
    models: dict[str, ModelTable] = Field(default_factory=dict)
    origins: SkipValidation[Mapping[str, Origin]] = Field(default_factory=dict, exclude=True, repr=False)
    told: SkipValidation[Told] = Field(default_factory=Told, exclude=True, repr=False)

    @property
    def folder(self) -> Path:
        """What relative paths of headpond.toml are relative to, and where `.headpond/` stands."""
        return self.file.parent if self.file else Path.cwd()

    @property
    def state_folder(self) -> Path:
        return self.folder / STATE_FOLDER

    def model(self, name: str) -> ModelTable:
        """Raises ConfigError naming the nearest model of the file."""
        try:
            return self.models[name]
        except KeyError:
            known = sorted(self.models)
            there = f"; there are: {', '.join(known)}" if 0 < len(known) <= FEW_MODELS else ""
            raise ConfigError(
                f"no table [models.{name}]{nearest(name, known)}{there}", where=str(self.file or CONFIG_NAME)
            ) from None


@dataclass(frozen=True, slots=True)
class Examined:
    """A configuration as far as it can be used, and all that is wrong with it. names: of all models that it gives, also
    of those that cannot be used."""

    settings: Settings
    problems: tuple[Problem, ...]
    names: tuple[str, ...] = ()

    def usable(self, needed: Collection[str] | None = None) -> Settings:
        """The settings. needed: see `load_settings`. Raises ConfigError for the first problem, counting the others."""
        hindering = [each for each in self.problems if not each.model or needed is None or each.model in needed]
        if not hindering:
            return self.settings
        raise first_of(hindering)


def first_of(problems: Sequence[Problem]) -> ConfigError:
    """The first one as an error, which counts the others."""
    first, more = problems[0], len(problems) - 1
    rest = f" ({counted(more, 'more problem')}: headpond config check)" if more else ""
    return ConfigError(f"{first.message}{rest}", where=first.where)


def find_config(start: Path | None = None) -> Path | None:
    """The nearest headpond.toml, in `start` (default: the working folder) or above it."""
    folder = (start or Path.cwd()).resolve()
    for candidate in (folder, *folder.parents):
        # Whatever it is: one that cannot be read is told, not passed over for another one above.
        if os.path.lexists(candidate / CONFIG_NAME):
            return candidate / CONFIG_NAME
    return None


def load_settings(
    file: Path,
    *,
    environment: Mapping[str, str] = _NO_VARIABLES,
    command_line: Sequence[str] | None = None,
    needed: Collection[str] | None = None,
) -> Settings:
    """Read and check a configuration: `file`, the conf.d beside it, and the weaker and stronger layers.

    environment: variables; those named HEADPOND_<TABLE>__* count. command_line: what followed each `--set`. None: as
    the `headpond up` of the running deployment was told, variables included; where nothing runs there is none.
    needed: the models that the caller has to do with; a table of another one may be wrong, and is left out then, since
    its variables may be hidden from this process. None: all.
    Raises ConfigError naming the file and line, variable or option.
    """
    return examine(file, environment=environment, command_line=command_line).usable(needed)


def examine(
    file: Path, *, environment: Mapping[str, str] = _NO_VARIABLES, command_line: Sequence[str] | None = None
) -> Examined:
    """`load_settings` for those who want to hear of every problem. Raises ConfigError for a damaged up.json alone."""
    file = file.resolve()
    files = read_files(file)
    told = read_told(file.parent / STATE_FOLDER) if command_line is None else None
    if told is None:
        told = Told(settings_variables(environment), tuple(command_line or ()))
    else:
        # A model that was taken out of the files since must not keep the others from being started again.
        told = Told(*of_present(told.environment, told.command_line, files.models))
    return assemble(files, file, told)


def check_settings(tables: dict[str, Any], *, file: Path) -> Settings:
    """Check parsed tables. Raises ConfigError naming the key, and the nearest one that exists."""
    files = ConfigFiles()
    add_tables(files, tables, file, {})
    return assemble(files, file, Told()).usable()


def assemble(files: ConfigFiles, file: Path, told: Told) -> Examined:
    """Merge what files and `told` say, and check it. file: headpond.toml."""
    folder = file.parent
    variables = from_environment(told.environment, files.models, folder=folder)
    options = from_command_line(told.command_line, files.models, folder=folder)
    problems = [*files.problems, *variables.problems, *options.problems]
    origins: dict[KeyPath, Origin] = {}
    of_all = _layered(files.sections, "defaults", variables, options)
    models: dict[str, ModelTable] = {}
    for name, given in files.models.items():
        sayings = [*of_all, *given.sayings, *variables.models.get(name, ()), *options.models.get(name, ())]
        table, merged = _check_model(name, sayings, given.at)
        problems += merged.problems
        if table is not None:
            models[name] = table.anchored(folder)
            origins |= _origins(table, merged, ("models", name))
    kinds: set[type[ModelTable]] = {*ENGINES.values(), *(type(table) for table in models.values())}
    keys = {key for kind in kinds for key in kind.model_fields}
    for saying in of_all:
        key = saying.path[0].lower() if saying.origin.layer.is_environment else saying.path[0]
        if key not in keys:
            problems.append(Problem(saying.origin.place, f"unknown key '{key}' in [defaults]{nearest(key, keys)}"))
    sections: dict[str, Any] = {}
    for section, kind in (("redis", RedisSettings), ("storage", StorageSettings)):
        merged = merge(kind, _layered(files.sections, section, variables, options), section=section)
        at = files.sections[section].at if section in files.sections else Origin(Layer.TABLE, file=file)
        sections[section] = check(kind, merged, section=section, at=at) or kind()
        problems += merged.problems
        origins |= _origins(sections[section], merged, (section,))
    settings = Settings(
        file=file,
        models=models,
        origins={dotted(path): origin for path, origin in origins.items()},
        told=told,
        **sections,
    )
    return Examined(settings, tuple(dict.fromkeys(problems)), tuple(sorted(files.models)))


def _layered(given: Mapping[str, Given], section: str, variables: Overrides, options: Overrides) -> list[Saying]:
    """What is said of one section, weakest first. Variables for all models are weaker than files."""
    files = [*given[section].sayings] if section in given else []
    said = variables.sections[section]
    return [*((said + files) if section == "defaults" else (files + said)), *options.sections[section]]


def _check_model(name: str, sayings: Sequence[Saying], at: Origin) -> tuple[ModelTable | None, Merged]:
    section = f"models.{name}"
    refused = Merged()
    try:
        check_model_name(name)
        kind = _engine(section, sayings, at)
    except InvalidRequest as error:
        refused.problems.append(Problem(at.place, f"[{section}]: {error}", name))
        return None, refused
    if isinstance(kind, Problem):
        refused.problems.append(Problem(kind.where, kind.message, name))
        return None, refused
    merged = merge(kind, sayings, section=section, model=name)
    return check(kind, merged, section=section, at=at, model=name), merged


def _engine(section: str, sayings: Sequence[Saying], at: Origin) -> type[ModelTable] | Problem:
    """The class of the model's table, by the strongest word on its engine."""
    said = [each for each in sayings if each.path in (("engine",), ("ENGINE",))]
    if not said:
        return Problem(at.place, f"[{section}] names no engine; known: {', '.join(known_engines())}")
    engine, where = said[-1].value, said[-1].origin.place
    if isinstance(engine, Text):
        engine = parse_text(engine.text, str)
    try:
        kind = settings_of_engine(engine, where=f"{where}: [{section}]") if isinstance(engine, str) else None
    except ConfigError as error:
        return Problem(error.where, str(error).removeprefix(f"{error.where}: "))
    if kind is None:
        known = known_engines()
        near = nearest(str(engine), known)
        return Problem(
            where, f"[{section}] engine = {repr(engine)[:100]}: no such engine{near}; known: {', '.join(known)}"
        )
    return kind


def _origins(table: Table, merged: Merged, section: KeyPath) -> dict[KeyPath, Origin]:
    return {(*section, *path): merged.origin(path, otherwise=BUILT_IN) for path in flattened(table)}


def _has_password(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False  # It is no url: whoever connects says so.
    return bool(parts.password) or "password" in parse_qs(parts.query)
