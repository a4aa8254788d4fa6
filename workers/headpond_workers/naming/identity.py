"""`.headpond/deployment.json`: which deployment this is, on any Redis. Random, made once, 0600.

    {"schema": "headpond/deployment", "v": 1, "id": "<16 hex digits>", "key": "<64 hex digits>"}

id: under it the deployment holds the names of its models; it is no secret. key: for digests of values that must not
be written down (`supervision.shell_secrets`); it never leaves the file. A copy of the folder on another machine would
pass for the same deployment: remove the file there.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from headpond.errors import ConfigError, DeploymentError

logger = logging.getLogger(__name__)

IDENTITY_FILE = "deployment.json"
SCHEMA = "headpond/deployment"
VERSION = 1
_ID = re.compile(r"[0-9a-f]{16}")
_GIVEN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Identity:
    """One deployment."""

    id: str
    key: bytes = field(repr=False)


def new_identity() -> Identity:
    """One that nobody has."""
    return Identity(secrets.token_hex(8), secrets.token_bytes(_KEY_BYTES))


def named_identity(name: str) -> Identity:
    """A deployment whose id somebody chose, for processes that share no folder. Raises ConfigError for a bad name."""
    if not _GIVEN_ID.fullmatch(name):
        raise ConfigError(
            f"{name[:100]!r} cannot be the id of a deployment: 1 to 63 letters, digits, '.', '_' and '-', the first a "
            "letter or a digit",
            where="HEADPOND_DEPLOYMENT",
        )
    return Identity(name, secrets.token_bytes(_KEY_BYTES))


def identity_of(state_folder: Path) -> Identity:
    """Who the deployment in this folder is; made if nobody asked before. Of several who ask first, all get one answer.

    Raises DeploymentError if the file cannot be read, understood or made.
    """
    path = state_folder / IDENTITY_FILE
    return _read(path) or _made(path)


def identity_or_passing(state_folder: Path) -> Identity:
    """`identity_of`, or one for this process alone where the folder cannot be written to, as in a container."""
    try:
        return identity_of(state_folder)
    except DeploymentError as error:
        identity = new_identity()
        logger.warning("identity_not_kept deployment=%s reason=%s", identity.id, error)
        return identity


def _made(path: Path) -> Identity:
    identity = new_identity()
    document = {"schema": SCHEMA, "v": VERSION, "id": identity.id, "key": identity.key.hex()}
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(json.dumps(document, indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            # A link, not a rename: it fails where another process was first.
            os.link(draft, path)
        except FileExistsError:
            found = _read(path)
            return found if found is not None else identity_of(path.parent)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise DeploymentError(f"Cannot write {path}: {error.strerror}. Check the folder and who owns it.") from error
    return identity


def _read(path: Path) -> Identity | None:
    try:
        found = json.loads(path.read_text(encoding="ascii"))
        if found["schema"] != SCHEMA or found["v"] != VERSION:
            raise ValueError(f"it is a {found['schema']} of version {found['v']}")
        key = bytes.fromhex(found["key"])
        if not _ID.fullmatch(found["id"]) or len(key) != _KEY_BYTES:
            raise ValueError("its id or its key has the wrong form")
        return Identity(found["id"], key)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DeploymentError(f"Cannot read {path}: {error.strerror}. Check who owns it.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DeploymentError(
            f"{path} cannot be used ({error}). Remove it while the deployment is down: it gets a new id then, and the "
            "names that the old one holds are freed by: headpond models forget NAME --deployment ID"
        ) from error
