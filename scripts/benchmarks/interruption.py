"""How a program that starts servers ends: by itself, by what cannot be done, or told to by Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from headpond.errors import HeadpondError

INTERRUPTED = 130


def exit_status_of(work: Callable[[], int], *, failed: str) -> int:
    """Do the work and return its exit status: 1 for what cannot be done, said after `failed`, 130 if it was told to
    leave. Every context is left then, and with it every process."""
    told = False

    def interrupt(_signum: int, _frame: object) -> NoReturn:
        nonlocal told
        told = True
        raise KeyboardInterrupt

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, interrupt)
    try:
        return work()
    except HeadpondError as error:
        if not told:
            print(f"{failed}: {error}", file=sys.stderr)
            return 1
    except KeyboardInterrupt:
        pass
    except Exception:
        # A terminal's Ctrl-C goes to the servers as well, and a call on one that has left may fail in its own way.
        if not told:
            raise
    print("Interrupted; nothing was written.", file=sys.stderr)
    return INTERRUPTED
