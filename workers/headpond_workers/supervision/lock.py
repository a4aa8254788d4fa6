"""One command at a time changes a deployment: `.headpond/deployment.lock`."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headpond.errors import DeploymentError
from headpond_workers.supervision.private_files import FILE_MODE, cannot_write

LOCK_FILE = "deployment.lock"
LOCK_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.2


@contextmanager
def deployment_lock(state_folder: Path) -> Iterator[int]:
    """Hold the deployment for the body, after waiting for whoever has it. Raises DeploymentError after a while.

    Yields the descriptor that holds it: a process that inherits it holds the deployment too, until it ends.
    """
    path = state_folder / LOCK_FILE
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    except OSError as error:
        raise cannot_write(path, error) from error
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise DeploymentError(
                        f"Another headpond command has been changing this deployment for {LOCK_TIMEOUT_S:.0f} s: it "
                        f"holds {path}. Wait for it, or end it, then try again."
                    ) from None
                time.sleep(POLL_INTERVAL_S)
            else:
                break
        yield handle
    finally:
        os.close(handle)
