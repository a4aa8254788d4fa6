"""Blobs that count what is read of objects, and fail at it when they are told to."""

from __future__ import annotations

import threading
from collections.abc import Callable

from headpond.errors import StorageUnavailable
from headpond_workers.storage.blobs import Blobs
from memory_blobs import FaultyBlobs


class ReadingBlobs(FaultyBlobs):
    """`FaultyBlobs` that also look at each ranged read."""

    def __init__(self, inner: Blobs) -> None:
        super().__init__(inner)
        self._below = inner
        self._counting = threading.Lock()
        self.reads: list[tuple[str, int, int]] = []
        """Key, offset and bytes of each."""
        self.before: Callable[[int], None] = lambda count: None
        """Called before each read, with how many there were."""
        self.flips: dict[str, int] = {}
        """How many of the next reads of an object come with a bit flipped."""

    @property
    def read_bytes(self) -> int:
        return sum(size for _, _, size in self.reads)

    def read_into(self, key: str, buffer: memoryview, *, offset: int = 0) -> None:
        with self._counting:
            self.before(len(self.reads))
            self.reads.append((key, offset, buffer.nbytes))
            flip = self.flips.get(key, 0) > 0
            if flip:
                self.flips[key] -= 1
        self._below.read_into(key, buffer, offset=offset)
        if flip:
            buffer[buffer.nbytes // 2] ^= 1


def away_after(count: int) -> Callable[[int], None]:
    """Storage goes away once so many reads were made."""

    def before(made: int) -> None:
        if made >= count:
            raise StorageUnavailable("http://memory", configured_in="the test", reason="it is away")

    return before


def flip(blobs: Blobs, key: str, *, at: int = 0) -> None:
    """Flip a bit of an object in storage, whose content is its name's no more."""
    body = bytearray(blobs.get(key).body)
    body[at] ^= 1
    blobs.delete(key)
    blobs.put_once(key, bytes(body))
