"""`.headpond/workers/<instance>.lock`: held (flock) by the one process that runs under an instance name.

The kernel gives it back however the process ends, so a second worker of that name is told apart from the restart of
one that was killed. Imports nothing of headpond: the small parent of a pair of workers holds such a lock too.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

LOCKS_FOLDER = "workers"
_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class InstanceRefused(Exception):
    """A process may not run under this instance name. where: what says so, for people."""

    def __init__(self, message: str, *, where: str) -> None:
        super().__init__(message)
        self.where = where


@contextmanager
def held_instance(state_folder: Path, instance: str) -> Iterator[None]:
    """Hold an instance name for as long as the body runs.

    Raises InstanceRefused if another process of this deployment has it, or if it is no name. Where the folder cannot be
    written to, nothing is held, and the log says so.
    """
    if not _INSTANCE.fullmatch(instance):
        raise InstanceRefused(
            "an instance is named by letters, digits, '.', '_' and '-', such as chat-0",
            where=f"--instance {instance!r}",
        )
    path = state_folder / LOCKS_FOLDER / f"{instance}.lock"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        logger.warning("instance_not_locked instance=%s path=%s reason=%s", instance, path, error.strerror)
        yield
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(handle, 20).decode("ascii", "replace").strip() or "?"
            raise InstanceRefused(
                f"the worker {instance} runs already (pid {pid}), and goes on. Give this one another --instance, or "
                f"add workers with: headpond scale",
                where=str(path),
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
