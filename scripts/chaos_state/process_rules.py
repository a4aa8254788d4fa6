"""What is promised of processes: they stay until they are killed or told to leave, and show no traceback. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from headpond.terminal import escape_controls

MARK = "Traceback "
"""In what it said. Levels of log lines tell nothing: for dramatiq a Redis that is away is critical."""


def judge_process(name: str, left: Sequence[str], log: str) -> Iterator[str]:
    """left: how it ended where it was not killed, in words. log: all that it said."""
    for how in left:
        yield f"{name} {how}"
    for line in log.split("\n"):
        if MARK in line:
            yield f"{name} said: {escape_controls(line.strip())}"
