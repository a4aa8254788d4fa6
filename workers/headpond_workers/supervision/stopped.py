"""Models that `headpond models stop` has stopped: they stay so until `headpond models start`.

`.headpond/stopped.json` remembers them over `headpond up`, `down` and `reload`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from headpond.errors import DeploymentError
from headpond_workers.supervision.private_files import write_private

STOPPED_FILE = "stopped.json"
SCHEMA = "headpond/stopped"
VERSION = 1


def read_stopped(state_folder: Path) -> frozenset[str]:
    """Their names. Raises DeploymentError if the file is damaged."""
    path = state_folder / STOPPED_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] != SCHEMA or found["v"] != VERSION:
            raise ValueError(f"it is a {found['schema']} of version {found['v']}")
        if not isinstance(found["models"], list):
            raise TypeError("models is no list")
        return frozenset(str(name) for name in found["models"])
    except FileNotFoundError:
        return frozenset()
    except OSError as error:
        raise DeploymentError(f"Cannot read {path}: {error.strerror}. Check who owns it.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DeploymentError(f"{path} cannot be used ({error}). Remove it: no model is stopped then.") from error


def write_stopped(state_folder: Path, models: Collection[str]) -> None:
    """Replace what is remembered. Raises DeploymentError if the disk refuses."""
    document = {"schema": SCHEMA, "v": VERSION, "models": sorted(models)}
    write_private(state_folder / STOPPED_FILE, json.dumps(document, indent=1) + "\n")
