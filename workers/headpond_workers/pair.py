"""The parent of a worker with `rollover = "side-by-side"`: it has the next version loaded while one is served.

    python -m headpond_workers.pair --state-folder .headpond --instance chat-0 --stop-wait-s 45 -- WORKER ARGUMENTS

A supervisor sees this process alone. Its child is the worker; signals are passed on to it, and this process ends with
its exit code (128 and the signal's number, if one killed it). When the child asks for it, a second one is started.
Once that says that it serves, the first gets SIGTERM, which drains it; if it cannot, it leaves, and the first goes on.
Children die with their parent: PDEATHSIG. Each has a socket, a line a word:

    child to parent    switch   start another worker beside me: I am to be replaced
                       ready    I have loaded, and claim jobs from now on
    parent to child    alone    nobody is beside you (any more)

The parent knows neither Redis nor engines, and imports nothing that does: it costs the memory of a bare interpreter.
"""

from __future__ import annotations

import argparse
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from headpond_workers.naming.instance_file import InstanceRefused, held_instance
from headpond_workers.rollover.pair_line import ALONE, READY, SWITCH, Words, environment_of

EX_CONFIG = 78
CHECK_INTERVAL_S = 1.0
STOPPING = (signal.SIGTERM, signal.SIGINT)
PASSED_ON = (*STOPPING, signal.SIGHUP)


@dataclass(eq=False, slots=True)
class Child:
    """One worker process. kill_at: of time.monotonic(); when a child that was told to leave is killed."""

    process: subprocess.Popen[bytes]
    line: socket.socket
    words: Words = field(default_factory=Words)
    kill_at: float | None = None

    def tell(self, word: str) -> None:
        try:
            self.line.sendall(f"{word}\n".encode("ascii"))
        except OSError:
            # It is about to end; that is heard of by its exit.
            return


class Pair:
    """One worker, or for a while two. command: starts one. stop_wait_s: how long one that drains may take."""

    def __init__(self, command: list[str], *, stop_wait_s: float) -> None:
        self._command, self._stop_wait_s = command, stop_wait_s
        self._children: list[Child] = []
        """The oldest first."""
        self._leaving = False
        self._code = 0
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        """Until no child is left. Returns the exit code of the last one."""
        woken, wakes = socket.socketpair()
        for end in (woken, wakes):
            end.settimeout(0)
        # A handler of Python's must be there for the number to be written; what it does is done in the loop.
        for signum in (*PASSED_ON, signal.SIGCHLD):
            signal.signal(signum, lambda *_: None)
        signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
        self._selector.register(woken, selectors.EVENT_READ)
        self._start()
        while self._children:
            for key, _ in self._selector.select(CHECK_INTERVAL_S):
                if key.fileobj is woken:
                    for number in woken.recv(4096):
                        self._pass_on(signal.Signals(number))
            # Words before deaths: a child says that it is ready, and may be killed at once.
            for child in list(self._children):
                self._hear(child)
            self._reap()
            self._kill_late()
        signal.set_wakeup_fd(-1)
        return self._code

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(0)
        alone = not self._children
        try:
            process = subprocess.Popen(
                self._command,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, **environment_of(os.getpid(), theirs.fileno(), alone=alone)},
            )
        finally:
            theirs.close()
        child = Child(process, ours)
        self._children.append(child)
        self._selector.register(ours, selectors.EVENT_READ)

    def _pass_on(self, signum: signal.Signals) -> None:
        if signum not in PASSED_ON:
            return
        self._leaving = self._leaving or signum in STOPPING
        for child in self._children:
            child.process.send_signal(signum)

    def _hear(self, child: Child) -> None:
        if child.line.fileno() < 0:
            return
        try:
            said = child.line.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if not said:
            # Its end of the line is closed; that it has ended is told by SIGCHLD.
            self._selector.unregister(child.line)
            child.line.close()
            return
        for word in child.words.feed(said):
            if word == SWITCH and self._children == [child] and not self._leaving:
                _say("starts a second worker beside the first")
                self._start()
            elif word == READY and child is not self._children[0] and child.process.poll() is None:
                self._end_first()

    def _end_first(self) -> None:
        first = self._children[0]
        _say(f"pid={self._children[-1].process.pid} serves; pid={first.process.pid} drains")
        first.kill_at = time.monotonic() + self._stop_wait_s
        first.process.terminate()

    def _reap(self) -> None:
        ended = [child for child in self._children if child.process.poll() is not None]
        for child in ended:
            self._children.remove(child)
            if child.line.fileno() >= 0:
                self._selector.unregister(child.line)
                child.line.close()
            code = child.process.returncode
            self._code = code if code >= 0 else 128 - code
        if ended and self._children:
            _say(f"a worker has ended (status {self._code}); pid={self._children[0].process.pid} goes on alone")
            self._children[0].tell(ALONE)

    def _kill_late(self) -> None:
        for child in self._children:
            if child.kill_at is not None and time.monotonic() >= child.kill_at:
                child.kill_at = None
                _say(f"pid={child.process.pid} did not leave in {self._stop_wait_s:g} s; it is killed")
                child.process.kill()


def _say(line: str) -> None:
    print(f"headpond pair: {line}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="headpond-pair", description="Keep one worker, or two while they change.")
    parser.add_argument("--state-folder", type=Path, required=True, help=".headpond of the deployment")
    parser.add_argument("--instance", required=True, help="the worker's name, such as chat-0")
    parser.add_argument("--stop-wait-s", type=float, required=True, help="what a worker that drains may take")
    parser.add_argument("worker", nargs="+", metavar="ARGUMENT", help="after --: of headpond_workers.worker")
    options = parser.parse_args(argv)
    command = [sys.executable, "-m", "headpond_workers.worker", *options.worker]
    try:
        with held_instance(options.state_folder, options.instance):
            return Pair(command, stop_wait_s=options.stop_wait_s).run()
    except InstanceRefused as error:
        _say(f"{error.where}: {error}")
        return EX_CONFIG


if __name__ == "__main__":
    sys.exit(main())
