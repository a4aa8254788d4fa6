"""Waiting until the workers of a queue serve another version, and telling who is how far."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from headpond.queue import JobQueue
from headpond.switching import Switch
from headpond.workers import WorkerRow, WorkerState

POLL_INTERVAL_S = 0.2
SILENT_MS = 15_000
"""A worker that said nothing for so long, or for two leases, no longer lives; one that loads, after LOADING_MS."""
LOADING_MS = 900_000
FAILED_GRACE_S = 5.0
"""So long workers that have failed are given to begin again: one that waited for a first version does."""

EMPTY_LOOKS = 5


class Ended(StrEnum):
    SERVED = "served"
    """By every worker that lives."""
    UNSERVED = "unserved"
    """No worker lives; those that start serve it."""
    REFUSED = "refused"
    """It did not load, and was rolled back."""
    SUPERSEDED = "superseded"
    """The alias was moved on meanwhile."""
    FAILED = "failed"
    """A worker serves nothing any more."""
    TIMED_OUT = "timed out"


@dataclass(frozen=True, slots=True)
class Rollover:
    """How it ended. workers: as they were then, those that live and those that failed meanwhile. reason: of REFUSED."""

    ended: Ended
    workers: tuple[WorkerRow, ...] = ()
    reason: str = ""


class RolloverWait:
    """Of one queue. version: its name. trial: only the trial's share of the workers is to serve it. seq: of the alias
    that names it. progress: takes one line for people."""

    def __init__(
        self, queue: JobQueue, version: str, *, seq: int, trial: bool = False, progress: Callable[[str], None]
    ) -> None:
        self._queue, self._version, self._seq, self._trial = queue, version, seq, trial
        self._progress = progress
        self._shown: dict[str, str] = {}
        self._empty_looks = 0

    def wait(self, *, timeout_s: float | None = None) -> Rollover:
        """Raises RedisUnavailable. What was begun goes on, also if this ends by an exception."""
        began = time.monotonic()
        began_ms = self._now_ms()
        while True:
            found = self._look(began_ms, grace_over=time.monotonic() - began >= FAILED_GRACE_S)
            if found.ended is not Ended.TIMED_OUT:
                return found
            if timeout_s is not None and time.monotonic() - began >= timeout_s:
                return found
            time.sleep(POLL_INTERVAL_S)

    def _look(self, began_ms: int, *, grace_over: bool) -> Rollover:
        """TIMED_OUT while it goes on."""
        now_ms = self._now_ms()
        lease_ms = int(self._queue.meta().get("lease_ms", "0"))
        rows = self._queue.workers()
        live = [row for row in rows if lives(row, now_ms=now_ms, lease_ms=lease_ms)]
        failed = [row for row in rows if row.state is WorkerState.FAILED and row.seen_ms >= began_ms]
        self._tell([*live, *failed])
        workers = (*live, *failed)
        switch = self._queue.read_switch()
        if switch is not None and self._version in switch.refused:
            return Rollover(Ended.REFUSED, workers, switch.refused[self._version])
        if switch is not None and switch.seq > self._seq and not self._named(switch):
            return Rollover(Ended.SUPERSEDED, workers)
        waits_for_failed = not grace_over and any(row.state is WorkerState.FAILED for row in rows)
        if failed and not waits_for_failed:
            return Rollover(Ended.FAILED, workers)
        # One that is begun anew at this very moment may have no row.
        self._empty_looks = 0 if live else self._empty_looks + 1
        if not live:
            over = self._empty_looks >= EMPTY_LOOKS and not waits_for_failed
            return Rollover(Ended.UNSERVED if over else Ended.TIMED_OUT, workers)
        serving = [row for row in live if row.version == self._version and row.state is WorkerState.READY]
        done = bool(serving) if self._trial else len(serving) == len(live)
        return Rollover(Ended.SERVED if done else Ended.TIMED_OUT, workers)

    def _named(self, switch: Switch) -> bool:
        return self._version == (switch.trial if self._trial else switch.target)

    def _tell(self, rows: Iterable[WorkerRow]) -> None:
        for row in rows:
            text = describe(row)
            if self._shown.get(row.instance) != text:
                self._shown[row.instance] = text
                self._progress(f"{row.instance} on {row.host} {text}")

    def _now_ms(self) -> int:
        seconds, microseconds = self._queue.server.read("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000


def lives(row: WorkerRow, *, now_ms: int, lease_ms: int) -> bool:
    """Whether a worker serves or is about to, by when it was heard of. now_ms: of the server."""
    if row.state is WorkerState.FAILED:
        return False
    loading = row.state is WorkerState.LOADING
    return now_ms - row.seen_ms <= (LOADING_MS if loading else max(SILENT_MS, 2 * lease_ms))


def describe(row: WorkerRow) -> str:
    """What one worker is about, in a few words."""
    version = row.version or "a version"
    match row.state:
        case WorkerState.READY:
            return f"serves {version}"
        case WorkerState.LOADING:
            begun = f"loads {version}" if row.version else "begins anew"
            return begun + (f": {row.last_error}" if row.last_error else "")
        case WorkerState.DRAINING:
            return f"drains {version}"
        case WorkerState.FAILED:
            return f"failed: {row.last_error}"
        case WorkerState.STARTING:
            return "starts"
