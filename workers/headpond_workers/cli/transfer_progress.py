"""How long transfers of versions are shown: a bar with its rate on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from headpond_workers.checkpoints.pulls.fetching import Progress as OnProgress

_LINE_EVERY_S = 10.0
_MEGABYTE = 1_000_000


@contextmanager
def shown_transfer(what: str) -> Iterator[OnProgress]:
    """On stderr. what: such as `chat@3`, stands before each stage."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console, what).show
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(f"{what}: {stage}", total=total or None)
            bars.update(tasks[stage], completed=done, total=total or None)

        yield show


class _Lines:
    """One line when a stage begins, then one in ten seconds."""

    def __init__(self, console: Console, what: str) -> None:
        self._console, self._what = console, what
        self._stage = ""
        self._began_s = self._told_s = 0.0

    def show(self, stage: str, done: int, total: int) -> None:
        now_s = time.monotonic()
        if stage != self._stage:
            self._stage, self._began_s, self._told_s = stage, now_s, now_s
            self._print(f"{stage}{f' ({total / _MEGABYTE:.1f} MB)' if total else ''}")
        elif total and now_s - self._told_s >= _LINE_EVERY_S:
            self._told_s = now_s
            rate = done / _MEGABYTE / (now_s - self._began_s)
            self._print(f"{stage} {done / _MEGABYTE:.1f} of {total / _MEGABYTE:.1f} MB, {rate:.0f} MB/s")

    def _print(self, line: str) -> None:
        self._console.print(f"{self._what}: {line}", highlight=False, markup=False, soft_wrap=True)
