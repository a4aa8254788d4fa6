"""What a worker and its parent say to each other in `rollover = "side-by-side"`: see `headpond_workers.pair`.

Imported by both, so it knows no Redis and no engine.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping
from typing import Self

from headpond_workers.parent_death import end_with_parent

PAIR = "HEADPOND_PAIR"
"""In the environment of such a worker: `<pid of the parent>:<file descriptor>:<alone or beside>`."""
SWITCH = "switch"
READY = "ready"
ALONE = "alone"
_NOT_ALONE = "beside"


def environment_of(parent: int, descriptor: int, *, alone: bool) -> dict[str, str]:
    """What a child finds its line by. alone: no other child is there."""
    return {PAIR: f"{parent}:{descriptor}:{ALONE if alone else _NOT_ALONE}"}


class Words:
    """Lines of ASCII, cut out of what comes in pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode("ascii", "replace") for line in lines]


class PairLine:
    """A worker's end of the line. One thread at a time."""

    def __init__(self, parent: int, descriptor: int, *, alone: bool) -> None:
        self.parent = parent
        """Its pid: what a supervisor knows the worker by."""
        self.descriptor = descriptor
        self._alone = alone
        self._asked = False
        self._words = Words()
        self._socket = socket.socket(fileno=descriptor)
        self._socket.settimeout(0)

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self | None:
        """The line of this process; None if it has no such parent. A worker that is loading dies with its parent."""
        if PAIR not in environment:
            return None
        parent, descriptor, place = environment[PAIR].split(":")
        end_with_parent(int(parent), signal.SIGKILL)
        return cls(int(parent), int(descriptor), alone=place == ALONE)

    @property
    def alone(self) -> bool:
        """Whether this worker has the name: no older one is beside it. It has it still while a younger one loads."""
        self._hear()
        return self._alone

    @property
    def asked(self) -> bool:
        """Whether another worker was asked for and has neither come nor failed yet."""
        self._hear()
        return self._asked

    def ask_for_another(self) -> None:
        """Have a second worker started, once; it begins as this one did, and finds out itself what it is to serve."""
        if not self.asked:
            self._asked = True
            self._say(SWITCH)

    def say_ready(self) -> None:
        """This worker serves: the other one drains. From now on the death of the parent drains this one too."""
        end_with_parent(self.parent, signal.SIGTERM)
        self._say(READY)

    def _say(self, word: str) -> None:
        try:
            self._socket.sendall(f"{word}\n".encode("ascii"))
        except OSError:
            # The parent has died; its signal is on the way.
            return

    def _hear(self) -> None:
        try:
            said = self._socket.recv(4096)
        except OSError:
            return
        if ALONE in self._words.feed(said):
            self._alone, self._asked = True, False
            # Also after an exec.
            os.environ.update(environment_of(self.parent, self.descriptor, alone=True))
