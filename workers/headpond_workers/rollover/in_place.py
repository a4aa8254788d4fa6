"""A process that begins anew: the same program, arguments, environment and pid. Its supervisor sees nothing of it.

By exec and not by an exit: no destructor of an engine's library is called, which may hang, and the device's memory is
free before the next version is loaded.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Collection
from pathlib import Path

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_DESCRIPTORS = Path("/proc/self/fd")
_STANDARD = 3
"""stdin, stdout and stderr stay open."""


def begin_anew(leave: threading.Event, *, keep: Collection[int] = ()) -> None:
    """Become the process that this one was at its start. Returns only if `leave` is set by then.

    keep: file descriptors that stay open. Signals that come meanwhile wait until `hear_signals`.
    """
    # Else one could come between the look and the exec, and be lost with this program's handlers.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    if leave.is_set():
        hear_signals()
        return
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    _close_at_exec(keep)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - its purpose


def hear_signals() -> None:
    """Once its handlers are there, a process that began anew takes signals again; any other one does so already."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _close_at_exec(keep: Collection[int]) -> None:
    """What Python opens ends with its program; libraries of engines leave files open that would be inherited."""
    for name in os.listdir(_DESCRIPTORS) if _DESCRIPTORS.is_dir() else ():
        descriptor = int(name)
        try:
            os.set_inheritable(descriptor, descriptor < _STANDARD or descriptor in keep)
        except OSError:
            # That of the listing itself, which is closed by now.
            continue
