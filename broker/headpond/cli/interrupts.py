"""Ctrl-C at any moment of a command: at once while it imports and when it has ended, else as KeyboardInterrupt.

An interrupt that meets a finalizer or a callback of a C library is printed by Python and forgotten there. Here it is
raised once more a moment later, until the command itself has it.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

INTERRUPTED = 130
AGAIN_S = 0.02
"""Long enough for a finalizer to end; nobody notices it."""


def leave_at_once() -> None:
    """From here on an interrupt ends the process: for moments in which it has begun nothing, or has ended all."""
    _handle(_leave)


def raise_interrupts() -> None:
    """From here on an interrupt is a KeyboardInterrupt in the main thread that no finalizer can swallow."""
    tell = sys.unraisablehook

    def raise_again(unraisable: UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        else:
            tell(unraisable)

    sys.unraisablehook = raise_again
    _handle(signal.default_int_handler)


def end_quietly() -> None:
    """Once the interpreter goes, an interrupt is too late: the exit status is that of the command."""
    # What is registered first is called last.
    atexit.register(_handle, signal.SIG_IGN)


def _handle(handler: signal._HANDLER) -> None:
    # What a shell started in the background with `&` ignores interrupts, and goes on doing so.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)


def _leave(_signum: int, _frame: FrameType | None) -> NoReturn:
    # Not by an exception: an import may be within a callback, which prints it and goes on.
    os._exit(INTERRUPTED)
