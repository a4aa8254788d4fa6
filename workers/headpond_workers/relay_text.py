"""Text in pieces from another server, and the stop strings and stop tokens in it. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from headpond_workers.detokenizer import Detokenizer, Released


class RelayText:
    """As a Detokenizer, whose tokens are the pieces themselves: several of them may have the same id, or none."""

    def __init__(self, *, stop: Sequence[str] = (), stop_ids: Iterable[int] = ()) -> None:
        self._ids: list[int] = []
        self._pieces: list[str] = []
        self._stop_ids = frozenset(stop_ids)
        self._text = Detokenizer(lambda place: self._pieces[place].encode(), stop=stop)
        self._ended = False

    @property
    def stopped(self) -> bool:
        return self._ended or self._text.stopped

    def feed(self, ids: Sequence[int], pieces: Sequence[str]) -> Released:
        """Take the next pieces with the id of each, shape (n,) each; return what may be shown now."""
        if self.stopped:
            return Released()
        end = next((at for at, token_id in enumerate(ids) if token_id in self._stop_ids), len(ids))
        first = len(self._ids)
        self._ids += ids[:end]
        self._pieces += pieces[:end]
        released = self._named(self._text.feed(range(first, first + end)))
        if end == len(ids) or self._text.stopped:
            return released
        self._ended = True
        rest = self.flush()
        return Released(released.ids + rest.ids, released.pieces + rest.pieces)

    def flush(self) -> Released:
        """The answer ended: what was held back is text after all."""
        return self._named(self._text.flush())

    def _named(self, released: Released) -> Released:
        return Released(tuple(self._ids[place] for place in released.ids), released.pieces)
