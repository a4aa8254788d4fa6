"""Where supervisord's Unix socket stands: a short folder of our own, since such paths end at 107 bytes."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from headpond.errors import DeploymentError
from headpond_workers.supervision.private_files import FOLDER_MODE, cannot_write

SOCKET_NAME = "supervisor.sock"
LONGEST_SOCKET_PATH = 104
"""Bytes, on the systems with the smallest limit, the closing NUL included."""
_PID_SUFFIX = 11
"""supervisord binds `<path>.<pid>` first, then links it to its name."""


def socket_candidates(state_folder: Path, environment: Mapping[str, str]) -> list[Path]:
    """Where the socket of this deployment may stand, the place for a new one first.

    The environment of a later command can lack XDG_RUNTIME_DIR, as in a cron job: so there can be two.
    """
    digest = hashlib.sha256(os.fsencode(state_folder.resolve())).hexdigest()[:12]
    found = []
    session = environment.get("XDG_RUNTIME_DIR", "")
    # supervisord's file can hold plain paths only.
    if session.startswith("/") and all(letter.isalnum() or letter in "/._-" for letter in session):
        found.append(Path(session) / f"headpond-{digest}" / SOCKET_NAME)
    found.append(Path("/tmp") / f"headpond-{os.geteuid()}-{digest}" / SOCKET_NAME)  # noqa: S108 - checked below
    return [path for path in found if len(os.fsencode(path)) + _PID_SUFFIX < LONGEST_SOCKET_PATH]


def make_runtime_folder(socket: Path) -> None:
    """Make the folder of `socket`, mode 0700, or check the one that is there.

    Raises DeploymentError if it is not a folder of our own that only we may enter: in /tmp anybody could have
    made it first.
    """
    folder = socket.parent
    try:
        folder.mkdir(mode=FOLDER_MODE)
    except FileExistsError:
        pass
    except OSError as error:
        raise cannot_write(folder, error) from error
    check_runtime_folder(socket)


def check_runtime_folder(socket: Path) -> None:
    """Raises DeploymentError if the folder of `socket` is not ours alone."""
    folder = socket.parent
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise DeploymentError(f"{folder} is not a folder. Remove it, then try again.")
    if found.st_uid != os.geteuid():
        raise DeploymentError(
            f"{folder} belongs to user id {found.st_uid}, not to you. Ask them, or root, to remove it; or set "
            "XDG_RUNTIME_DIR to a folder of your own."
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise DeploymentError(
            f"Others may enter {folder} (mode {stat.S_IMODE(found.st_mode):04o}), and could command your workers. "
            f"Look who made it, then: chmod 700 {folder}"
        )


def remove_runtime_folder(socket: Path) -> None:
    """Remove the socket and its folder, if supervisord has left them."""
    try:
        socket.unlink(missing_ok=True)
        socket.parent.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise cannot_write(socket.parent, error) from error
