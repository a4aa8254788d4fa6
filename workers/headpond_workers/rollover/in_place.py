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
LATE_SIGNALS = "HEADPOND_LATE_SIGNALS"
"""In the environment of a process that began anew: the file descriptor of signals that came at its end, a byte each."""
_DESCRIPTORS = Path("/proc/self/fd")
_STANDARD = 3
"""stdin, stdout and stderr stay open."""


def begin_anew(leave: threading.Event, *, keep: Collection[int] = ()) -> None:
    """Become the process that this one was at its start. Returns only if `leave` is set by then.

    keep: file descriptors that stay open. Signals that come meanwhile are heard by `hear_signals`.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # A signal between the look at `leave` and the exec would be lost with this program's handlers. This thread leaves
    # it pending, which an exec keeps; where another thread takes it, its number is written down.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    late, noted = os.pipe()
    os.set_blocking(noted, False)
    signal.set_wakeup_fd(noted)
    if leave.is_set():
        signal.set_wakeup_fd(-1)
        for descriptor in (late, noted):
            os.close(descriptor)
        hear_signals()
        return
    os.environ[LATE_SIGNALS] = str(late)
    _close_at_exec({late, *keep})
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - its purpose


def hear_signals() -> None:
    """Once its handlers are there, a process that began anew takes signals again, also those of its end; any other one
    does so already."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    late = os.environ.pop(LATE_SIGNALS, "")
    if late:
        # Its other end was closed by the exec.
        with open(int(late), "rb") as noted:
            for number in noted.read():
                if number in SIGNALS:
                    signal.raise_signal(number)


def _close_at_exec(keep: Collection[int]) -> None:
    """What Python opens ends with its program; libraries of engines leave files open that would be inherited."""
    for name in os.listdir(_DESCRIPTORS) if _DESCRIPTORS.is_dir() else ():
        descriptor = int(name)
        try:
            os.set_inheritable(descriptor, descriptor < _STANDARD or descriptor in keep)
        except OSError:
            # That of the listing itself, which is closed by now.
            continue
