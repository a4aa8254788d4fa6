"""`.headpond/run.json`: what runs beside a configuration, for its clients, workers and later commands. 0600.

    {"schema": "headpond/run", "v": 1,
     "redis_url": "redis://...",         # with the embedded server's password; the configured url otherwise
     "storage": {...} or null,           # the embedded server's; null where the configuration names storage
     "supervisor_socket": "/run/...", "supervisor_pid": 123, "config": "/.../headpond.toml"}

It is written once the servers answer and removed by `headpond down`. After a crash or a reboot it may speak of
processes that are gone: whoever reads it asks the supervisor's socket before believing in the pid.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from headpond.errors import DeploymentError
from headpond.settings import RUN_FILE
from headpond_workers.supervision.private_files import write_private

SCHEMA = "headpond/run"
VERSION = 1


@dataclass(frozen=True, slots=True)
class StorageAccess:
    """Where the embedded storage is, and its keys."""

    endpoint_url: str
    bucket: str
    region: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class RunFile:
    """One deployment as it was when `headpond up` wrote it down."""

    redis_url: str = field(repr=False)
    storage: StorageAccess | None
    supervisor_socket: str
    supervisor_pid: int
    config: str


def write_run_file(state_folder: Path, run: RunFile) -> None:
    """Replace the file in one step. Raises DeploymentError if the disk refuses."""
    document = {"schema": SCHEMA, "v": VERSION, **asdict(run)}
    write_private(state_folder / RUN_FILE, json.dumps(document, indent=1) + "\n")


def read_run_file(state_folder: Path) -> RunFile | None:
    """What the file says; None if there is none. Raises DeploymentError if it cannot be read or understood."""
    path = state_folder / RUN_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] != SCHEMA or found["v"] != VERSION:
            raise ValueError(f"it is a {found['schema']} of version {found['v']}")
        storage = found["storage"]
        return RunFile(
            redis_url=_text(found["redis_url"]),
            storage=None if storage is None else StorageAccess(**{key: _text(storage[key]) for key in storage}),
            supervisor_socket=_text(found["supervisor_socket"]),
            supervisor_pid=int(found["supervisor_pid"]),
            config=_text(found["config"]),
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DeploymentError(f"Cannot read {path}: {error.strerror}. Check who owns it.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DeploymentError(
            f"{path} cannot be used ({error}). Remove it, then call: headpond down; headpond up"
        ) from error


def remove_run_file(state_folder: Path) -> None:
    """Forget the deployment. Nothing to do if there is no file."""
    path = state_folder / RUN_FILE
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DeploymentError(f"Cannot remove {path}: {error.strerror}. Check who owns it.") from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} should be a text")
    return value
