"""Settings as a deployment keeps them in `.headpond/`, with defaults and secret references, apart from headpond.toml.

    applied.json             what `headpond up` and its relatives applied last
    running/<digest>.json    what one program is started with: its own model's table, [redis] and [storage]

    {"schema": "headpond/running", "v": 1, "redis": {...}, "storage": {...}, "models": {"chat": {...}}}

A process that comes back after a crash takes its settings from here. So what was edited in headpond.toml, or is wrong
there, does not hold before somebody applies it, and a worker that a reload has not come to keeps what it had.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from headpond.engine_kinds import settings_of_engine
from headpond.errors import ConfigError
from headpond.settings import CONFIG_NAME, STATE_FOLDER, RedisSettings, Settings, StorageSettings
from headpond.tables import ModelTable

APPLIED_FILE = "applied.json"
APPLIED_SCHEMA = "headpond/applied"
RUNNING_FOLDER = "running"
RUNNING_SCHEMA = "headpond/running"
VERSION = 1
MAX_BYTES = 64 << 20
_MEND = "Have it written anew with: headpond up"


def running_document(settings: Settings, models: Collection[str]) -> str:
    """The text of a program's file. models: those that concern it."""
    document = {
        "schema": RUNNING_SCHEMA, "v": VERSION,
        "redis": settings.redis.model_dump(mode="json"),
        "storage": settings.storage.model_dump(mode="json"),
        "models": {name: settings.model(name).model_dump(mode="json") for name in models},
    }  # fmt: skip
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def running_settings(file: Path, digest: str) -> Settings | None:
    """What the program with this digest is started with, by the deployment of this headpond.toml; None if nothing is
    kept of it. Raises ConfigError if the file cannot be used."""
    return _read(file, f"{RUNNING_FOLDER}/{digest}.json", RUNNING_SCHEMA)


def applied_settings(file: Path) -> Settings | None:
    """What the deployment of this headpond.toml applied last; None if it never did. Raises ConfigError if the file of
    that cannot be used."""
    return _read(file, APPLIED_FILE, APPLIED_SCHEMA)


def find_applied(start: Path | None = None) -> Path | None:
    """Where the headpond.toml of the nearest deployment stands or stood, in `start` (default: the working folder) or
    above it."""
    folder = (start or Path.cwd()).resolve()
    for candidate in (folder, *folder.parents):
        if (candidate / STATE_FOLDER / APPLIED_FILE).is_file():
            return candidate / CONFIG_NAME
    return None


def _read(config: Path, name: str, schema: str) -> Settings | None:
    config = config.resolve()
    path = config.parent / STATE_FOLDER / name
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        found = json.loads(raw.decode("utf-8"))
        if found["schema"] != schema or found["v"] != VERSION:
            raise ValueError("it is of another version")
        return Settings(
            file=config,
            redis=RedisSettings.model_validate(found["redis"]),
            storage=StorageSettings.model_validate(found["storage"]),
            models={name: _table(table, where=f"{path}: models.{name}") for name, table in found["models"].items()},
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}. Check who owns it", where=str(path)) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"cannot be used ({place}: {first['msg']}). {_MEND}", where=str(path)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"cannot be used ({error}). {_MEND}", where=str(path)) from error


def _table(table: Mapping[str, Any], *, where: str) -> ModelTable:
    kind = settings_of_engine(table["engine"], where=where)
    if kind is None:
        raise ConfigError(f"no engine {table['engine']!r} is installed. {_MEND}", where=where)
    return kind.model_validate(table)
