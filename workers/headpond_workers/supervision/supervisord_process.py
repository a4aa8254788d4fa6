"""supervisord as a process: found by the files that it was started with, where its socket does not tell.

A socket stands in a folder that may go before supervisord does: $XDG_RUNTIME_DIR at a logout, /tmp at a clean-up.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import psutil

from headpond.errors import DeploymentError

CONF_NAME = "supervisord.conf"
PID_NAME = "supervisord.pid"
MODULE = "supervisor.supervisord"
POLL_INTERVAL_S = 0.05


def noted_socket(state_folder: Path) -> list[Path]:
    """Where the supervisord that was started last has its socket, by its configuration, which is written before."""
    try:
        text = (state_folder / CONF_NAME).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return []
    return [Path(found) for found in re.findall(r"^file=(/.*)$", text, re.MULTILINE)]


def supervisord_pid(state_folder: Path) -> int | None:
    """The process of the supervisord that runs on this folder; None if there is none. It may be about to end."""
    try:
        process = psutil.Process(int((state_folder / PID_NAME).read_text(encoding="ascii")))
        ours = MODULE in process.cmdline() and Path(process.cwd()) == state_folder.resolve()
    except (OSError, ValueError, psutil.Error):
        return None
    return process.pid if ours else None


def wait_for_end(pid: int, *, timeout_s: float) -> None:
    """Return once supervisord has ended. Raises DeploymentError after timeout_s."""
    deadline = time.monotonic() + timeout_s
    while process_runs(pid):
        if time.monotonic() >= deadline:
            raise DeploymentError(f"supervisord (pid {pid}) has not ended after {timeout_s:.0f} s.")
        time.sleep(POLL_INTERVAL_S)


def process_runs(pid: int) -> bool:
    """Whether a process of that id runs; one that waits for its parent to notice its end does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
