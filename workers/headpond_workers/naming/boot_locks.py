"""`.headpond/boots/<model>/<boot>`: held (flock) by the one worker process with that boot id.

The kernel gives a lock back however its process ends. So whoever gets the lock of another process knows that it died,
and what it had leased need not wait for the end of its leases.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

BOOTS_FOLDER = "boots"
MOST_AT_ONCE = 100
"""Files that one look takes up: more are there only if many died while none of this model came to look."""
_BOOT = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")


class BootLocks:
    """Those of one model on this machine. Where the folder cannot be used, nothing is held and nobody found; leases end
    by themselves then."""

    def __init__(self, state_folder: Path, model: str) -> None:
        self._folder, self._model = state_folder / BOOTS_FOLDER / model, model
        self._handle: int | None = None
        self._boot = ""
        self._warned = False

    def hold(self, boot: str) -> None:
        """From now on, until `release` or the end of this process."""
        path = self._folder / f".{boot}"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Under its name only once it is held: else another process could get the lock between the two.
            path.rename(self._folder / boot)
            self._boot = boot
        except OSError as error:
            self._warn(error)

    def release(self) -> None:
        """This process has left its queue, and holds no lease."""
        if self._handle is not None:
            with contextlib.suppress(FileNotFoundError):
                (self._folder / self._boot).unlink()
            os.close(self._handle)
            self._handle = None

    def each_dead(self, bury: Callable[[str], None]) -> int:
        """Call bury(boot) for each process that died. Returns for how many. What bury raises passes, and leaves that
        one for the next look."""
        found = 0
        for boot in self._others()[:MOST_AT_ONCE]:
            path = self._folder / boot
            try:
                handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue  # another process has just seen to it
            except OSError as error:
                self._warn(error)
                continue
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                bury(boot)
                path.unlink(missing_ok=True)
                found += 1
            except BlockingIOError:
                continue  # it lives, or is being buried
            finally:
                os.close(handle)
        return found

    def _others(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self._folder) if _BOOT.fullmatch(name) and name != self._boot)
        except FileNotFoundError:
            return []
        except OSError as error:
            self._warn(error)
            return []

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("boots_not_locked model=%s path=%s reason=%s", self._model, self._folder, error.strerror)
