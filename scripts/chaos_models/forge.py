"""A process that makes others: it has imported all that they need, runs no thread, and forks one for each order.

Starting Python anew takes a third of a second, which is longer than most of what is to be killed. The forge is itself
forked from the run, before that has a thread or an open connection.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Fields = dict[str, Any]
Say = Callable[..., None]
Perform = Callable[[Fields, Say], None]
"""Does what an order says, in a process of its own; `say("word", field=...)` is heard by the run at once."""
MAX_ORDER_BYTES = 64 << 10
READ_BYTES = 64 << 10


@dataclass(slots=True)
class Child:
    """One process. pidfd: readable once it has ended; names this process, also when its pid is another's. words: what
    it has said, in order."""

    pid: int
    pidfd: int
    pipe: int
    words: list[Fields] = field(default_factory=list)
    _rest: bytes = b""

    def listen(self) -> None:
        """Take what it has said since."""
        while True:
            try:
                part = os.read(self.pipe, READ_BYTES)
            except BlockingIOError:
                return
            if not part:
                return
            *lines, self._rest = (self._rest + part).split(b"\n")
            self.words += [json.loads(line) for line in lines]

    def said(self, *words: str) -> Fields | None:
        """The first of what it said that begins with one of `words`."""
        return next((told for told in self.words if told["word"] in words), None)

    def last(self, word: str, name: str) -> str:
        """A field of the newest of what it said that begins with this word; empty for none."""
        return next((str(told[name]) for told in reversed(self.words) if told["word"] == word), "")

    def count(self, word: str) -> int:
        """How often it has said this word."""
        return sum(told["word"] == word for told in self.words)

    @property
    def ended(self) -> bool:
        return bool(select.select([self.pidfd], [], [], 0)[0])

    def kill(self) -> None:
        """SIGKILL; nothing if it has ended."""
        self.signal(signal.SIGKILL)

    def signal(self, signum: signal.Signals) -> None:
        """Send it one; nothing if it has ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signum)

    def status(self) -> int:
        """With which it ended, for one that has; below 0 it is the number of a signal."""
        while (told := self.said("exited")) is None:
            select.select([self.pipe], [], [])
            self.listen()
        return int(told["status"])

    def wait(self) -> None:
        select.select([self.pidfd], [], [])

    def close(self) -> None:
        os.close(self.pidfd)
        os.close(self.pipe)


class Forge:
    """Not thread-safe. Close it before its run ends; if the run is killed, the forge and its processes end too."""

    def __init__(self, perform: Perform, *, log: Path) -> None:
        """log: where its processes write what they write."""
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            here.close()
            _serve(there, perform, log)
        there.close()
        self._socket = here

    def start(self, order: Mapping[str, Any]) -> Child:
        """A new process that does it."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reading, False)
        try:
            socket.send_fds(self._socket, [json.dumps(order).encode()], [writing])
        finally:
            os.close(writing)
        told, descriptors, _, _ = socket.recv_fds(self._socket, 64, 1)
        if not told or not descriptors:
            os.close(reading)
            raise RuntimeError("The process that makes the others has ended.")
        return Child(int(told), descriptors[0], reading)

    def close(self) -> None:
        """End it, and all of its processes that still run. A repeat does nothing."""
        if self._socket.fileno() < 0:
            return
        self._socket.close()
        os.waitpid(self.pid, 0)


def _serve(connection: socket.socket, perform: Perform, log: Path) -> None:
    """Never returns."""
    status = 1
    try:
        # Ctrl-C reaches the whole group; the run then closes the socket.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        alive: dict[int, tuple[int, int]] = {}  # pid and pipe by pidfd
        while True:
            ready, _, _ = select.select([connection.fileno(), *alive], [], [])
            for pidfd in [one for one in ready if one in alive]:
                _tell_end(pidfd, *alive.pop(pidfd))
            if connection.fileno() not in ready:
                continue
            body, descriptors, _, _ = socket.recv_fds(connection, MAX_ORDER_BYTES, 1)
            if not body:
                break
            (pipe,) = descriptors
            pid = os.fork()
            if pid == 0:
                connection.close()
                _work(json.loads(body), pipe, perform)
            # Before it is reaped: until then nobody else can have its pid.
            pidfd = os.pidfd_open(pid)
            socket.send_fds(connection, [str(pid).encode()], [pidfd])
            alive[pidfd] = (pid, pipe)
        for pid, _ in alive.values():
            os.kill(pid, signal.SIGKILL)
        for pid, _ in alive.values():
            os.waitpid(pid, 0)
        status = 0
    except BaseException:  # noqa: BLE001 - it goes to the log; the run sees the closed socket
        traceback.print_exc()
    finally:
        os._exit(status)


def _tell_end(pidfd: int, pid: int, pipe: int) -> None:
    """Reap it, and have the run hear with which status it ended; below 0 it is the number of a signal."""
    _, status = os.waitpid(pid, 0)
    told = json.dumps({"word": "exited", "status": os.waitstatus_to_exitcode(status)}).encode()
    with suppress(BrokenPipeError):  # the run has closed it, and does not care
        os.write(pipe, told + b"\n")
    os.close(pidfd)
    os.close(pipe)


def _work(order: Fields, pipe: int, perform: Perform) -> None:
    """Never returns."""
    status = 1

    def say(word: str, **fields: Any) -> None:
        # One write: it is heard whole or, if the process is killed before, not at all.
        os.write(pipe, json.dumps({"word": word, "at": time.monotonic(), **fields}).encode() + b"\n")

    try:
        perform(order, say)
        status = 0
    except BaseException:  # noqa: BLE001 - it is told, and judged
        say("crashed", why=traceback.format_exc()[-3000:])
    finally:
        os._exit(status)
