"""Many calls on storage at once, their answers in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")
THREADS = 8
"""Calls at a time, where nobody says otherwise."""


def in_parallel(call: Callable[[A], B], items: Iterable[A], *, threads: int) -> Iterator[B]:
    """`map`, with this many calls at a time; one thread calls in turn, in the thread of its caller. The first error
    leaves, and what has not begun is given up."""
    if threads == 1:
        yield from map(call, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        try:
            yield from pool.map(call, items)
        finally:
            pool.shutdown(cancel_futures=True)
