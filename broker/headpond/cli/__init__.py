"""The `headpond` command. This package brings the producer's commands; others join through entry points."""

from __future__ import annotations

from typing import NoReturn

from headpond.cli.interrupts import end_quietly, leave_at_once


def main() -> NoReturn:
    """Run one command and exit. A Ctrl-C ends it with 130, also amid the imports: nothing is under way yet."""
    leave_at_once()
    end_quietly()
    from headpond.cli.app import main as run

    run()


__all__ = ["main"]
