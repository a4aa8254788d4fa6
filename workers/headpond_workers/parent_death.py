"""A process that ends when its parent does, on Linux."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int, signum: signal.Signals = signal.SIGTERM) -> None:
    """Ask the kernel for a signal when the parent dies; exec keeps that wish. Does nothing but on Linux.

    parent: its pid. If it is gone already, this process gets the signal at once.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0) != 0:
        # Not fatal: the program runs as it should, and `headpond down` still stops it.
        print(f"headpond: prctl failed: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
    if os.getppid() != parent:  # it died before the kernel had our wish
        os.kill(os.getpid(), signum)
