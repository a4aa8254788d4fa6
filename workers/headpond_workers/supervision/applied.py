"""`.headpond/applied.json`: the configuration that runs, as `headpond up` and its relatives applied it. 0600.

    {"schema": "headpond/applied", "v": 1, "redis": {...}, "storage": {...}, "models": {"chat": {...}}}

Tables have all their keys, defaults included. A secret is its reference, as in headpond.toml; its value is in no file.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headpond.errors import DeploymentError
from headpond.kept_settings import APPLIED_FILE, APPLIED_SCHEMA, VERSION
from headpond.settings import Settings
from headpond.spec import without_credentials
from headpond_workers.supervision.private_files import write_private

FlatTable = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Applied:
    """A configuration as plain JSON values. servers: the tables [redis] and [storage], by name."""

    servers: Mapping[str, FlatTable] = field(default_factory=dict)
    models: Mapping[str, FlatTable] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings) -> Applied:
        servers = {"redis": settings.redis, "storage": settings.storage}
        return cls(
            {name: _plain(table.model_dump(mode="json")) for name, table in servers.items()},
            {name: _plain(table.model_dump(mode="json")) for name, table in settings.models.items()},
        )

    def with_models_of(self, other: Applied, names: Collection[str]) -> Applied:
        """The same, but for some models, which are as in `other`."""
        return replace(self, models={**self.models, **{name: other.models[name] for name in names}})


def read_applied(state_folder: Path) -> Applied:
    """What runs; nothing if no command has applied anything yet. Raises DeploymentError if the file is damaged."""
    path = state_folder / APPLIED_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] != APPLIED_SCHEMA or found["v"] != VERSION:
            raise ValueError(f"it is a {found['schema']} of version {found['v']}")
        tables = (*found["models"].values(), found["redis"], found["storage"])
        if not all(isinstance(table, dict) for table in tables):
            raise TypeError("a table is none")
        return Applied({"redis": found["redis"], "storage": found["storage"]}, found["models"])
    except FileNotFoundError:
        return Applied()
    except OSError as error:
        raise DeploymentError(f"Cannot read {path}: {error.strerror}. Check who owns it.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeploymentError(
            f"{path} cannot be used ({error}). Remove it; the next headpond reload then shows every model as new, and "
            "restarts those alone whose settings changed."
        ) from error


def write_applied(state_folder: Path, applied: Applied) -> None:
    """Replace the file in one step. Raises DeploymentError if the disk refuses."""
    document = {"schema": APPLIED_SCHEMA, "v": VERSION, **applied.servers, "models": applied.models}
    write_private(state_folder / APPLIED_FILE, json.dumps(document, indent=1, sort_keys=True) + "\n")


def _plain(value: Any) -> Any:
    """Without user and password of a URL: tables refuse them, and this file is not to depend on it."""
    match value:
        case dict():
            return {key: _plain(inner) for key, inner in value.items()}
        case list():
            return [_plain(inner) for inner in value]
        case str():
            return without_credentials(value)
        case _:
            return value
