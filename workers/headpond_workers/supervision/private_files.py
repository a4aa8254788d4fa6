"""Files and folders that only their owner may read: 0600 and 0700, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from pathlib import Path

from headpond.errors import DeploymentError
from headpond.terminal import escape_controls

FOLDER_MODE = 0o700
FILE_MODE = 0o600


def private_folder(path: Path) -> Path:
    """Make `path`, with its parents, a folder of mode 0700 that belongs to this user, and return it.

    Raises DeploymentError if it belongs to somebody else, or cannot be made.
    """
    try:
        path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        found = path.stat()
        if found.st_uid != os.geteuid():
            raise DeploymentError(
                f"{path} belongs to user id {found.st_uid}, and this is user id {os.geteuid()}. Run headpond as "
                "its owner, or use a configuration in a folder of your own."
            )
        if stat.S_IMODE(found.st_mode) != FOLDER_MODE:
            path.chmod(FOLDER_MODE)
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


def write_private(path: Path, text: str) -> None:
    """Replace `path` by `text`, mode 0600, in one step: a reader or a crash finds the old file or the new one."""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mkstemp makes it 0600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> DeploymentError:
    """The error to raise when the system refuses to write `path`."""
    advice = {
        errno.ENOSPC: "Free some space on that disk, then try again.",
        errno.EDQUOT: "Your disk quota is used up: free some space, then try again.",
        errno.EACCES: "Check who owns it, or use a configuration in a folder of your own.",
        errno.EPERM: "Check who owns it, or use a configuration in a folder of your own.",
        errno.EROFS: "That file system is read-only: use a configuration in another folder.",
    }.get(error.errno or 0, "Check the path and the disk, then try again.")
    return DeploymentError(f"Cannot write {path}: {error.strerror or error}. {advice}")


def last_lines(path: Path, count: int = 5) -> str:
    """The last `count` lines of a log, of its last 64 kB, safe for a terminal; empty if there is no such file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 65_536))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"(cannot read {path}: {error.strerror})"
    # Split at line feeds alone: whatever else a program wrote to break a line is shown as it is.
    return "\n".join([escape_controls(line) for line in text.split("\n") if line.strip()][-count:])
