"""The parent's side of a replay: starts the process that runs the bundle, listens to it, and says how it ended."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import IO

from headpond.bundle import Bundle, pack_bundle
from headpond_workers.replay.events import (
    Embedded,
    Event,
    Failed,
    Finished,
    Loaded,
    Refused,
    Started,
    Step,
    Traced,
    parse_event,
)

LEAVE_TIMEOUT_S = 10.0
_READ_BYTES = 1 << 16
LOG_LINES = 12
"""Of what the process wrote, shown if it died."""
_LOG_TAIL_BYTES = 64 << 10


class How(StrEnum):
    """How a replay ended."""

    FINISHED = "finished"
    FAILED = "failed"
    """An error that the engine reported, and survived."""
    REFUSED = "refused"
    """The model is not the one that made the bundle's tokens."""
    DIED = "died"
    """A signal killed the process: its own, the kernel's for want of memory, or yours."""
    LEFT = "left"
    """The process ended by itself without a word."""
    STALLED = "stalled"
    """No step for too long; the process was killed."""


WITHOUT_A_WORD = (How.DIED, How.LEFT, How.STALLED)
"""What the process wrote last is all that there is to know."""


class While(StrEnum):
    """What the process was at when it ended."""

    LOADING = "loading"
    PREFILL = "prefill"
    """The request's own rendering and reading, before the first token."""
    GENERATING = "generating"


@dataclass(slots=True)
class Replay:
    """One run of a bundle.

    from_offset: tokens of the bundle that it went on after. made: tokens that the engine gave after them. token_ids:
    of these, those that are settled, shape (n,); pieces: their text, in parts. signal, status: of the process, if it
    ended by one; '' and 0 if not. configuration: it failed of settings or files. embedded: the vectors of a job that
    embeds. traced: of a verification, once the request is rendered.
    """

    from_offset: int
    how: How = How.LEFT
    during: While = While.LOADING
    engine: str = ""
    fingerprint: str = ""
    made: int = 0
    token_ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    reason: str = ""
    error: str = ""
    configuration: bool = False
    signal: str = ""
    status: int = 0
    embedded: Embedded | None = None
    traced: Traced | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def offset(self) -> int:
        """Tokens of the job at the end; where it came to none, all that the engine gave, also unsettled ones."""
        return self.from_offset + (len(self.token_ids) if self.how is How.FINISHED else self.made)

    def difference(self, bundle: Bundle) -> int | None:
        """Offset of the first token that is not the bundle's; None if all are alike, as far as both go."""
        theirs = bundle.token_ids[self.from_offset :]
        pairs = zip(self.token_ids, theirs, strict=False)
        return next((self.from_offset + at for at, (one, other) in enumerate(pairs) if one != other), None)

    def compared(self, bundle: Bundle) -> int:
        """How many tokens both have."""
        return min(len(self.token_ids), max(0, len(bundle.token_ids) - self.from_offset))


def run_replay(
    bundle: Bundle,
    *,
    config: Path,
    model: str,
    from_start: bool,
    any_fingerprint: bool,
    stall_timeout_s: float,
    log: IO[bytes],
    on_event: Callable[[Event], None],
    trace: bool = False,
) -> Replay:
    """Run a bundle in a process of its own, which is gone when this returns or raises.

    stall_timeout_s: after loading, how long it may make no step. log: takes what engine and process write. on_event:
    hears of each event as it comes. trace: say what the engine would name as having made the result, hash all weights
    anew for that, and run the job only where its tokens can be compared.
    """
    replay = Replay(0 if from_start else len(bundle.token_ids))
    options = [*(["--from-start"] if from_start else []), *(["--any-fingerprint"] if any_fingerprint else [])]
    options += ["--trace"] if trace else []
    with tempfile.TemporaryFile() as stdin:
        stdin.write(pack_bundle(bundle))
        stdin.seek(0)
        with _child(["--config", str(config), "--model", model, *options], stdin=stdin, log=log) as (process, events):
            stalled = False
            for event in _events(events, replay, stall_timeout_s=stall_timeout_s):
                if event is None:
                    stalled = True
                    process.kill()
                    break
                take_event(replay, event)
                on_event(event)
            _reap(replay, process, stalled=stalled)
    return replay


@contextlib.contextmanager
def _child(
    arguments: Sequence[str], *, stdin: IO[bytes], log: IO[bytes]
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    reader, writer = os.pipe()
    try:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "headpond_workers.replay.child", "--events", str(writer), *arguments],
                stdin=stdin, stdout=log, stderr=log, pass_fds=[writer],
            )  # fmt: skip
        finally:
            # The child's copy alone: then its death ends the pipe.
            os.close(writer)
        try:
            yield process, reader
        finally:
            process.kill()
            process.wait()
    finally:
        os.close(reader)


def _events(descriptor: int, replay: Replay, *, stall_timeout_s: float) -> Iterator[Event | None]:
    """Events until the pipe ends; None, and the end, if a loaded engine said nothing for too long."""
    rest = b""
    heard = time.monotonic()
    while True:
        patience_s = None
        if replay.during is not While.LOADING:
            patience_s = max(0.0, heard + stall_timeout_s - time.monotonic())
        if not select.select([descriptor], [], [], patience_s)[0]:
            yield None
            return
        chunk = os.read(descriptor, _READ_BYTES)
        if not chunk:
            # A line without its end was cut off by the death of its writer.
            return
        heard = time.monotonic()
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield parse_event(line)


def take_event(replay: Replay, event: Event) -> None:
    """What an event says of a replay."""
    match event:
        case Loaded():
            replay.engine, replay.fingerprint, replay.during = event.engine, event.fingerprint, While.PREFILL
        case Refused():
            replay.how = How.REFUSED
        case Started():
            replay.during = While.PREFILL
        case Traced():
            replay.traced = event
        case Step():
            replay.made += event.made
            replay.token_ids += event.ids
            replay.pieces.append(event.text)
            if event.made:
                replay.during = While.GENERATING
        case Embedded():
            replay.embedded = event
        case Finished():
            replay.how, replay.reason = How.FINISHED, event.reason
        case Failed():
            replay.how, replay.error, replay.configuration = How.FAILED, event.error, event.configuration


def _reap(replay: Replay, process: subprocess.Popen[bytes], *, stalled: bool) -> None:
    """How the process itself ended: that counts only if it had not said how the job did."""
    try:
        status = process.wait(LEAVE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        status = process.wait()
    if replay.how is not How.LEFT:
        return
    if stalled:
        replay.how = How.STALLED
    elif status < 0:
        replay.how = How.DIED
        replay.signal = _signal_name(-status)
    else:
        replay.status = status


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def log_tail(log: IO[bytes]) -> list[str]:
    """The last lines that engine and process wrote."""
    size = log.seek(0, 2)
    log.seek(max(0, size - _LOG_TAIL_BYTES))
    lines = log.read().decode("utf-8", errors="replace").splitlines()
    return [line for line in lines if line.strip()][-LOG_LINES:]
