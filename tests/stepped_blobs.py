"""Real code on blobs in memory, one call on storage at a time: tests choose who takes the next step, and who dies.

Each actor runs in a thread of its own, which stops before every call on storage until it is told to go on. Only one
runs at any moment, so the same choices give the same run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from headpond_workers.storage.blobs import MAX_BLOB_BYTES, Blob, Blobs

WAIT_S = 20.0


class Crash(BaseException):
    """The process was killed: no call on storage happens after it."""


@dataclass(frozen=True)
class Call:
    """What an actor is about to do. late: the same request, to arrive when its sender is dead; None: it only reads."""

    name: str
    key: str
    late: Callable[[], object] | None = None


class Actor:
    """One process. It stands before its first call once it is made."""

    def __init__(self, name: str, blobs: Blobs, run: Callable[[Blobs], object]) -> None:
        self.name = name
        self.call: Call | None = None
        """What it is about to do; None once it has ended."""
        self.result: object = None
        self.error: Exception | None = None
        self.calls = 0
        self._killed = False
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._live, args=(SteppedBlobs(blobs, self), run), daemon=True)
        self._thread.start()
        self._await()

    def __repr__(self) -> str:
        return f"{self.name} before {self.call}"

    @property
    def ended(self) -> bool:
        return self.call is None

    def step(self, times: int = 1) -> None:
        """Let it make this many calls, or fewer if it ends."""
        for _ in range(times):
            if self.ended:
                return
            self._go.release()
            self._await()

    def finish(self, *, most: int = 5000) -> None:
        """Let it come to its end."""
        self.step(most)
        assert self.ended, f"{self.name} made {most} calls and has not ended"

    def until(self, name: str, part: str) -> None:
        """Let it go on until it is about to make such a call."""
        while not self.ended and not (self.call is not None and self.call.name == name and part in self.call.key):
            self.step()
        assert not self.ended, f"{self.name} never came to {name} {part}: {self.error or self.result}"

    def crash(self) -> Call | None:
        """Kill it before the call that it is about to make. Returns that call."""
        call = self.call
        if call is not None:
            self._killed = True
            self.step()
            assert self.ended, f"{self.name} lives on after a crash"
        return call

    def enter(self, call: Call) -> None:
        """Called in its thread."""
        if self._killed:
            raise Crash
        self.call = call
        self.calls += 1
        self._stopped.release()
        assert self._go.acquire(timeout=10 * WAIT_S), "nobody lets this actor go on"
        if self._killed:
            raise Crash

    def _await(self) -> None:
        assert self._stopped.acquire(timeout=WAIT_S), f"{self.name} does not come to its next call"

    def _live(self, blobs: Blobs, run: Callable[[Blobs], object]) -> None:
        try:
            self.result = run(blobs)
        except Crash:
            pass
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.error = error
        finally:
            self.call = None
            self._stopped.release()


class SteppedBlobs:
    """The port Blobs, as one actor sees it."""

    def __init__(self, inner: Blobs, actor: Actor) -> None:
        self._inner, self._actor = inner, actor

    def get(self, key: str, *, max_bytes: int = MAX_BLOB_BYTES) -> Blob:
        self._actor.enter(Call("get", key))
        return self._inner.get(key, max_bytes=max_bytes)

    def put_new(self, key: str, body: bytes) -> str:
        self._actor.enter(Call("put_new", key, lambda: self._inner.put_new(key, body)))
        return self._inner.put_new(key, body)

    def put_if(self, key: str, body: bytes, *, etag: str) -> str:
        self._actor.enter(Call("put_if", key, lambda: self._inner.put_if(key, body, etag=etag)))
        return self._inner.put_if(key, body, etag=etag)

    def put_once(self, key: str, body: bytes, *, sha256: bytes | None = None) -> bool:
        self._actor.enter(Call("put_once", key, lambda: self._inner.put_once(key, body, sha256=sha256)))
        return self._inner.put_once(key, body, sha256=sha256)

    def put_file(self, key: str, path: Path) -> None:
        self._actor.enter(Call("put_file", key))
        self._inner.put_file(key, path)

    def read_into(self, key: str, buffer: memoryview, *, offset: int = 0) -> None:
        self._actor.enter(Call("read_into", key))
        self._inner.read_into(key, buffer, offset=offset)

    def size_of(self, key: str) -> int | None:
        self._actor.enter(Call("size_of", key))
        return self._inner.size_of(key)

    def abort_uploads(self, prefix: str, *, older_than_s: float) -> int:
        self._actor.enter(Call("abort_uploads", prefix))
        return self._inner.abort_uploads(prefix, older_than_s=older_than_s)

    def list_keys(self, prefix: str) -> Iterator[str]:
        self._actor.enter(Call("list_keys", prefix))
        return iter(list(self._inner.list_keys(prefix)))

    def list_sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        self._actor.enter(Call("list_sizes", prefix))
        return iter(list(self._inner.list_sizes(prefix)))

    def delete(self, key: str) -> None:
        self._actor.enter(Call("delete", key, lambda: self._inner.delete(key)))
        self._inner.delete(key)
