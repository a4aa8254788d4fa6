"""An event loop in a thread of its own, for an engine whose callers are threads.

A task can be cancelled at any of its waits; a thread that waits for a socket cannot.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from headpond.errors import EngineError

T = TypeVar("T")
R = TypeVar("R")
_CLOSE_S = 10.0


class _End:
    """After the last item."""


class LoopThread(Generic[T]):
    """Runs coroutines for any thread. T: what a pumped task gives its caller on its way."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._closing = threading.Lock()
        self._closed = False
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Run to the end. Raises what it raises, EngineError if the loop is closed meanwhile."""
        return self._outcome(self._start(work))

    def pump(
        self, work: Callable[[Callable[[T], None]], Coroutine[Any, Any, R]], take: Callable[[list[T]], bool], *,
        tick_s: float,
    ) -> R | None:  # fmt: skip
        """Run `work`, which gets a function to give items by, and hand them to `take` in this thread.

        take: called with all items that have come, at the least every tick_s, then with none. If it returns False, the
        work is cancelled, and the result is None. Raises what either raises.
        """
        items: SimpleQueue[T | type[_End]] = SimpleQueue()
        future = self._start(work(items.put))
        future.add_done_callback(lambda _: items.put(_End))
        try:
            ended = False
            while not ended:
                batch, ended = _gather(items, tick_s)
                if not take(batch):
                    return None
            return self._outcome(future)
        finally:
            future.cancel()

    def close(self) -> None:
        """Cancel all that runs. A second call does nothing."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result(_CLOSE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_S)

    def _start(self, work: Coroutine[Any, Any, R]) -> Future[R]:
        with self._closing:
            if not self._closed:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        raise EngineError("The engine is closed.")

    def _outcome(self, future: Future[R]) -> R:
        try:
            return future.result()
        except (CancelledError, asyncio.CancelledError):
            raise EngineError("The engine was closed amid this job.") from None


def _gather(items: SimpleQueue[T | type[_End]], tick_s: float) -> tuple[list[T], bool]:
    """All that is there, waiting up to tick_s for the first; and whether the end is among it."""
    batch: list[T] = []
    timeout_s = tick_s
    while True:
        try:
            item = items.get(timeout=timeout_s) if timeout_s else items.get_nowait()
        except Empty:
            return batch, False
        if isinstance(item, type):
            return batch, True
        batch.append(item)
        timeout_s = 0.0


async def _cancel_all() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
