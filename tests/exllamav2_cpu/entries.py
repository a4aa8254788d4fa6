"""What enters the stand-ins: counted, slowed down or failed on request."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Kernel = Callable[..., Any]


@dataclass(slots=True)
class _PlannedFailure:
    entries_left: int
    error: BaseException


class Entries:
    """The entries of all stand-ins of one process. Entered by the engine's thread, read and planned by the test's."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        """Entries so far, by the name that exllamav2 calls."""
        self._names: set[str] = set()
        self._failures: dict[str, list[_PlannedFailure]] = {}
        self._delays_s: dict[str, float] = {}

    def counted(self, kernel: Kernel) -> Kernel:
        """`kernel`, with every entry counted. Its signature stays."""
        name = kernel.__name__
        self._names.add(name)

        @functools.wraps(kernel)
        def entry(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            if delay_s := self._delays_s.get(name):
                time.sleep(delay_s)
            if name in self._failures:
                self._fail_if_due(name)
            return kernel(*args, **kwargs)

        return entry

    def fail(self, kernel: str, error: BaseException, *, after: int = 1) -> None:
        """Let the `after`-th next entry of `kernel` raise `error`; 1 is the very next one. Plans add up."""
        self._check(kernel)
        if after < 1:
            raise ValueError(f"after={after}: the next entry is number 1.")
        self._failures.setdefault(kernel, []).append(_PlannedFailure(after, error))

    def slow(self, seconds: float, *, kernel: str) -> None:
        """Let every entry of `kernel` take that much longer from now on; 0 ends it."""
        self._check(kernel)
        self._delays_s[kernel] = seconds

    def reset(self) -> None:
        """Forget counts, planned failures and delays."""
        self.calls.clear()
        self._failures.clear()
        self._delays_s.clear()

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that were not entered."""
        return sorted(name for name in names if not self.calls[name])

    def _check(self, kernel: str) -> None:
        if kernel not in self._names:
            raise ValueError(f"There is no stand-in named {kernel!r}; there are {', '.join(sorted(self._names))}.")

    def _fail_if_due(self, name: str) -> None:
        due: BaseException | None = None
        for failure in list(self._failures.get(name, ())):
            failure.entries_left -= 1
            if failure.entries_left <= 0 and due is None:
                self._failures[name].remove(failure)
                due = failure.error
        if due is not None:
            raise due
