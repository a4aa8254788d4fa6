"""Secrets from environment variables: those of supervisord's start, told apart from those of a later shell.

A process cannot see another environment than its own, and supervisord hands on the one that it was started with. So
`.headpond/secrets.json` (0600) remembers, by the name of each variable that the configuration refers to, a digest of
its value then: HMAC-SHA-256 under the key in `deployment.json`. Values are written nowhere.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from pathlib import Path

from headpond.errors import DeploymentError
from headpond.settings import Settings
from headpond.tables import secrets_of
from headpond_workers.naming.identity import Identity
from headpond_workers.supervision.private_files import write_private

SECRETS_FILE = "secrets.json"
SCHEMA = "headpond/secrets"
VERSION = 1
_UNSET = ""


def note_shell_secrets(settings: Settings, identity: Identity, environment: Mapping[str, str]) -> None:
    """Remember what supervisord is started with. Raises DeploymentError if the disk refuses."""
    digests = {name: _digest(name, identity, environment) for name in _variables(settings)}
    document = {"schema": SCHEMA, "v": VERSION, "variables": digests}
    write_private(settings.state_folder / SECRETS_FILE, json.dumps(document, indent=1) + "\n")


def stale_shell_secrets(settings: Settings, identity: Identity, environment: Mapping[str, str]) -> list[str]:
    """One line for each variable whose value here is not the one that workers get. Raises DeploymentError."""
    noted = _noted(settings.state_folder)
    lines = []
    for name in _variables(settings):
        if name not in noted:
            what = "was not referred to"
        elif noted[name] == _digest(name, identity, environment):
            continue
        else:
            what = "had another value"
        lines.append(
            f"The variable {name} {what} when supervisord was started, and workers get that environment. To use the "
            "value of this shell: headpond down, then headpond up; or keep the secret in a file."
        )
    return lines


def _variables(settings: Settings) -> list[str]:
    tables = (settings.redis, settings.storage, *settings.models.values())
    return sorted({secret.env for table in tables for secret in secrets_of(table) if secret.env is not None})


def _digest(name: str, identity: Identity, environment: Mapping[str, str]) -> str:
    value = environment.get(name)
    if value is None:
        return _UNSET
    text = f"{name}={value}".encode("utf-8", "surrogateescape")
    return hmac.new(identity.key, text, hashlib.sha256).hexdigest()


def _noted(state_folder: Path) -> dict[str, str]:
    path = state_folder / SECRETS_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] != SCHEMA or found["v"] != VERSION:
            raise ValueError(f"it is a {found['schema']} of version {found['v']}")
        return {str(name): str(digest) for name, digest in found["variables"].items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DeploymentError(f"Cannot read {path}: {error.strerror}. Check who owns it.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeploymentError(
            f"{path} cannot be used ({error}). Remove it; headpond down and up make it anew."
        ) from error
