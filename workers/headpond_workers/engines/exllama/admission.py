"""Who is admitted next: the line of sequences in front of a batch. Pure: no thread, no device, no clock of its own.

Order is that of arrival, with two exceptions. One adapter serves at a time: sequences of that adapter may overtake
one that waits for another, for ADAPTER_PATIENCE_S, then nobody is admitted until the batch is empty and the adapter
can be switched. And after a failure that nobody is guilty of, those that took part come first but run one at a time
until each has a new token: if one of them fails again, it takes no innocent one with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from headpond_workers.engines.protocol import Emit, Finish, Sequence

ADAPTER_PATIENCE_S = 2.0
"""How long the first of the line is overtaken by sequences of the adapter that serves."""


@dataclass(eq=False, slots=True)
class Entry:
    """One sequence on its way through the loop.

    polled_at: when emit was last called. first_since: when this became the first of the line. suspect: a failure
    that nobody is guilty of happened since its last token. Times are of the loop's clock, in seconds.
    """

    sequence: Sequence
    emit: Emit
    polled_at: float
    future: Future[Finish] = field(default_factory=Future)
    emitted: list[int] = field(default_factory=list)
    first_since: float | None = None
    suspect: bool = False

    @property
    def tokens_left(self) -> int:
        return self.sequence.max_tokens - len(self.emitted)

    def rest(self) -> Sequence:
        """What is left to do after the tokens that were emitted."""
        if not self.emitted:
            return self.sequence
        generated = (*self.sequence.generated, *self.emitted)
        return replace(self.sequence, generated=generated, max_tokens=self.tokens_left)


class Line:
    """The sequences that wait. Used by one thread."""

    def __init__(self) -> None:
        self._waiting: deque[Entry] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._waiting))

    def join(self, entries: Iterable[Entry]) -> None:
        self._waiting.extend(entries)

    def rejoin(self, entries: list[Entry]) -> None:
        """In front of all others, in this order: they had been admitted before."""
        self._waiting.extendleft(reversed(entries))

    def leave(self, entry: Entry) -> None:
        self._waiting.remove(entry)

    def next(self, admitted: Collection[Entry], *, slots: int, adapter: str | None, now: float) -> Entry | None:
        """The one to admit now, still in the line; None: nobody, for now.

        adapter: the one that serves `admitted`. If nothing is admitted, the one returned may want another.
        """
        if not self._waiting:
            return None
        first = self._waiting[0]
        if first.first_since is None:
            first.first_since = now
        if not admitted:
            return first
        if len(admitted) >= slots or (first.suspect and any(entry.suspect for entry in admitted)):
            return None
        if first.sequence.adapter == adapter:
            return first
        if now - first.first_since >= ADAPTER_PATIENCE_S:
            return None
        return next((entry for entry in self._waiting if entry.sequence.adapter == adapter), None)
